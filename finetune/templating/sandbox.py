"""Jinja text that nobody vouches for → text, in bounded time and memory. Knows Jinja; knows no rows.

Jinja's sandbox keeps a template away from Python, and lets it build `"a" * 10**10`. Here every operation is
paid for before it is done: loops, calls, filters and operators draw on one budget of work, whatever they
build is measured, and a clock runs. Only string methods and filters whose cost is known in advance can be
called, so that nothing has to be ended from outside.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.templating.budget import BITS, STEP, Budget, LimitError, Limits, current, open_account

CALL = 100  # a macro's or method's, which takes Python longer
WIDEST = 10_000  # most that a width or a count in an argument may be
SOURCE = 400_000  # most characters of a template


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WIDTHS = _names("batch center expandtabs indent ljust rjust round slice tojson wordwrap zfill ")
METHODS = _names(
    "capitalize casefold center count encode endswith expandtabs find format format_map index isalnum "
    "isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
    "isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill "
)
FILTERS = _names(
    "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float "
    "forceescape format groupby indent int items join last length list lower map max min random reject "
    "rejectattr replace reverse round safe select selectattr slice sort string striptags sum title "
    "tojson trim truncate unique upper wordcount wordwrap "
)
FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    MemoryError,
)


def _narrow(name: str, arguments: Iterable[Any]) -> None:
    """Refuse widths and counts that would make long texts of short ones."""
    for value in arguments:
        # Numbers alone: a string argument has been measured.
        if isinstance(value, (int, float)) and abs(value) > WIDEST:
            raise LimitError(f"'{name}' with {value:.3g}; wanted at most {WIDEST}")


def _format_size(text: str, arguments: Iterable[Any]) -> None:
    """Refuse a format that fills up or repeats beyond bounds: "%99999d", "{:>99999}", "%*d"."""
    if (
        len(text) > WIDEST
        # Nine digits at most: `int` of a long run of digits takes long by itself.
        or any(int(number[:9]) > WIDEST for number in re.findall(r"\d+", text))
        or "*" in text
    ):
        raise LimitError("a format with a width or length that isn't bounded")
    # A brace within a brace is a width that comes as an argument.
    if re.search(r"\{[^{}]*\{", text.replace("{{", "")):
        raise LimitError("a format with a width that is an argument")
    budget = open_account()
    each = max((budget.measure(value) for value in arguments), default=0)
    if (text.count("%") + text.count("{")) * each > budget.length:
        # Each sign writes an argument whole, however often.
        raise LimitError("a format that repeats its arguments beyond bounds")


def _growth(name: str, subject: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """What a call or filter is about to make, refused before it is made; `subject` is what stands left of the
    dot or bar."""
    budget = open_account()
    for value in (subject, *arguments, *named.values()):
        # Measured, though nothing is made of it: `replace` and the like copy it.
        budget.measure(value)
    if name in WIDTHS:
        _narrow(name, [*arguments, *named.values()])
    if name == "replace" and isinstance(subject, str) and len(arguments) > 1:
        old, new = str(arguments[0]), str(arguments[1])
        if (subject.count(old) + 1) * len(new) > budget.length:
            raise LimitError("'replace' makes a text that is too long")
    if name in ("format", "format_map") and isinstance(subject, str):
        _format_size(subject, [*arguments, *named.values()])
    # `sum` adds lists, whose lengths multiply in a loop.
    if name == "sum" and any(
        isinstance(value, (str, list, tuple)) for value in [*arguments, *named.values()][1:]
    ):
        raise LimitError("'sum' of lists")


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays; Jinja passes a context or environment first where the function's mark asks for
    one."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def paid(*arguments: Any, **named: Any) -> Any:
        budget = open_account()
        budget.spend(STEP)
        subject, further = arguments[first], arguments[first + 1 :]
        # A generator has no length; the whole is what `join` writes.
        if name == "join":  # a list of many references to one long text
            subject = list(subject)
            between = str(further[0]) if further else str(named.get("d", ""))
            if budget.measure(subject) + len(between) * len(subject) > budget.length:
                raise LimitError("'join' makes a text that is too long")
            arguments = (*arguments[:first], subject, *further)
        _growth(name, subject, further, named)
        return budget.pay(function(*arguments, **named))

    return paid


def _each(items: Iterable[Any], weight: int = 0) -> Iterator[Any]:
    """A loop's items, each paid for with the text that stands in the loop's body."""
    budget = open_account()
    # The body's own text is written at every turn.
    for item in items:
        budget.spend(STEP + weight)
        yield item


def _joined(parts: list[Any]) -> str:
    """What `a ~ b` makes."""
    budget = open_account()
    if budget.measure(parts) > budget.length:
        raise LimitError("'~' makes a text that is too long")
    return budget.pay("".join(map(str, parts)))


def _made(value: Any) -> Any:
    """A list, tuple or dictionary as the template writes it."""
    return open_account().pay(value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox in which work is paid for; use `render`, which opens the account."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **options: Any) -> None:
        options = {"finalize": None} | options
        given = options.pop("finalize")
        super().__init__(**options, finalize=lambda value: self._written(given(value) if given else value))
        self.optimized = False  # nothing is worked out while a template is compiled
        self.filters = {name: _bounded_filter(name, f) for name, f in self.filters.items() if name in FILTERS}
        self.filters |= {"_each": _each, "_joined": _joined, "_made": _made}
        # Makes random text of any length.
        del self.globals["lipsum"]

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A further filter, which is paid for as the others are."""
        self.filters[name] = _bounded_filter(name, function)

    def _written(self, value: Any) -> Any:
        """What `{{ }}` writes, measured before it becomes text."""
        # Measured before `str` is called, which would make it whole.
        budget = open_account()
        budget.spend(budget.measure(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > SOURCE:
            raise LimitError(f"a template of {len(source)} characters; wanted at most {SOURCE}")
        return super()._parse(source, name, filename)

    def _generate(self, source: nodes.Template, *rest: Any, **named: Any) -> str:
        return super()._generate(_metered(source), *rest, **named)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Methods of strings that aren't listed may cost anything.
        if isinstance(obj, (str, bytes)) and attr not in METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the call: a method's own work is not seen from here.
        budget = open_account()
        budget.spend(CALL)
        subject, name = _method_of(__obj)
        if name == "join" and isinstance(subject, str) and args:
            args = (list(args[0]),)
            if budget.measure(args[0]) + len(subject) * len(args[0]) > budget.length:
                raise LimitError("'join' makes a text that is too long")
        _growth(name, subject, args, kwargs)
        return budget.pay(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def paid(*args: Any, **kwargs: Any) -> Any:
            _format_size(str(value.__self__), [*args, *kwargs.values()])
            return made(*args, **kwargs)

        return paid

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = open_account()
        if operator == "*":
            self._check_product(budget, left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            # By the bits that the power would have.
            if right > 0 and left.bit_length() * right > BITS:
                raise LimitError("a power that is too large")
        elif operator == "+":
            # Both before they are put together.
            size = budget.measure(left) + budget.measure(right)
            if size > budget.length:
                raise LimitError("'+' makes something that is too long")
        elif operator == "%" and isinstance(left, str):
            _format_size(left, right if isinstance(right, tuple) else [right])
        return budget.pay(super().call_binop(context, operator, left, right))

    @staticmethod
    def _check_product(budget: Budget, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > BITS:
                raise LimitError("a product that is too large")
        else:
            for many, times in ((left, right), (right, left)):
                is_number = isinstance(many, (int, float)) or not isinstance(times, int)
                # Negative factors make an empty text.
                if not is_number and budget.measure(many) * max(times, 0) > budget.length:
                    raise LimitError("'*' makes something that is too long")


def _method_of(function: Any) -> tuple[Any, str]:
    """What a method belongs to, and its name; (None, "") of what is no method."""
    subject = getattr(function, "__self__", None)
    return subject, getattr(function, "__name__", "") if isinstance(subject, (str, bytes)) else ""


def _metered(tree: nodes.Template) -> nodes.Template:
    """The same template with what loops, `~` and literals make counted."""
    # Gathered first: replacing nodes while they are walked would visit the new ones.
    for node in list(tree.find_all(nodes.For)):
        weight = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        weight += sum(len(data.data) for data in node.body if isinstance(data, nodes.TemplateData))
        node.iter = _filter(node.iter, "_each", [nodes.Const(weight)])
    return _replaced(tree)


def _filter(node: nodes.Expr, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    made = nodes.Filter(
        node, name, arguments, [], None, None, lineno=node.lineno, environment=node.environment
    )
    return made


def _replaced(node: Any) -> Any:
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, name, _replaced(value))
        elif isinstance(value, list):
            value[:] = [_replaced(part) if isinstance(part, nodes.Node) else part for part in value]
    if isinstance(node, nodes.Concat):
        return _filter(
            nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), "_joined", []
        )
    if isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filter(node, "_made", [])
    return node


def compile_template(environment: Environment, text: str) -> Template:
    """
    Raises:
        TemplateError: the text is no Jinja, or too long or too deep for it.
    """
    try:
        # Jinja and Python have limits of their own on nesting, and errors of their own.
        return environment.from_string(text)
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
        raise LimitError(f"the template is nested too deeply ({type(error).__name__})") from error


def render(template: Template, variables: Mapping[str, Any], limits: Limits | None = None) -> str:
    """The template's text for some variables.

    Raises:
        LimitError: it would take more than `limits`.
        FAULTS: what a template can do wrong besides.
    """
    limits = limits or Limits()
    # What a row holds is measured on a budget without end: its size sets the limits.
    account = Budget(1 << 40, 1 << 50, float("inf"))
    given = account.measure(dict(variables))
    # Four times what came, since templates repeat and quote; work is more than that.
    account.length, account.work = max(limits.length, 4 * given), max(limits.work, 40 * given)
    account.end = time.monotonic() + limits.seconds
    token = current.set(account)
    try:
        parts, length = [], 0
        # Piece by piece: a text that is too long is given up while it is written.
        for part in template.generate(variables):
            length += len(part)
            if length > account.length:
                raise LimitError(f"the template writes more than {account.length} characters")
            parts.append(part)
        return "".join(parts)
    finally:
        # An error leaves the budget of whoever calls from within.
        current.reset(token)


def strict_environment(**options: Any) -> BoundedEnvironment:
    """For prompts: an unknown variable is an error, an empty field an empty text, line ends are kept."""
    return BoundedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: "" if value is None else value,
        **options,
    )
