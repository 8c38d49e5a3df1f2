"""Options of rows for verbs that read fewer of them: an option that a verb doesn't read is none of
it. Knows options alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.data.sources import DataArguments, TextArguments


@dataclass
class UnshownArguments(DataArguments):
    """Which rows, for verbs that show none of them."""

    show_rows: int = field(default=0, init=False)
    check: bool = field(default=False, init=False)
    licences: list[str] | None = field(default=None, init=False)


@dataclass
class CorpusArguments(TextArguments):
    """Which texts, of which no classes are wanted."""

    balance_eval_rows: bool = field(default=False, init=False)
    class_names: list[str] | None = field(default=None, init=False)
    near_labels: str | None = field(default=None, init=False)
    minus_one: str | None = field(default=None, init=False)


@dataclass
class UnshownCorpusArguments(CorpusArguments):
    """Which texts, for a verb that shows none of them."""

    show_rows: int = field(default=0, init=False)
    check: bool = field(default=False, init=False)
