"""What each column of some rows is used for, said; a column with text that nothing reads stops the run. Knows
values alone.

What holds text is told from the values: sentences and words that differ from row to row. Numbers, dates,
addresses, identifiers and names of a few kinds (a category, a source, a language) hold none, so that nobody
has to list them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from email.utils import parsedate_to_datetime
from typing import Any

from datasets import ClassLabel, Dataset, Translation

from finetune.data.places import columns_of
from finetune.errors import InputError

Used = dict[str, list[str]]  # what a run makes of columns (text, label, system, ...) → their names

NUL = "\x00"  # between texts: what is looked for never stands across two
LOOKED_AT = 2000  # rows, evenly over all of them
KIND_WORDS, KIND_LETTERS = 4, 48  # the longest name of a kind
ADDRESS = re.compile(r"\S*(://|www\.|@)\S+|[\w./\\-]*[/\\][\w./\\-]*")
# what describes a row, where its values are short; any other name is as good for a text
ABOUT = {
    "id", "idx", "index", "key", "uid", "uuid", "guid", "hash", "source", "category", "categories", "dataset",
    "subset", "split", "domain", "lang",
    "language", "locale", "type", "kind", "task", "task_type", "task_name", "subject", "level", "difficulty",
    "quality", "model", "model_name",
    "generator", "license", "licence", "version", "author", "annotator", "worker", "user_id", "date",
    "timestamp", "created_at", "url", "link",
    "path", "file", "filename", "file_name", "origin", "genre", "style", "gender", "country", "tag", "tags",
    "status", "__index_level_0__",
}  # fmt: skip


def say(text: str) -> None:
    """Print on the main process alone."""
    # the launcher's variable, as no process group exists yet when rows are read
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def holds_text(values: Sequence[Any], name: str = "") -> bool:
    """Whether a column says something in words of its own.

    Args:
        values: cells, of any kind; of lists and records all texts inside count.
        name: the column's, which counts where short values could be either.
    """
    cells = [text for value in values for text in [" ".join(cell_texts(value))] if text.strip()]
    words = {word for cell in cells for word in cell.split()}
    lists = any(isinstance(value, list) for value in values)
    cells = [cell.strip() for cell in cells if not _is_code(cell.strip())]
    if not cells:
        return False
    if lists and len(words) <= max(2, min(100, len(cells) // 2)) and all(len(word) <= 12 for word in words):
        return False  # tags of words
    distinct, longest = set(cells), max(len(cell.split()) for cell in cells)
    # one long cell is enough: names of kinds are short in every row
    short = longest <= KIND_WORDS and max(map(len, distinct)) <= KIND_LETTERS
    if not short:
        return True
    if name.rpartition(".")[2].lower() in ABOUT:
        # under a name that describes, short values must differ in nearly every row to count as texts
        return len(distinct) > max(1, len(cells) * (1 if longest == 1 else 0.5))
    # else kinds repeat: single words are a text if more than half differ, phrases if a fifth do
    return len(distinct) > max(1, len(cells) / (2 if longest == 1 else 5))


def cell_texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from cell_texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from cell_texts(inner)


def _is_code(cell: str) -> bool:
    """Whether a cell is a number, a date, an address or an identifier."""
    if not any(letter.isalpha() for letter in cell) or ADDRESS.fullmatch(cell):
        return True
    if not re.search(r"\s", cell):
        # one word with a digit or an underscore is an identifier; `great` is a word
        return bool(re.search(r"[\d_]", cell))
    try:
        parsedate_to_datetime(cell)
    except (ValueError, TypeError, IndexError):
        return bool(
            re.fullmatch(
                r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}[ T][\d:.,]+\s*([AaPp][Mm]|Z|UTC|[+-]\d\d:?\d\d)?", cell
            )
        )
    return True


def unread(
    rows: Dataset,
    used: Used,
    texts: Callable[[dict[str, Any]], str],
    among: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, str]:
    """Columns that nothing reads → what they are: `text`, `again` (their text stands in what is read), or
    nothing.

    Args:
        texts: what is read of a row, parted by NUL.
        among: further values that nothing reads, as those under a message's key.
    """
    named = {name for columns in used.values() for name in columns}
    # a dotted name stands for a part of a column of lists, whose rest is then read too
    outer = {name.partition(".")[0] for name in named if "." in name} & set(rows.column_names)
    taken = named | {name for name in outer if not _holds_records(rows, name)}
    found = {}
    for column in columns_of(rows):
        if column in taken:
            continue
        feature = rows.features[column]
        places = [] if _is_no_text(feature) else _filled(rows[column][:])
        values: Sequence[Any] = [_rest(rows[place][column], column, named) for place in places]
        if not holds_text(values, column):
            found[column] = ""
        else:
            read = [
                NUL.join(
                    [texts(row), *cell_texts([row[name] for name in sorted(taken & set(rows.column_names))])]
                )
                for row in map(rows.__getitem__, places)
            ]
            asked = [_asked(rows[place], used.get("text", []), texts) for place in places]
            found[column] = "again" if _again(values, read, asked) else "text"
    for name, values in (among or {}).items():
        found[name] = "text" if holds_text(list(values), name) else ""
    return found


def _holds_records(rows: Dataset, column: str) -> bool:
    return isinstance(next((cell for cell in rows[column] if cell), None), dict)


def _rest(cell: Any, column: str, named: Set[str]) -> Any:
    """What a cell holds but for what is read of it by dotted names."""
    inside = [name.removeprefix(f"{column}.") for name in named if name.startswith(f"{column}.")]
    if not inside or not isinstance(cell, dict):
        return cell
    parts = {name.partition(".")[0] for name in inside}
    return {key: one for key, one in cell.items() if key not in parts}


def _filled(values: Sequence[Any]) -> list[int]:
    """Places of cells that hold something: evenly over all of them, since published files are often sorted,
    and of these alone, since a column may be empty in all rows but a few.
    """
    filled = [place for place, value in enumerate(values) if value not in (None, "", [], {})]
    return filled[:: max(1, len(filled) // LOOKED_AT)]


def _is_no_text(feature: Any) -> bool:
    # a translation's other languages say the same; pictures and sounds have no cells that could be looked at
    return isinstance(feature, (ClassLabel, Translation)) or type(feature).__name__ in (
        "Image",
        "Audio",
        "Video",
        "Pdf",
    )


def _asked(row: dict[str, Any], columns: Sequence[str], texts: Callable[[dict[str, Any]], str]) -> list[str]:
    """The texts of a row's question; of a chat, or where no column is one, all that is read."""
    plain = [row[name] for name in columns if isinstance(row.get(name), str)]
    return [_bare(text) for text in plain or texts(row).split(NUL) if text.strip()]


