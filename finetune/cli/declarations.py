"""Option classes as their source files declare them. Imports none of them, so that help and completion answer
at once.

Importing torch, transformers, peft and trl takes seconds; a help text needs only names, defaults and one line
each, and all of that is literal text in the files that define the option classes.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import operator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# The packages whose options are this project's own; what other packages declare stands behind `--help all`.
OURS = ("finetune", "prompts", "scripts")
ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option: its default as one would type it (empty where there is none), its help, and the
    package that declares it.
    """

    name: str
    default: str
    help: str
    package: str


class NotLiteral(Exception):
    """A default that only running code can tell."""


def source_of(module: str) -> Path:
    """The file of `module`, found without importing it or its parents."""
    top, *rest = module.split(".")
    # The top package alone: finding a module below it would import its parents.
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named '{top}'")
    path = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin)
    if path.suffix == ".py":
        return path
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    """A source file's syntax tree; several option classes may stand in one file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> dict[str, tuple[str, str]]:
    """Names that a module imports from others → (module, name there), also those under TYPE_CHECKING."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # A dot is the package itself, each further one its parent.
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
    return found


def option_classes(script: Path, names: list[str]) -> list[tuple[str, str]]:
    """(module, class) of each annotation in a script's `main`."""
    origins = imports_of(parsed(script), "__main__")
    return [origins[name] for name in names]


def classes_of(script: Path, main: str | None = None) -> list[tuple[str, str]]:
    """(module, class) of a script's options, in the order of its `main`; of all its mains where none
    is named.
    """
    functions = {n.name: n for n in parsed(script).body if isinstance(n, ast.FunctionDef)}
    names = [main] if main else ["main", *_further_mains(script)]
    annotations = [ast.unparse(a.annotation) for n in names for a in functions[n].args.args if a.annotation]
    # Annotations are text here: classes as `main` names them.
    found = option_classes(script, annotations)
    if main is None:
        # Verbs that a table leaves some algorithms to, whose options a user may mean.
        found += [one for other in scripts_of(script)[1:] for one in classes_of(other)]
    return list(dict.fromkeys(found))


def scripts_of(script: Path) -> list[Path]:
    """A script, and those of the verbs that its table ALGORITHMS leaves some algorithms to."""
    verbs = dict.fromkeys(str(n.value) for n in _algorithms(script) if isinstance(n, ast.Constant))
    return [script, *(script.with_name(f"{verb}.py") for verb in verbs)]


def _further_mains(script: Path) -> list[str]:
    """Functions in a script's table ALGORITHMS, each with options of its own."""
    functions = {n.name for n in parsed(script).body if isinstance(n, ast.FunctionDef)}
    names = [n.id for n in _algorithms(script) if isinstance(n, ast.Name)]
    return [name for name in dict.fromkeys(names) if name in functions]


def _algorithms(script: Path) -> list[ast.expr]:
    """The values of a script's table ALGORITHMS: its own functions, and other verbs by name."""
    for node in parsed(script).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALGORITHMS":
            assert isinstance(node.value, ast.Dict)
            return node.value.values
    return []


def required_of(script: Path) -> tuple[str, ...]:
    """Options that a script's REQUIRED names: they have no default that would fit."""
    for node in parsed(script).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRED":
            return tuple(ast.literal_eval(node.value))
    return ()


def description(script: Path) -> str:
    """A script's docstring."""
    return ast.get_docstring(parsed(script)) or ""


def title_of(module: str, name: str) -> str:
    """The first line of a class's docstring; its name where it has none."""
    # The class itself is the last in its lineage.
    node = list(lineage(module, name).values())[-1]
    return (ast.get_docstring(node) or name).splitlines()[0].rstrip(".")


def options_of(module: str, name: str) -> list[Option]:
    """All options of a dataclass, those of its base classes included; the class that Python asks
    first has its word.
    """
    options: dict[str, Option] = {}
    # From the oldest ancestor on, so that a subclass overwrites.
    for (origin, _), node in lineage(module, name).items():
        for field in _fields(node):
            if _is_fixed(field):  # a subclass takes the option away
                options.pop(field.target.id, None)
                continue
            option = _read_field(field, origin)
            # A subclass that changes a default alone keeps the help.
            if option.name in options and not option.help:
                option = replace(option, help=options[option.name].help)
            options[option.name] = option
    return list(options.values())


