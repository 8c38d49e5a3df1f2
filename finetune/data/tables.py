"""Bytes of a file → text, and text with delimiters → records with the lines they begin at. Knows encodings;
knows no columns.

What Python's csv and json modules leave to the reader is settled here once: which encoding, which delimiter,
whether quotes mean anything, what an empty cell is, and which cells are numbers.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import logging
import lzma
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import InputError

logger = logging.getLogger(__name__)

DELIMITERS = (",", ";", "\t", "|")
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# what other programs' files begin with, whatever their names say
FOREIGN = (
    (b"PK\x03\x04", "a zip archive or an Excel file", "Name it .xlsx, or unpack it"),
    (b"\x1f\x8b", "packed by gzip", "Let its name end in .gz, as rows.csv.gz"),
    (b"\xd0\xcf\x11\xe0", "an Excel file of the old kind", "Save it as .xlsx or .csv"),
    (b"PAR1", "a Parquet file", "Let its name end in .parquet"),
    (b"%PDF", "a PDF", "Save its table as .csv"),
)
WHOLE, DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})"), re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][-+]?\d+)?")
FOR_EXCEL = re.compile(r"sep=(.)\r?\n")  # a first line that names the delimiter
LOOKED_AT = 200  # records that tell the delimiter


def zst_stream(source: Path | io.BytesIO) -> io.BufferedReader:
    """A zstd file, or its bytes, unpacked as they are read.

    Raises:
        InputError: the package that unpacks is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise InputError("A .zst file wants the package zstandard: pip install zstandard") from error
    packed = source.open("rb") if isinstance(source, Path) else source
    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True))


def _unzstd(packed: bytes) -> bytes:
    with zst_stream(io.BytesIO(packed)) as stream:
        return stream.read()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress, "zst": _unzstd, "zstd": _unzstd,
}  # fmt: skip


def ending(file: Path) -> str:
    """What a file's name says of its content, compression aside: `jsonl` of rows.jsonl.gz."""
    parts = file.name.lower().split(".")
    # `rows.gz` alone says nothing of its content
    if len(parts) > 2 and parts[-1] in COMPRESSED:
        parts.pop()
    return parts[-1] if len(parts) > 1 else ""


def content(file: Path) -> bytes:
    """A file's bytes, unpacked where its name says that they are packed.

    Raises:
        InputError: it can't be read or unpacked.
    """
    unpack = COMPRESSED.get(file.suffix.lower().lstrip("."))
    try:
        return unpack(file.read_bytes()) if unpack else file.read_bytes()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(
            f"Cannot read {file}: {type(error).__name__}: {error}. Mend it or name others"
        ) from error


def skipping_mark(encoding: str) -> str:
    """The name of an encoding that leaves a mark at the file's beginning out of the first column's name."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


def decoded(data: bytes, name: str, encoding: str | None = None) -> str:
    """Bytes as text: by the encoding that is named, by a byte order mark, as UTF-8, or as what fits the bytes
    best.

    Raises:
        InputError: bytes that the named encoding doesn't have, an encoding that there isn't, or no text.
    """
    for mark, what, mend in FOREIGN:
        if data.startswith(mark):
            raise InputError(f"{name} is {what}, whatever its name says. {mend}")
    if encoding is not None:
        try:
            return data.decode(skipping_mark(encoding))
        except (UnicodeDecodeError, LookupError) as error:
            raise InputError(f"Cannot read {name} by --encoding {encoding}: {error}") from error
    try:
        return data.decode(guessed(data))
    except UnicodeDecodeError:
        _check_one_encoding(data, name)
        text, codec = _legacy(data)
    logger.warning("%s is no UTF-8: read as %s (--encoding names another)", name, codec)
    return text


def guessed(data: bytes) -> str:
    """The encoding that the beginning of some bytes speaks for: a byte order mark's, UTF-16, else UTF-8."""
    return next((codec for mark, codec in MARKS if data.startswith(mark)), None) or _without_mark(data)


