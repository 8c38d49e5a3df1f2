"""A template with a verbalizer: rows → requests, and a model's answers → labels. Knows rendering; knows no
data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from finetune.errors import InputError
from prompts.scoring.load import load_scorer
from prompts.scoring.score import Request, Scorer
from prompts.scoring.tokens import count_tokens
from prompts.templates.entries import read_entry
from prompts.templates.template import Rendered, Template
from prompts.templates.verbalizer import Verbalizer, probabilities

JOINER = "\n\n"
Shots = Sequence[tuple[Mapping[str, Any], int]]  # columns and label of each example


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
        if entry.targets:
            raise InputError(
                f"'{name}' generates text and has no labels to weigh; wanted an entry with verbalizers"
            )
        chosen = template or next(iter(entry.templates))
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
        scorer = _kept(model) if isinstance(model, str) else model
        request, _ = self.request(scorer, columns)
        found = probabilities(self.scores(scorer, [request]))[0]
        return dict(zip(self.verbalizer.labels, map(float, found), strict=True))

    def request(
        self,
        scorer: Scorer,
        row: Mapping[str, Any],
        shots: Shots = (),
        limit: int | None = None,
        chat: bool = False,
    ) -> tuple[Request, bool]:
        """One row's question, behind its examples, and whether the row's text was cut to `limit` tokens."""
        examples = [
            (self.template.render(columns), self.verbalizer.answer(label)) for columns, label in shots
        ]
        return compose(self.template, scorer, row, examples, self.verbalizer.flat, limit, chat)

    def scores(self, scorer: Scorer, requests: Sequence[Request]) -> np.ndarray:
        """Scores of the labels, float64 [requests, labels]."""
        return self.verbalizer.label_scores(self.verbalizer.word_scores(scorer(requests)))


def compose(
    template: Template,
    scorer: Scorer,
    row: Mapping[str, Any],
    examples: Sequence[tuple[Rendered, str]],
    answers: Sequence[str],
    limit: int | None = None,
    chat: bool = False,
    reserve: str | None = None,
) -> tuple[Request, bool]:
    """A row's request: examples, one after the other, then the row with an open slot, and whether the row's
    text was cut.

    `reserve` is room left for an answer (default: for the one with the most tokens).
    """
    if reserve is None:
        reserve = longest(scorer.tokenizer, tuple(answers))
    limit = min(limit or scorer.longest, scorer.longest)
    head = "" if chat else "".join(rendered.filled(answer) + JOINER for rendered, answer in examples)

    def size(rendered: Rendered) -> int:
        text = head + rendered.filled(reserve)
        if chat:
            text = _conversation(scorer.tokenizer, examples, rendered) + reserve
        upper = len(text.encode()) + 8  # no token is shorter than a byte
        return upper if upper <= limit else count_tokens(scorer.tokenizer, text, special=not chat)

    rendered, was_cut = template.fit(row, size, limit)
    if chat:
        if rendered.after.strip():
            raise InputError(
                f"{template.name}: text after the slot ({rendered.after.strip()[:40]!r}) can't stand in a "
                "chat. Set --chat false"
            )
        return Request(
            _conversation(scorer.tokenizer, examples, rendered), tuple(answers), special=False
        ), was_cut
    return Request(
        head + rendered.before, tuple(rendered.gap + answer for answer in answers), rendered.after
    ), was_cut


@cache
def longest(tokenizer: Any, answers: tuple[str, ...]) -> str:
    """The answer with the most tokens."""
    return max(answers, key=lambda answer: count_tokens(tokenizer, answer, special=False))


def _conversation(tokenizer: Any, examples: Sequence[tuple[Rendered, str]], rendered: Rendered) -> str:
    """The model's own chat template: examples as earlier turns, an open turn of the assistant at the end."""
    if not tokenizer.chat_template:
        raise InputError(f"The tokenizer {tokenizer.name_or_path} has no chat template. Set --chat false")
    turns = []
    for example, answer in examples:
        turns += [{"role": "user", "content": example.before}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": rendered.before})
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def split_name(name: str) -> tuple[str, str | None, str | None]:
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
    return load_scorer(name)