def _again(values: Sequence[Any], texts: Sequence[str], asked: Sequence[Sequence[str]]) -> bool:
    """Whether every value stands in what is read of its row, or holds its whole question, and perhaps
    its answer, in a frame that is the same for all rows (Alpaca's `text`).
    """
    pairs = [(list(cell_texts(value)), _bare(text)) for value, text in zip(values, texts, strict=True)]
    # the cheap test first: every value stands in what is read
    if all(all(_bare(part) in text for part in parts) for parts, text in pairs):
        return True
    # where no text is read, as of pictures, none stands in a column again
    if not all(asked):
        return False
    whole = [_bare(" ".join(cell_texts(value))) for value in values]
    if not all(text in value for value, one in zip(whole, asked, strict=True) for text in one):
        return False
    frames = set()
    for parts, text in pairs:
        rest = _bare(" ".join(parts))
        # longest first: a short answer may stand inside the question and would leave holes in it
        for line in sorted(set(text.split(NUL)), key=len, reverse=True):
            rest = rest.replace(line.strip(), "") if line.strip() else rest
        frames.add(_bare(rest))
    # two frames, as Alpaca has with an input and without; of so few rows as two any text would pass
    return len(frames) <= 2 < len(pairs)


def _bare(text: str) -> str:
    # all blanks but NUL, which parts texts and must stay
    return re.sub(r"[^\S\x00]+", " ", text).strip()


def account(
    used: Used,
    unused: Mapping[str, str],
    where: str,
    *,
    lenient: bool = False,
    quiet: bool = False,
    hint: str = "",
) -> None:
    """Say what each column is for.

    Raises:
        InputError: one holds a text that nothing reads, unless `lenient`, as built-in corpora are, which
            serve many tasks.
    """
    lost = [column for column, what in unused.items() if what == "text"]
    if lost and not lenient:
        named, flags = ", ".join(f"'{column}'" for column in lost), " ".join(lost)
        raise InputError(
            f"{where}: {'the columns' if len(lost) > 1 else 'the column'} {named} "
            f"hold{'' if len(lost) > 1 else 's'} text that nothing reads "
            f"({said(used)}). Set --ignore_columns {flags} to leave it "
            f"out{hint or ', or name the columns to read (--text_column, --label_column, --layout)'}"
        )
    lines = [f"{where}:", *(f"  {role} ← {' + '.join(columns)}" for role, columns in used.items() if columns)]
    again = [column for column, what in unused.items() if what == "again"]
    rest = [column for column in unused if column not in again]
    lines += [f"  not used: {', '.join(rest)}"] if rest else []
    lines += [f"  not used, as their texts are read already: {', '.join(again)}"] if again else []
    if not quiet:
        say("\n".join(lines))


def said(used: Used) -> str:
    """`text ← instruction + input; label ← output`."""
    return "; ".join(f"{role} ← {' + '.join(columns)}" for role, columns in used.items() if columns)


def without(rows: Dataset, ignored: Sequence[str]) -> Dataset:
    """Rows without the columns that aren't wanted."""
    return rows.remove_columns([column for column in ignored if column in columns_of(rows)])


def check_ignored(ignored: Sequence[str], there: Iterable[str], name: str) -> None:
    """Every column that isn't wanted is there.

    Raises:
        InputError: one is not.
    """
    known = list(dict.fromkeys(there))
    for column in ignored:
        if column not in known and column.partition(".")[0] not in known:
            near = difflib.get_close_matches(column, known, n=1)
            raise InputError(
                f"No column '{column}' in {name}, named by --ignore_columns; it has {', '.join(known)}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