def _check_one_encoding(data: bytes, name: str) -> None:
    """Bytes that are no UTF-8 are none anywhere.

    Raises:
        InputError: some lines are UTF-8 and some are not: files of two encodings were put together.
    """
    foreign = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if not line.isascii()]
    wrong = [number for number, line in foreign if not _is_utf8(line)]
    # a line of an older encoding may look like UTF-8 by chance, a quarter of them doesn't
    if len(foreign) - len(wrong) >= max(1, len(foreign) / 4):
        raise InputError(
            f"{name} is UTF-8 in some lines and not in others ({len(wrong)} of {len(foreign)} with letters "
            f"beyond ASCII; the first is line {wrong[0]}). Save it in one encoding, or name one by --encoding"
        )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_mark(data: bytes) -> str:
    """UTF-8, or UTF-16 where 0 stands among the bytes: blanks, line breaks and delimiters have one there, in
    any language, and no text in another encoding has.
    """
    start = data[:20_000]
    # the high byte of Latin letters is 0: it comes first or second
    even, odd = start[::2].count(0), start[1::2].count(0)
    if (even or odd) and not _is_utf8_with_zeros(start, even + odd):
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def _is_utf8_with_zeros(start: bytes, zeros: int) -> bool:
    """Whether a few zeros stand in a text: in UTF-16 half of Latin bytes are 0, and of other letters' bytes
    some are signs that no text has.
    """
    rest = start.replace(b"\0", b"")
    if zeros > len(start) / 4 or set(rest) & (set(range(32)) - set(b"\t\n\r\f")):
        return False
    try:
        # not to its end: the beginning may part a letter
        codecs.getincrementaldecoder("utf-8")().decode(rest)
    except UnicodeDecodeError:
        return False
    return True


def _legacy(data: bytes) -> tuple[str, str]:
    """Text in an encoding of before Unicode. Western Europe's, unless most letters would be foreign
    ones there.
    """
    # in Western texts few letters have accents; in Cyrillic or Greek nearly all bytes are high
    letters = [byte for byte in data if byte > 127 or chr(byte).isalpha()]
    if sum(byte > 127 for byte in letters) > 0.4 * len(letters):
        from charset_normalizer import from_bytes

        best = from_bytes(data).best()
        if best is not None:
            return str(best), best.encoding
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        # never fails: cp1252 leaves five bytes undefined
        return data.decode("latin-1"), "latin-1"


def delimited(
    text: str, name: str, delimiters: Sequence[str] = DELIMITERS, wide: list[int] | None = None
) -> tuple[dict[str, list], list[int]]:
    """Text with a header line → columns, and the line that each record begins at (the header's is 1).

    Empty cells are missing; words such as NA, None and null are words. A column is of numbers where all its
    cells are. Records with more cells than the header are left out where `wide` takes their lines.

    Raises:
        InputError: a header with a name twice, or records with more cells than the header.
    """
    told = FOR_EXCEL.match(text)
    if told:
        text, delimiters = text[told.end() :], (told[1],)
    delimiter, quoting = dialect(text, delimiters)
    records, lines = _records(text, delimiter, quoting)
    lines = [line + 1 for line in lines] if told else lines
    if not records:
        return {}, []
    # a quote that is closed stands at the end of its cell, and nothing follows the last one
    if quoting == csv.QUOTE_MINIMAL and "\n" in records[-1][-1] and not text.rstrip().endswith('"'):
        raise InputError(
            f"{name}: line {lines[-1]} opens a quote that is closed nowhere, and all that follows would be "
            "one cell. Close it, or double it where it is a sign of the text"
        )
    records, lines = _without_headers(records, lines, name)
    header_line = lines[0]
    # an index that pandas wrote has no name
    header = [cell.strip() or f"column_{place}" for place, cell in enumerate(records[0])]
    twice = next((cell for cell in header if header.count(cell) > 1), None)
    if twice is not None:
        raise InputError(f"{name} has two columns named '{twice}'; rename one")
    beyond = [
        (line, len(cells)) for line, cells in zip(lines, records, strict=True) if any(cells[len(header) :])
    ]
    if beyond and wide is None:
        named = ", ".join(f"line {line} ({count})" for line, count in beyond[:5])
        raise InputError(
            f"{name}: {len(beyond)} records have more cells than the header's {len(header)}, parted by "
            f"{delimiter!r}: {named}"
            f"{', ...' if len(beyond) > 5 else ''}. "
            + (
                f"Line {header_line} begins with '#': remove what stands before the header"
                if header[0].startswith("#")
                else "Put texts that hold the delimiter into double quotes"
            )
        )
    if beyond and wide is not None:
        gone = {line for line, _ in beyond}
        wide += sorted(gone)
        kept = [(record, line) for record, line in zip(records, lines, strict=True) if line not in gone]
        records, lines = [record for record, _ in kept], [line for _, line in kept]
    cells = [record + [""] * (len(header) - len(record)) for record in records[1:]]
    return {column: typed([row[place] for row in cells]) for place, column in enumerate(header)}, lines[1:]


