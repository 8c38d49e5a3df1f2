"""A task's prompts: templates, what its labels are called, what is right, which columns they read. Knows no
files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from prompts.templates.filters import Step
from prompts.templates.layout import Layout
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, make_verbalizer

FIGURES = ("accuracy", "macro_f1", "matthews")  # of labels
CHOICE_FIGURES = ("accuracy",)
LIBRARY = Path(__file__).parent.parent / "library"


@dataclass(frozen=True)
class Source:
    """How rows of a data set become the columns that templates name.

    Attributes:
        columns: name in templates → column of the data; dots reach inside.
        labels: class of the data → label of the entry, where they differ.
        rows: how rows are made, one of rows.READERS.
    """

    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    rows: str = "plain"


@dataclass(frozen=True)
class Ending:
    """Where a generated answer ends: at the first of some texts, or after a number of tokens.

    Attributes:
        keep: leave the space around the answer and what stands before the ending as it was written.
    """

    name: str
    until: tuple[str, ...]
    tokens: int
    keep: bool = False


@dataclass(frozen=True)
class Judge:
    """A model that says what a written answer is worth.

    Attributes:
        model: a name as --models takes it.
        template: asks it; sees the row's columns, `written`, `wanted`, and both as `first` and `second` in
            turn.
        words: label → word.
        good: the label that an answer should get; of `first` and `second`, whichever the answer stands at.
    """

    model: str
    template: Template
    words: dict[str, str]
    good: str


@dataclass(frozen=True)
class Entry:
    """One task's prompts.

    Attributes:
        labels: None where the data names them.
        words: what each verbalizer says, as the file has it; of promptsource's, the text after `|||`.
        targets: for each template with choices or written answers, what is right.
        choices: for each template whose answers differ by row, those answers.
        keys: what the target calls the choices, as A, B, C; target_is says what a target is where it isn't
            plain.
        filters: ways to take the answer out of what was written, by name.
        normalise: what is done to both sides before they are compared.
        paired: a template is asked with the verbalizer of its own name alone, as promptsource's are.
    """

    name: str
    labels: tuple[str, ...] | None
    metric: str
    data: dict[str, Source]
    templates: dict[str, Template]
    words: dict[str, Any]
    targets: dict[str, Template] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)
    paired: bool = False
    choices: dict[str, Template] = field(default_factory=dict)
    keys: Template | None = None
    target_is: str | None = None
    filters: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    normalise: tuple[Step, ...] = ()
    judge: Judge | None = None
    layout: Layout = Layout()  # noqa: RUF009  (frozen)

    def kind(self, template: str) -> str:
        """How a template is answered: labels, choices or text."""
        if template in self.choices:
            return "choices"
        return "text" if template in self.targets else "labels"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of all templates, each once."""
        return tuple(dict.fromkeys(map(self.kind, self.templates)))

    @property
    def worded(self) -> tuple[str, ...] | None:
        """Labels that some verbalizer has words for; None where one says all, as a pattern of names does."""
        found: dict[str, None] = {}
        for given in self.words.values():
            words = given.get("words", given) if isinstance(given, dict) else given
            if not isinstance(words, dict):
                return None
            found |= dict.fromkeys(map(str, words))
        return tuple(found)

    def metric_of(self, kind: str) -> str:
        """What heads the report of one kind of answers."""
        known = {"labels": FIGURES, "choices": CHOICE_FIGURES}.get(kind)
        if known is None:
            # a figure of labels is no heading for texts, where an entry has both
            return "rougeL" if self.metric in FIGURES and len(self.kinds) > 1 else self.metric
        return self.metric if self.metric in known else "accuracy"

    def verbalizer(
        self, name: str, labels: Sequence[str] | None = None, values: Sequence[Any] | None = None
    ) -> Verbalizer:
        """The verbalizer of that name, for the data's labels where the entry leaves them open.

        Args:
            values: what stands in the data for each label (default: numbers from 0).

        Raises:
            InputError: no such verbalizer, labels that don't fit it, labels left open and not given.
        """
        if name not in self.words:
            raise InputError(
                f"{self.name}: no verbalizer '{name}'; there are: {', '.join(self.words)}. Set --prompts"
            )
        # the entry's own labels go over those of the data
        known = self.labels or tuple(labels or ())
        if not known:
            raise InputError(
                f"{self.name}: its labels are those of the data; name a data set by --dataset_name"
            )
        given = self.words[name]
        # promptsource's: the answer's text for each label is what its verbalizer says
        if isinstance(given, Template):
            given = _answers(given, known, values)
        options = {}
        # words with options, or the words alone
        if isinstance(given, dict) and "words" in given:
            options = {k: v for k, v in given.items() if k != "words"}
            given = given["words"]
        strange = sorted(set(options) - {"tokens", "combine"})
        if strange or not isinstance(given, (str, dict)):
            what = (
                f"unknown key '{strange[0]}'; wanted words, tokens, combine"
                if strange
                else f"holds {given!r}; wanted label: word"
            )
            raise InputError(f"{self.name}/{name}: {what}")
        return make_verbalizer(f"{self.name}/{name}", known, given, **options)

    def template(self, name: str) -> Template:
        """The template of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.templates:
            raise InputError(
                f"{self.name}: no template '{name}'; there are: {', '.join(self.templates)}. Set --prompts"
            )
        return self.templates[name]


def library() -> list[str]:
    """Names of the entries that come with the package."""
    return sorted(file.stem for file in LIBRARY.glob("*.yaml"))


def label_column(answer: Template) -> str | None:
    """The column that an answer follows from: its only one, or the one that is called so."""
    # with several columns nothing but a usual name can tell
    if len(answer.columns) == 1:
        return answer.columns[0]
    return "label" if "label" in answer.columns else None


def _answers(answer: Template, labels: Sequence[str], values: Sequence[Any] | None) -> dict[str, str]:
    """What promptsource's answer is for each label: {{ answer_choices[1 - label] }} turns them round."""
    # other columns say nothing of the label, and must hold something
    row: dict[str, Any] = dict.fromkeys(answer.columns, "...")
    column = str(label_column(answer))
    pairs = zip(labels, values or range(len(labels)), strict=True)
    return {label: answer.plain({**row, column: value}) for label, value in pairs}
