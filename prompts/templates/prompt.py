"""A template with a verbalizer: rows → requests, and a model's answers → labels. Knows rendering; knows no
data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from finetune.data.chats import MEND, ChatError, Chats
from finetune.errors import InputError
from prompts.scoring.load import load_prompt_scorer
from prompts.scoring.score import Request, Scorer
from prompts.scoring.tokens import count_tokens
from prompts.templates.layout import Layout
from prompts.templates.reading import read_entry
from prompts.templates.template import NoRoom, Rendered, Template
from prompts.templates.verbalizer import Verbalizer, probabilities

Shots = Sequence[tuple[Mapping[str, Any], int]]  # columns and label of each example
Parts = tuple[str, Sequence[tuple[Rendered, str]], Rendered]  # description, examples, the row


@dataclass(frozen=True)
class Composed:
    """A request, whether its row's text was cut, and how many examples were left out."""

    request: Request
    was_cut: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what each answer means."""

    template: Template
    verbalizer: Verbalizer

    @property
    def name(self) -> str:
        return f"{self.template.name}/{self.verbalizer.name.rpartition('/')[2]}"

    @classmethod
    def load(cls, name: str, labels: Sequence[str] | None = None) -> Prompt:
        """`task/template` or `task/template/verbalizer` (the entry's first where none is named); task may be
        a YAML file.

        Raises:
            InputError: no such entry, template or verbalizer, or an entry that generates.
        """
        file, template, verbalizer = split_name(name)
        entry = read_entry(file)
        if not entry.words:
            raise InputError(
                f"'{name}' generates text and has no labels to weigh; wanted an entry with verbalizers"
            )
        chosen = template or next(iter(entry.templates))
        # promptsource's templates have a verbalizer of their own each
        words = verbalizer or (chosen if entry.paired else next(iter(entry.words)))
        return cls(entry.template(chosen), entry.verbalizer(words, labels))

    def ask(self, model: Scorer | str, text: str | None = None, **columns: Any) -> dict[str, float]:
        """Probability of each label: `Prompt.load("sentiment/review").ask("smollm2", "I loved it")`.

        Args:
            model: a scorer, or a name as load_scorer takes it (loaded once).
            text: the template's column, where it names one only; `columns` by name otherwise.

        Raises:
            InputError: a column that is missing, or text given to a template of several.
        """
        if text is not None:
            if len(self.template.columns) != 1:
                raise InputError(
                    f"{self.template.name} reads {', '.join(self.template.columns)}; give each by its name"
                )
            columns = {self.template.columns[0]: text, **columns}
        # loaded once for all calls by name
        scorer = _kept(model) if isinstance(model, str) else model
        request = self.request(scorer, columns).request
        found = probabilities(self.scores(scorer, [request]))[0]
        return dict(zip(self.verbalizer.labels, map(float, found), strict=True))

    def request(
        self, scorer: Scorer, row: Mapping[str, Any], shots: Shots = (), layout: Layout | None = None
    ) -> Composed:
        """One row's question, behind its examples."""
        examples = [
            (self.template.render(columns), self.verbalizer.answer(label)) for columns, label in shots
        ]
        return compose(
            self.template, scorer, row, examples, answers=self.verbalizer.flat, layout=layout or Layout()
        )

    def scores(self, scorer: Scorer, requests: Sequence[Request]) -> np.ndarray:
        """Scores of the labels, float64 [requests, labels]."""
        return self.verbalizer.label_scores(self.verbalizer.word_scores(scorer(requests)))


def compose(
    template: Template,
    scorer: Any,
    row: Mapping[str, Any],
    examples: Sequence[tuple[Rendered, str]],
    *,
    answers: Sequence[str],
    layout: Layout,
    reserve: str | None = None,
) -> Composed:
    """A row's request: the description, examples one after the other, then the row with an open slot.

    Where a row fits without examples, as many are left out, the earliest first; one that doesn't is cut, or
    isn't asked (`layout.on_long`).

    Args:
        scorer: of a model here, which counts tokens, or of an endpoint, which has no tokenizer.
        reserve: room left for an answer (default: for the one with the most tokens).

    Raises:
        TooLong: a row that doesn't fit and may not be cut.
        InputError: text after the slot in a chat, no chat template.
    """
    tokenizer = scorer.tokenizer
    if reserve is None:
        # an endpoint shows no tokens: sizes are bounded by bytes
        reserve = longest(tokenizer, tuple(answers)) if tokenizer else ""
    # no more than the model reads, whatever was asked
    limit = min(layout.limit or scorer.longest, scorer.longest)
    description = layout.description.plain(row) if layout.description else ""

    def laid(rendered: Rendered, shown: Sequence[tuple[Rendered, str]]) -> Request:
        if layout.chat:
            return _chat(template, tokenizer, layout, (description, shown, rendered), answers)
        return _plain(layout, (description, shown, rendered), answers)

    def size(rendered: Rendered, shown: Sequence[tuple[Rendered, str]]) -> int:
        request = laid(rendered, shown)
        # the longest answer has to fit too
        text = request.context + rendered.gap + reserve + request.rest
        upper = len(text.encode()) + 8  # no token is shorter than a byte
        # counted only where it may matter: most prompts are far below
        if tokenizer is None or upper <= limit:
            return min(upper, limit)
        return count_tokens(tokenizer, text, special=request.special)

    whole, kept = template.render(row), list(examples)
    # the row whole, and examples as far as there is room
    if size(whole, []) <= limit:
        while kept and size(whole, kept) > limit:
            # the earliest: what stands beside the question counts most
            kept.pop(0)
        return Composed(laid(whole, kept), False, len(examples) - len(kept))
    if layout.on_long == "stop":
        raise InputError(f"{template.name}: a row has more than {limit} tokens. Set --on_long cut")
    while True:
        try:
            # cut for the examples that are kept still
            rendered, cut = template.fit(row, lambda text: size(text, kept), limit, layout.on_long == "cut")
            return Composed(laid(rendered, kept), cut, len(examples) - len(kept))
        except NoRoom:
            # without examples even the template's own text doesn't fit
            if not kept:
                raise
            kept.pop(0)


def _plain(layout: Layout, parts: Parts, answers: Sequence[str]) -> Request:
    description, shown, rendered = parts
    head = description + layout.description_separator if description else ""
    head += "".join(example.filled(layout.begun(answer)) + layout.separator for example, answer in shown)
    before, gap = head + rendered.before, rendered.gap
    if layout.prefill:  # the answer's first words stand there already
        before = before + gap + layout.prefill.rstrip(" ")
        gap = " " if gap or layout.prefill.endswith(" ") else ""
    return Request(before, tuple(gap + answer for answer in answers), rendered.after)


def _chat(
    template: Template, tokenizer: Any, layout: Layout, parts: Parts, answers: Sequence[str]
) -> Request:
    """The model's own chat template: description as system turn, examples as turns, an open answer."""
    description, shown, rendered = parts
    if rendered.after.strip():
        raise InputError(
            f"{template.name}: text after the slot ({rendered.after.strip()[:40]!r}) can't stand in a chat. "
            "Set --chat false"
        )
    turns = [("system", description)] if description else []
    for example, answer in shown:
        # an example's answer is a turn of the assistant's
        turns += [("user", example.before), ("assistant", layout.begun(answer))]
    turns.append(("user", rendered.before))
    if tokenizer is None:  # an endpoint lays its chats out itself
        return Request(
            rendered.before, tuple(answers), special=False, turns=tuple(turns), prefill=layout.prefill
        )
    if not tokenizer.chat_template:
        raise InputError(f"The tokenizer {tokenizer.name_or_path} has no chat template. Set --chat false")
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = Chats(tokenizer).prompt(messages)
    except ChatError as error:
        reason = str(error).removesuffix(MEND)
        raise InputError(f"{reason}Leave the description out, or set --chat false") from error
    prefill = layout.prefill.rstrip(" ")
    # after a prefill the answer goes on in the same line
    gap = " " if prefill else ""
    return Request(
        text + prefill, tuple(gap + answer for answer in answers), special=False, turns=tuple(turns)
    )


@cache
def longest(tokenizer: Any, answers: tuple[str, ...]) -> str:
    """The answer with the most tokens."""
    return max(answers, key=lambda answer: count_tokens(tokenizer, answer, special=False))


def split_name(name: str) -> tuple[str, str | None, str | None]:
    # a path may hold slashes of its own
    """`entry/template/verbalizer` → its parts; an entry may be a path that ends in .yaml."""
    for ending in (".yaml", ".yml"):
        if ending in name:
            file, _, rest = name.partition(ending)
            parts = [part for part in rest.split("/") if part]
            return file + ending, *[*parts, None, None][:2]  # type: ignore[return-value]
    parts = name.split("/")
    if len(parts) > 3:
        raise InputError(
            f"Cannot read the name '{name}'; wanted entry, entry/template or entry/template/verbalizer. "
            "Set --prompts"
        )
    return parts[0], *[*parts[1:], None, None][:2]  # type: ignore[return-value]


@cache
def _kept(name: str) -> Scorer:
    return load_prompt_scorer(name)
