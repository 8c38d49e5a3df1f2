"""Rows that are read as they are needed, where all of them would be too many at once. Knows files and the
hub; knows no columns.

Of text files only what stands in one line or one record is ever held, so that a file of any size takes the
same memory. What can't be told from one record (which cells are numbers) is told from the first thousand.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import datasets
from datasets import IterableDataset

from finetune.data.corpora import CORPORA
from finetune.data.files import Reading, kind_of, read_files
from finetune.data.folders import files_of, split_of
from finetune.data.places import PLACE
from finetune.data.records import shape_of, strict_json
from finetune.data.tables import dialect, ending, guessed, is_header, skipping_mark, typed, zst_stream
from finetune.errors import InputError

ROWS_FIRST = 256  # rows that say what each column is for, before anything is trained
HEAD = 1000  # records that tell a table's delimiter and its columns of numbers
SNIFFED = 200_000  # characters of the beginning that are looked at
OPENED: dict[str, Callable[[Path], Any]] = {
    "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open, "zst": zst_stream, "zstd": zst_stream,
}  # fmt: skip
Row = dict[str, Any]


@dataclass
class StreamingArguments:
    """Training rows that are too many to read at once; such a run needs --max_steps."""

    streaming: bool = field(
        default=False,
        metadata={"help": "Read training rows as they are needed, instead of all before the start."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Rows of a stream to draw the next one from."}
    )


def open_stream(
    name: str,
    config: str | None,
    data_files: list[str] | None,
    split: str,
    reading: Reading | None = None,
) -> IterableDataset:
    """One split, read as it is needed: lines of JSON, tables, texts and Parquet from local files, or the hub.

    Rows have the column `__place__` where they come from text files.

    Raises:
        InputError: nothing there under that name, no such split, or a file that can only be read whole.
    """
    if name in CORPORA and not data_files:
        return split_of(CORPORA[name](), split, "--train_split").to_iterable_dataset()
    files = files_of(Path(name).expanduser(), data_files)
    if files and split not in files:
        raise InputError(f"No split '{split}' in {name}; there are: {', '.join(files)}. Set --train_split")
    # Parquet is read by `datasets`, which takes row groups one at a time
    if files and kind_of(files[split][0]) != "parquet":
        reading = reading or Reading("")
        # chosen before the first row: a file that can't be streamed is an error now, not after hours
        readers = [_reader(file, reading) for file in files[split]]
        return IterableDataset.from_generator(
            _rows, gen_kwargs={"files": files[split], "readers": readers, "reading": reading}
        )
    try:
        if not files:
            return datasets.load_dataset(name, config, split=split, streaming=True)
        # one list of files is always `train` to the reader, whatever our split is called
        return datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files[split]], split="train", streaming=True
        )
    except Exception as error:  # whatever a reader or the hub says
        raise InputError(
            f"Cannot stream '{name}': {type(error).__name__}: {error}. Set --dataset_name or --mixture"
        ) from error


def _rows(
    files: Sequence[Path], readers: Sequence[Callable[[Path, Reading], Iterator[Row]]], reading: Reading
) -> Iterator[Row]:
    for file, read in zip(files, readers, strict=True):
        name = "" if len(files) == 1 else f" of {file.name}"
        for row in read(file, reading):
            yield row | {PLACE: row[PLACE] + name}


def _reader(file: Path, reading: Reading) -> Callable[[Path, Reading], Iterator[Row]]:
    """What reads a file record by record.

    Raises:
        InputError: nothing does.
    """
    kind = kind_of(file)
    if kind == "text":
        # paragraphs and whole documents end somewhere unknown: they are held file by file
        return _lines if reading.documents in ("", "lines") else _whole
    if kind == "csv":
        return _records
    # a .json file may be lines or one list; only the first can be read piece by piece
    if kind == "json" and (ending(file) != "json" or _is_lines(file, reading)):
        return _json_lines
    raise InputError(
        f"{file} can only be read whole; --streaming reads .jsonl, .csv, .tsv, .txt and .parquet. Leave "
        "--streaming out, or write the rows as JSON lines"
    )


def _opened(file: Path, reading: Reading) -> IO[str]:
    """A file's text, unpacked and decoded as it is read."""
    unpack = OPENED.get(file.suffix.lower().lstrip("."))
    try:
        with unpack(file) if unpack else file.open("rb") as begun:
            # opened twice: a compressed stream can't be put back to its beginning
            start = begun.read(SNIFFED)
        raw = unpack(file) if unpack else file.open("rb")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"Cannot read {file}: {type(error).__name__}: {error}. Mend it") from error
    # newline="": the csv reader wants line ends as they are, within quotes too
    return io.TextIOWrapper(raw, encoding=skipping_mark(reading.encoding or guessed(start)), newline="")


