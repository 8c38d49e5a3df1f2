"""Files of rows → a data set that knows where in its file each row stands. Knows formats; knows no columns by
name but SQuAD's.

Text files are read here rather than by `datasets`, whose readers take one encoding and one delimiter, call
the words NA and None missing, and give up on a row of another type without saying which. What was read is
kept as Arrow beside `datasets`' own cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, concatenate_datasets

from finetune.data import conll, records
from finetune.data.cells import lie_media, with_json
from finetune.data.places import FOLDER, PLACE
from finetune.data.tables import COMPRESSED, content, decoded, delimited, ending
from finetune.data.ts import read_ts
from finetune.errors import InputError

logger = logging.getLogger(__name__)

FILE_KINDS = {
    "parquet": "parquet", "arrow": "arrow", "csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json",
    "ndjson": "json", "txt": "text",
    "text": "text", "conll": "conll", "conllu": "conll", "iob": "conll", "iob2": "conll", "bio": "conll",
    "xlsx": "excel", "ts": "ts",
}  # fmt: skip
ARCHIVES = {"zip", "tar", "tgz", "7z", "rar"}  # of which several files may come out
DOCUMENTS = ("lines", "paragraphs", "files")
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Reading:
    """How text files are read.

    Attributes:
        documents: what is a row of a .txt file: its lines, its paragraphs (parted by blank lines), or all of
            it.
        encoding: of text files, where it can't be told.
    """

    documents: str = "lines"
    encoding: str | None = None


def kind_of(file: Path) -> str | None:
    """How a file is read, by the ending of its name; None where it isn't."""
    return FILE_KINDS.get(ending(file))


def other_kind(file: Path) -> str:
    """What to do with a file that is none of these kinds, for messages."""
    if set(file.name.lower().split(".")[1:]) & ARCHIVES:
        return "unpack the archive, and name what was in it"
    return f"wanted one of: {endings()}"


def endings() -> str:
    """The endings that are read, for messages."""
    return f"{', '.join(sorted(FILE_KINDS))} (also {', '.join(f'.{one}' for one in sorted(COMPRESSED))})"


def read_files(files: Sequence[Path], reading: Reading) -> Dataset:
    """Files of one split, one after another.

    Raises:
        InputError: a file that can't be read, has no rows, or columns of other types than the first one's.
    """
    parts = [_read_file(file, reading, alone=len(files) == 1) for file in files]
    # a table beside pictures or sounds names them from its own folder, as `train/metadata.csv` does
    if any(lie_media(folder) for folder in {file.parent for file in files}):
        parts = [
            part.add_column(FOLDER, [str(file.parent)] * len(part))
            for file, part in zip(files, parts, strict=True)
        ]
    try:
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        names = ", ".join(map(str, files))
        raise InputError(
            f"{names} have columns of different kinds: {error}. Name those of one kind by --data_files"
        ) from error


def _read_file(file: Path, reading: Reading, alone: bool) -> Dataset:
    kind = kind_of(file)
    if kind is None:
        raise InputError(f"{file} ends in '{file.suffix}'; {other_kind(file)}")
    name = "" if alone else f" of {file.name}"
    if kind in ("parquet", "arrow"):
        rows = _foreign(file, kind)
        # binary files have rows and no lines
        return rows.add_column(PLACE, [f"row {number}{name}" for number in range(len(rows))])
    # parsing text is slow in Python: it is done once for each file and way of reading
    return _kept(file, reading, name, lambda: _read_text(file, kind, reading, name))


def _foreign(file: Path, kind: str) -> Dataset:
    """A file that `datasets` reads exactly."""
    try:
        return datasets.load_dataset(kind, data_files=[str(file)], split="train")
    except Exception as error:  # whatever a reader says of a damaged file, with the name of the file
        cause = error.__cause__ or error
        # what `datasets` says of a file of 0 rows, which is no damage
        if "corresponds to no data" in str(error):
            raise InputError(f"{file} has 0 rows; name files with rows by --data_files") from error
        raise InputError(
            f"Cannot read {file}: {type(cause).__name__}: {cause}. Mend it or name others by --data_files"
        ) from error