@cache
def lineage(module: str, name: str) -> dict[tuple[str, str], ast.ClassDef]:
    """A class and all it inherits from, by (module, name), the other way round than Python asks them
    for an attribute.
    """
    path = source_of(module)
    tree = parsed(path)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:  # the package only hands the name on
        # A package's __init__ hands names on from its modules.
        return lineage(*imports_of(tree, module, path.name == "__init__.py")[name])
    found: dict[tuple[str, str], ast.ClassDef] = {}
    # Right to left, so that the first base has the last word, as in Python.
    for base in reversed(node.bases):
        place = _place_of(base, tree, module, path)
        for key, ancestor in (lineage(*place) if place else {}).items():
            found.setdefault(key, ancestor)
    return found | {(module, name): node}


def _fields(node: ast.ClassDef) -> list[Any]:
    return [
        field
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        # Fields with an underscore and class variables are no options.
        and not field.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(field.annotation)
    ]


def _is_fixed(field: ast.AnnAssign) -> bool:
    """Whether a field is `field(..., init=False)`, which no command line sets."""
    return isinstance(field.value, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in field.value.keywords
    )


def _place_of(base: ast.expr, tree: ast.Module, module: str, path: Path) -> tuple[str, str] | None:
    """(module, class) of a base class as it is written."""
    if isinstance(base, ast.Attribute):  # class Ours(package.Theirs)
        return ast.unparse(base.value), base.attr
    if not isinstance(base, ast.Name):
        return None
    # A class of the same file, before an import of that name.
    if any(isinstance(n, ast.ClassDef) and n.name == base.id for n in tree.body):
        return module, base.id
    return imports_of(tree, module, path.name == "__init__.py").get(base.id)


def _read_field(field: Any, module: str) -> Option:
    value, text = field.value, ""
    if isinstance(value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        # A factory stands for the list or dictionary that it makes.
        value = given.get("default", given.get("default_factory"))
        if isinstance(given.get("metadata"), ast.Dict):
            text = _help_in(given["metadata"])
    try:
        default = as_typed(literal(value, module)) if value is not None else ""
    except NotLiteral:
        default = ""  # the option's help says what it is
    # In one line; the source wraps it.
    return Option(field.target.id, default, " ".join(text.split()), module.split(".")[0])


def literal(node: ast.expr, module: str) -> Any:
    """The value of a default that is written out: constants, lists of them, names of constants, their
    arithmetic.

    Raises:
        NotLiteral: it is none of these.
    """
    match node:
        case ast.Constant():
            return node.value
        # `default_factory=lambda: [...]`.
        case ast.Lambda():
            return literal(node.body, module)
        case ast.List() | ast.Tuple():
            return [literal(item, module) for item in node.elts]
        case ast.Dict() if all(node.keys):
            keys = [literal(key, module) for key in node.keys if key]
            return dict(zip(keys, [literal(value, module) for value in node.values], strict=True))
        case ast.UnaryOp(op=ast.USub()):
            return -literal(node.operand, module)
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](literal(node.left, module), literal(node.right, module))
        # list and dict as factories.
        case ast.Name(id="list"):
            return []
        case ast.Name(id="dict"):
            return {}
        case ast.Call(func=ast.Name(id="list" | "tuple"), args=[one]):
            return list(literal(one, module))
        case ast.Name():
            return _constant(node.id, module)
    raise NotLiteral(ast.unparse(node))


def _constant(name: str, module: str) -> Any:
    """What a module assigns to a name, or the module that it takes the name from."""
    path = source_of(module)
    tree = parsed(path)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            return literal(node.value, module)
    origin = imports_of(tree, module, path.name == "__init__.py").get(name)
    # Other packages' constants would have to be imported to be known.
    if origin is None or origin[0].split(".")[0] not in OURS:
        raise NotLiteral(name)
    return _constant(origin[1], origin[0])


def as_typed(value: Any) -> str:
    """A value as the command line takes it; empty for None and for what is empty."""
    if value is None or value == [] or value == {}:
        return ""
    # Before numbers: True is one.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(as_typed(item) for item in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _help_in(metadata: ast.Dict) -> str:
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            # Strings that stand side by side, and those in brackets.
            parts = [
                n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            return "".join(parts)
    return ""