def _text(file: Path, reading: Reading) -> Iterator[str]:
    """Lines of a file, with their ends."""
    try:
        with _opened(file, reading) as text:
            yield from text
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(
            f"Cannot read {file} as {reading.encoding or 'UTF-8'}: {error}. Set --encoding"
        ) from error
    # a damaged archive is only noticed while it is read
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"Cannot read {file}: {type(error).__name__}: {error}. Mend it") from error


def _is_lines(file: Path, reading: Reading) -> bool:
    """Whether a .json file holds a record a line."""
    # a list of records over several lines has a first line that is no JSON
    first = next((line for line in _text(file, reading) if line.strip()), "")
    try:
        record = json.loads(first)
        return isinstance(record, dict) and shape_of(record)[0] == "row"
    except json.JSONDecodeError:
        return False


def _json_lines(file: Path, reading: Reading) -> Iterator[Row]:
    row = 0
    for number, line in enumerate(_text(file, reading), start=1):
        if not line.strip():
            continue
        try:
            record = strict_json(line)
        except json.JSONDecodeError as error:
            raise InputError(f"Cannot read {file}: line {number}: {error.msg}. Mend it") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{file}, line {number} holds {record!r:.40}; wanted a record with named columns"
            )
        yield record | {PLACE: f"row {row} (line {number})"}
        # rows are counted apart from lines, of which blank ones hold none
        row += 1


def _lines(file: Path, reading: Reading) -> Iterator[Row]:
    for number, line in enumerate(_text(file, reading)):
        # blank lines stay rows, as in reading whole files
        yield {"text": line.rstrip("\r\n"), PLACE: f"row {number} (line {number + 1})"}


def _whole(file: Path, reading: Reading) -> Iterator[Row]:
    """A file of paragraphs, or one that is a document: one file at a time."""
    yield from read_files([file], reading)


def _records(file: Path, reading: Reading) -> Iterator[Row]:
    """Records of a table; columns of numbers are those whose first cells are."""
    with _opened(file, reading) as text:
        start = text.read(SNIFFED)
    delimiter, quoting = dialect(start, ("\t",) if ending(file) == "tsv" else (",", ";", "\t", "|"))
    csv.field_size_limit(sys.maxsize)  # a long text is no fault
    cells = csv.reader(_text(file, reading), delimiter=delimiter, quoting=quoting)
    # an unnamed column (an index that pandas wrote) gets a name
    header = [cell.strip() or f"column_{place}" for place, cell in enumerate(next(cells, []))]
    if len(set(header)) < len(header):
        twice = next(cell for cell in header if header.count(cell) > 1)
        raise InputError(f"{file} has two columns named '{twice}'; rename one")
    # one generator for head and rest: chained below, no record is read twice
    filled = (
        record
        for record in _numbered(cells)
        # as in reading whole files, where the header's repetitions are counted too
        if any(cell.strip() for cell in record[1]) and not is_header(record[1], header)
    )
    head = list(itertools.islice(filled, HEAD))
    # before kinds are told: a record that is too wide shifts cells into columns of another kind
    for line, record in head:
        _check_width(file, header, line, record)
    # a column of numbers in the head stays one; a later word there is left a text by `typed`
    kinds = [
        any(not isinstance(cell, (str, type(None))) for cell in typed([_cell(one, n) for _, one in head]))
        for n in range(len(header))
    ]
    for row, (line, record) in enumerate(itertools.chain(head, filled)):
        _check_width(file, header, line, record)
        found = (
            typed([_cell(record, n)])[0] if number else _cell(record, n) or None
            for n, number in enumerate(kinds)
        )
        yield dict(zip(header, found, strict=True)) | {PLACE: f"row {row} (line {line})"}


def _numbered(cells: Any) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins at."""
    # the reader counts lines read: a record with line breaks in it begins behind the last line of the one
    # before
    line = cells.line_num + 1
    for record in cells:
        yield line, record
        line = cells.line_num + 1


def _cell(record: Sequence[str], place: int) -> str:
    return record[place] if place < len(record) else ""


def _check_width(file: Path, header: Sequence[str], line: int, record: Sequence[str]) -> None:
    # empty cells beyond the header are trailing delimiters, no fault
    if any(record[len(header) :]):
        raise InputError(
            f"{file}: line {line} has {len(record)} cells, the header {len(header)}. Put texts that hold the "
            "delimiter into double quotes"
        )