def _kept(file: Path, reading: Reading, name: str, read: Callable[[], Dataset]) -> Dataset:
    """What `read` gives, from the cache where the file, the options and the code that reads are old ones."""
    # size and time instead of a hash: a large file would be read twice
    about = file.stat()
    told = [str(file.resolve()), about.st_size, about.st_mtime_ns, repr(reading), name, code()]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rows" / key
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    rows = read()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside its goal, since a rename is atomic within one file system alone: nobody sees half a folder
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    with without_bars():
        rows.save_to_disk(str(scratch / key))
    with suppress(OSError):  # another process was faster, with the same rows
        (scratch / key).rename(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    # read back rather than handed on: memory-mapped, in the first run as in later ones
    return datasets.load_from_disk(str(folder))


@contextmanager
def without_bars() -> Iterator[None]:
    """Steps of a moment, whose bars would be a wall of lines."""
    # a user who has them off keeps them off
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def code() -> str:
    """Hash of the modules that read: what an older version has read is not what this one reads."""
    names = ("files", "tables", "records", "conll", "ts")
    return hashlib.sha256(
        b"".join(Path(__file__).with_name(f"{n}.py").read_bytes() for n in names)
    ).hexdigest()


def _read_text(file: Path, kind: str, reading: Reading, name: str) -> Dataset:
    lines: list[int] | None = None
    if kind == "excel":
        columns, lines = _sheet(file)
    else:
        text = decoded(content(file), str(file), reading.encoding)
        if kind == "csv":
            tabs = ending(file) == "tsv"
            # some CoNLL files are published as .tsv: sentences parted by blank lines have no header
            if tabs and "\n\n" in text and conll.is_conll(text):
                columns, lines = conll.read_conll(text, str(file))
            else:
                columns, lines = delimited(text, str(file), ("\t",) if tabs else (",", ";", "\t", "|"))
        elif kind == "json":
            columns, lines = records.read_records(text, file)
        elif kind == "ts":
            columns, lines = read_ts(text, str(file))
        # .txt files may hold sentences, a word a line
        elif kind == "conll" or conll.is_conll(text):
            columns, lines = conll.read_conll(text, str(file))
        else:
            columns, lines = _documents(text, reading.documents)
    size = len(next(iter(columns.values()), []))
    if size == 0:
        raise InputError(f"{file} has 0 rows; name files with rows by --data_files")
    places = [f"row {row}" + (f" (line {lines[row]})" if lines else "") + name for row in range(size)]
    return as_dataset({**columns, PLACE: places}, str(file))


def as_dataset(columns: Columns, name: str) -> Dataset:
    """Columns of Python values as a data set; cells of no single type are kept as JSON keeps them.

    Raises:
        InputError: a column that mixes texts with numbers or lists, with the first cell that differs.
    """
    for column, values in columns.items():
        _check_mixture(column, values, columns, name)
    # Arrow has one type a column; what has none goes through JSON
    free = {column for column, values in columns.items() if _is_free(values)}
    rows = Dataset.from_dict({column: values for column, values in columns.items() if column not in free})
    # in the order of the file, restored below
    for column in (column for column in columns if column in free):
        rows = with_json(rows, column, columns[column])
    return rows.select_columns(list(columns))


def _is_free(values: list[Any]) -> bool:
    """Whether records in the cells differ in their keys or kinds: Arrow would give all of them the
    keys of any, and null for the rest.
    """
    inner = [
        one
        for value in values
        if value is not None
        for one in (value if isinstance(value, list) else [value])
    ]
    return any(isinstance(one, (dict, list)) for one in inner) and (
        len({_form(one) for one in inner if one is not None}) > 1
        or any(_is_mixed(one) for one in inner if isinstance(one, list))
        or _clash(inner)
    )


def _is_mixed(value: list[Any]) -> bool:
    """Whether a list holds texts beside numbers, as [3, 11, "LOC"] does: Arrow has no type for it."""
    return len({_kind(one) for one in value if one is not None}) > 1


def _form(value: Any) -> str:
    """The keys and kinds of a cell, at any depth."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_form(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + "|".join(sorted({_form(one) for one in value})) + "]"
    return (
        "" if isinstance(value, (str, int, float)) and not isinstance(value, bool) else type(value).__name__
    )


def _clash(records: list[Any]) -> bool:
    """Whether a key holds texts and numbers, in several records or in a list, for which Arrow has no type."""
    kinds: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.items() if isinstance(record, dict) else ():
            held = value if isinstance(value, list) else [value]
            kinds.setdefault(key, set()).update(map(_kind, held))
    return any({"text", "number"} <= found for found in kinds.values())


def _check_mixture(column: str, values: list[Any], columns: Columns, name: str) -> None:
    kinds: dict[str, int] = {}
    for place, value in enumerate(values):
        if value is not None:
            # the first cell of each kind, for the message
            kinds.setdefault(_kind(value), place)
    if len(kinds) < 2:
        _check_lists(column, values, columns, name)
        return
    (first, one), (second, other) = list(kinds.items())[:2]
    places = columns.get(PLACE) or [f"row {place}" for place in range(len(values))]
    raise InputError(
        f"The column '{column}' of {name} holds a {first} in {places[one]} ({values[one]!r:.60}) and a "
        f"{second} in {places[other]} ({values[other]!r:.60}); wanted one kind. Mend the rows"
    )


def _check_lists(column: str, values: list[Any], columns: Columns, name: str) -> None:
    """Lists of labels or words hold one kind each, in all rows the same."""
    kinds: dict[str, tuple[int, Any]] = {}
    for place, value in enumerate(values):
        for one in value if isinstance(value, list) else ():
            if one is not None:
                kinds.setdefault(_kind(one), (place, one))
    # mixtures with lists or mappings are free cells, kept as JSON
    if len(kinds) > 1 and set(kinds) & {"text", "number", "truth value"} == set(kinds):
        (first, (one, what)), (second, (other, more)) = list(kinds.items())[:2]
        places = columns.get(PLACE) or [f"row {place}" for place in range(len(values))]
        raise InputError(
            f"The lists of the column '{column}' of {name} hold a {first} in {places[one]} ({what!r:.60}) "
            "and a "
            f"{second} in {places[other]} ({more!r:.60}); wanted one kind. Mend the rows"
        )


def _kind(value: Any) -> str:
    # first, as a bool is an int too
    if isinstance(value, bool):
        return "truth value"
    return {str: "text", int: "number", float: "number", list: "list", dict: "mapping"}.get(
        type(value), type(value).__name__
    )


def _documents(text: str, documents: str) -> tuple[Columns, list[int]]:
    """A text file's rows: lines (as they stand, blank ones too), paragraphs, or the whole."""
    # not splitlines(), which also parts at form feeds and Unicode separators
    lines = re.split(r"\r\n|\n|\r", text)
    if documents == "lines":
        # behind the last line break stands no line
        lines = lines[:-1] if lines and not lines[-1] else lines
        return {"text": lines}, list(range(1, len(lines) + 1))
    if documents == "files":
        return {"text": ["\n".join(lines).strip("\n")]}, [1]
    texts, starts, held = [], [], []
    # a blank line at the end closes the last paragraph
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            held.append(line)
        elif held:
            texts.append("\n".join(held))
            starts.append(number - len(held))
            held = []
    return {"text": texts}, starts


def _sheet(file: Path) -> tuple[Columns, list[int]]:
    """The first sheet of an Excel file that holds anything, its first row as header."""
    try:
        import openpyxl
    except ImportError as error:
        raise InputError("An .xlsx file wants the package openpyxl: pip install openpyxl") from error
    try:
        # values, not formulas; rows as they are needed
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # whatever a damaged archive makes of it
        raise InputError(f"Cannot read {file}: {type(error).__name__}: {error}") from error
    filled = [
        sheet
        for sheet in book.worksheets
        if sheet.max_row and any(any(r) for r in sheet.iter_rows(max_row=2, values_only=True))
    ]
    if not filled:
        return {}, []
    if len(filled) > 1:
        logger.warning(
            "%s: the sheet '%s' is read; not used: %s",
            file,
            filled[0].title,
            ", ".join(s.title for s in filled[1:]),
        )
    records = [
        (number, [None if cell in ("", None) else cell for cell in row])
        for number, row in enumerate(filled[0].iter_rows(values_only=True), start=1)
    ]
    # blank rows are skipped, the numbers of the others stay the sheet's
    (_, header), *rows = [(number, row) for number, row in records if any(cell is not None for cell in row)]
    names = [f"column_{place}" if cell is None else str(cell).strip() for place, cell in enumerate(header)]
    # columns without a header are kept only if they hold something: formatting makes sheets wider than their
    # rows
    used = [
        place
        for place, name in enumerate(names)
        if header[place] is not None or any(row[place] is not None for _, row in rows)
    ]
    columns = {names[place]: [_cell(row[place]) for _, row in rows] for place in used}
    return columns, [number for number, _ in rows]


def _cell(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    # dates as texts, as in files of text
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