def _without_headers(
    records: list[list[str]], lines: list[int], name: str
) -> tuple[list[list[str]], list[int]]:
    """Records without the header's repetitions, which files that were put together have; they are counted."""
    header = [cell.strip() for cell in records[0]]
    again = [place for place, cells in enumerate(records[1:], start=1) if is_header(cells, header)]
    if not again:
        return records, lines
    logger.warning(
        "%s repeats its header in line %s: left out", name, ", ".join(str(lines[p]) for p in again[:5])
    )
    gone = set(again)
    kept = [place for place in range(len(records)) if place not in gone]
    return [records[place] for place in kept], [lines[place] for place in kept]


def is_header(cells: Sequence[str], header: Sequence[str]) -> bool:
    """Whether a record says the header again; one column of words may say its own name."""
    # the mark at a file's beginning stands before its header
    return len(header) > 1 and [cell.strip().removeprefix("\ufeff") for cell in cells] == list(header)


def dialect(text: str, delimiters: Sequence[str]) -> tuple[str, int]:
    """The delimiter by which most records have as many cells as the header; quotes mean nothing where
    that fits better.
    """
    best, choice = (-1.0, 0, 0), (delimiters[0], csv.QUOTE_MINIMAL)
    for delimiter in delimiters:
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter == "\t" else (csv.QUOTE_MINIMAL,):
            records, _ = _records(text, delimiter, quoting, LOOKED_AT)
            if not records or len(records[0]) < 2:
                continue
            # in files with tabs a quote is often a sign like any other: the text up to the next one would be
            # swallowed
            swallowed = delimiter == "\t" and any(
                "\t" in cell and "\n" in cell for row in records for cell in row
            )
            same = sum(len(row) == len(records[0]) for row in records) / len(records)
            score = (same - swallowed, len(records[0]), -quoting)
            if score > best:
                best, choice = score, (delimiter, quoting)
    return choice


def _records(
    text: str, delimiter: str, quoting: int, most: int | None = None
) -> tuple[list[list[str]], list[int]]:
    csv.field_size_limit(sys.maxsize)  # a long text is no fault
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    records, lines, line = [], [], 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            records.append(cells)
            lines.append(line)
        # where the next record begins: one may take several lines
        line = reader.line_num + 1
        if most is not None and len(records) >= most:
            break
    return records, lines


def typed(cells: Sequence[str]) -> list[Any]:
    """Cells as whole numbers or decimals where all of them are, else as they stand; None where there
    is nothing.
    """
    # empty cells say nothing on a column's kind
    filled = [cell.strip() for cell in cells if cell.strip()]
    # 18 digits fit into 64 bits; leading zeros (007) are identifiers
    if filled and all(WHOLE.fullmatch(cell) for cell in filled):
        return [int(cell) if cell.strip() else None for cell in cells]
    if filled and all(DECIMAL.fullmatch(cell) for cell in filled):
        return [float(cell) if cell.strip() else None for cell in cells]
    return [cell if cell else None for cell in cells]
