"""What a page is made of: tables, charts, words, and sections of them. Knows no files and no HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# SVG is left out: it may hold scripts
PICTURES = ("data:image/png;base64,", "data:image/jpeg;base64,")


@dataclass(frozen=True)
class Table:
    """Rows with the same keys, for people; `raw` are the same as numbers for CSV and LaTeX where they
    differ; `links` are where the first cell of each row leads ("" for nowhere).
    """

    rows: list[dict[str, Any]]
    caption: str = ""
    # an own list for each table, and not one for all
    raw: list[dict[str, Any]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chart:
    """An SVG drawing, and what it shows in a sentence."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Words:
    """A sentence or two; `code` is something to copy; what `warns` stands out."""

    text: str = ""
    code: str = ""
    warns: bool = False


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Table | Chart | Words]


def cut_text(value: Any, most: int) -> str:
    """A value on one line of at most so many characters."""
    # white space of all kinds, or one text would tear a table's line
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def is_long(value: Any) -> bool:
    """Whether a cell's text goes on in further lines; shorter ones are torn nowhere."""
    return not is_picture(value) and len(str(value)) > 28


def is_picture(value: Any) -> bool:
    """Whether a cell is a picture that stands in the text itself, of a kind that holds no script."""
    return isinstance(value, str) and value.startswith(PICTURES)
