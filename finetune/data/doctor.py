"""What is wrong with a file of labelled texts, all of it at once, and the file mended. Knows files
and labels; knows no model.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar

from finetune.data.accounting import holds_text
from finetune.data.columns import LABELS, TEXTS
from finetune.data.files import Reading, kind_of, read_files
from finetune.data.labelled import twins
from finetune.data.languages import BASES, MULTILINGUAL, language_hint, language_of
from finetune.data.layouts import first_of
from finetune.data.places import PLACE
from finetune.data.tables import content, decoded, delimited, ending
from finetune.errors import InputError

SHOWN = 30
NAMES = {name.lower() for name in TEXTS}
DIGITS = str.maketrans("", "", "0123456789")
LONG = 5  # letters: shorter names, as cat and car, differ by one for a reason


@dataclass
class CheckArguments:
    """Which files are looked at, and where the mended one goes."""

    LEADING: ClassVar[str] = "files"
    files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files with a text and a label a row; several are splits that should share no text."
        },
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column with the text (default: found by its name or content)."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with the label (default: found by its name or content)."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding, where it can't be told from the bytes."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Count lengths in this model's tokens, not in words."}
    )
    mend: str | None = field(
        default=None,
        metadata={
            "help": "Write the mended rows here (.csv or .jsonl): near labels made one; without text, label "
            "or a twin left out."
        },
    )


@dataclass
class Found:
    """A file's rows and what is wrong with them; all lists hold places among the rows.

    Attributes:
        texts, labels: None where there is none.
        lines: what stands for a row in messages.
        wide: lines with more cells than the header, which are no rows.
    """

    name: str
    how: str
    columns: dict[str, list[Any]]
    text: str
    label: str
    lines: list[str]
    wide: list[int] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [str(value).strip() if value is not None else "" for value in self.columns[self.text]]

    @property
    def labels(self) -> list[str]:
        return ["" if value is None else str(value) for value in self.columns[self.label]]

    def empty(self) -> list[int]:
        """Rows without text."""
        return [place for place, text in enumerate(self.texts) if not text]

    def unlabelled(self) -> list[int]:
        """Rows without a label."""
        return [place for place, label in enumerate(self.labels) if not label.strip()]

    def near(self) -> dict[str, list[str]]:
        """Labels that differ by blanks or case alone."""
        return twins(Counter(label for label in self.labels if label.strip()))

    def close(self) -> list[tuple[str, str]]:
        """Labels that differ by a letter, the more usual one first."""
        usual = {name: one for one, names in self.near().items() for name in names}
        return a_letter_apart(Counter(usual.get(name, name) for name in self.labels if name.strip()))

    def nameless(self) -> bool:
        """Whether the first line reads as a row: a text of several words, and a label that rows have."""
        return len(self.text.split()) > 1 and self.text.lower() not in NAMES and self.label in self.labels

    def zeros(self) -> list[int]:
        """Rows whose text holds NUL bytes, which no tokenizer knows and editors don't show."""
        return [place for place, text in enumerate(self.texts) if "\0" in text]

    def repeated(self) -> tuple[list[int], list[int]]:
        """Rows whose text stands before them, with the same label and with another; blanks and case aside.

        Rows without a label are no part of it: they would take a labelled row's place.
        """
        # labels that differ by blanks alone are no contradiction
        usual = {name: one for one, names in self.near().items() for name in names}
        first: dict[str, str] = {}
        same, other = [], []
        for place, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            key, label = plain(text) if label.strip() else "", usual.get(label, label)
            # the first row sets a text's label; it counts as `same` here and is taken out below
            if key and first.setdefault(key, label) == label:
                same.append(place)
            elif key:
                other.append(place)
        seen: set[str] = set()
        firsts = {
            place
            for place, (text, label) in enumerate(zip(self.texts, self.labels, strict=True))
            if label.strip() and plain(text) not in seen and not seen.add(plain(text))  # type: ignore[func-returns-value]
        }
        # the first of each text is the one to keep
        return [place for place in same if place not in firsts], other


def plain(text: str) -> str:
    """A text without what two copies of it may differ by."""
    return " ".join(text.split()).casefold()


def a_letter_apart(counts: Counter[str]) -> list[tuple[str, str]]:
    """Names that are one but for a letter too much, too few, another one or one elsewhere.

    Names that differ by a digit are counted classes, and none of these.
    """
    # two such names have a spelling without one letter in common: no pair has to be compared
    spellings: dict[str, str] = {}
    pairs = []
    for name, _ in counts.most_common():
        plain_name = plain(name)
        bare = plain_name.translate(DIGITS)
        if len(bare) < LONG:
            continue
        shorter = {bare} | {bare[:place] + bare[place + 1 :] for place in range(len(bare))}
        other = next((spellings[one] for one in sorted(shorter) if one in spellings), None)
        if other is not None and plain(other).translate(DIGITS) != bare:
            pairs.append((other, name))
        for one in shorter:
            spellings.setdefault(one, name)
    return pairs


def look(path: Path, text: str | None, label: str | None, encoding: str | None = None) -> Found:
    """Read a file, whatever is wrong with some of its lines.

    Raises:
        InputError: a file that can't be read at all, or columns that aren't there.
    """
    if not path.is_file():
        raise InputError(f"No file {path}; wanted one or several files with rows. Set --files")
    wide: list[int] = []
    how = ending(path)
    if kind_of(path) == "csv":
        # read by hand, as wide lines are to be counted here rather than to stop the reading
        told = decoded(content(path), str(path), encoding)
        columns, numbers = delimited(
            told, str(path), ("\t",) if how == "tsv" else (",", ";", "\t", "|"), wide
        )
        lines = [f"line {number}" for number in numbers]
        # which sign it was, for the report: the reader keeps it to itself
        head = told.lstrip("\ufeff").partition("\n")[0]
        sign = next(
            (
                sign
                for sign in (";", "\t", "|", ",")
                if sign in head and len(head.split(sign)) == len(columns)
            ),
            ",",
        )
        how = f"{how}, cells parted by {'tabs' if sign == chr(9) else repr(sign)}"
    else:
        rows = read_files([path], Reading("lines", encoding))
        # `row 3 (line 5)` → `line 5`, which is what an editor shows
        lines = [place.partition(" (")[2].rstrip(")") or place for place in rows[PLACE]]
        columns = {name: rows[name][:] for name in rows.column_names if name != PLACE}
    if not lines:
        raise InputError(f"{path} has 0 rows")
    found = _columns(columns, text, label, path)
    return Found(path.name, how, columns, *found, lines, wide)


def _columns(
    columns: dict[str, list[Any]], text: str | None, label: str | None, path: Path
) -> tuple[str, str]:
    there = list(columns)
    for flag, named in (("text_column", text), ("label_column", label)):
        if named is not None and named not in there:
            raise InputError(f"No column '{named}' in {path}; it has {', '.join(there)}. Set --{flag}")
    # the label first: its names are more telling than a text's
    label = label or first_of(LABELS, [name for name in there if name != text])
    text = text or first_of([name.lower() for name in TEXTS], [name for name in there if name != label])
    # by content: the longest texts, and the fewest different values
    if text is None:
        words = {
            name: sum(len(str(v).split()) for v in values)
            for name, values in columns.items()
            if name != label and holds_text(values, name)
        }
        text = max(words, key=lambda name: words[name], default=None)
    # fewest values, but more than one, and each in two rows on average
    if label is None:
        kinds = {name: len({str(v) for v in values}) for name, values in columns.items() if name != text}
        # a column of identifiers has as many values as rows
        few = {name: count for name, count in kinds.items() if 1 < count <= max(2, len(columns[name]) // 2)}
        label = min(few, key=lambda name: few[name], default=None)
    if text is None or label is None:
        raise InputError(
            f"No column with {'a text' if text is None else 'a label'} found in {path}; it has "
            f"{', '.join(there)}. "
            f"Set --{'text' if text is None else 'label'}_column"
        )
    return text, label


def report(found: Found, lengths: Sequence[int] | None = None) -> list[str]:
    """Lines that say what is in a file and what is wrong with it."""
    counts = Counter(label for label in found.labels if label.strip())
    same, other = found.repeated()
    # tokens where the base's tokenizer is there, else words
    sizes = sorted(lengths if lengths is not None else [len(text.split()) for text in found.texts])
    said = [f"{found.name}: {found.how}; {len(found.lines)} rows; text ← {found.text}, label ← {found.label}"]
    rest = [name for name in found.columns if name not in (found.text, found.label)]
    said += [f"  other columns: {', '.join(rest)}"] if rest else []
    said += [f"  {len(counts)} classes:"]
    said += [f"    {name!r:<30} {count}" for name, count in counts.most_common(SHOWN)]
    said += [f"    ... and {len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
    said.append(
        f"  lengths in {'tokens' if lengths is not None else 'words'}: median {sizes[len(sizes) // 2]}, 95 % "
        f"up to {sizes[int(0.95 * (len(sizes) - 1))]}, longest {sizes[-1]}"
    )
    faults = [
        (found.wide, "lines have more cells than the header (quote texts that hold the delimiter)",
        [f"line {line}" for line in found.wide]),
        (found.zeros(), "rows hold NUL bytes in their text", None),
        (found.empty(), "rows have no text", None), (found.unlabelled(), "rows have no label", None),
        (same, "rows repeat an earlier text with the same label", None), (other,
        "rows repeat an earlier text with another label", None),
    ]  # fmt: skip
    for places, what, names in faults:
        # lines that are no rows have no entry in `found.lines` and bring their own names
        if places:
            lines = names or [found.lines[place] for place in places]
            said.append(
                f"  ! {len(places)} {what}: {', '.join(lines[:8])}{', ...' if len(lines) > 8 else ''}"
            )
    for usual, names in found.near().items():
        said.append(
            "  ! labels differ by blanks or case alone: "
            f"{', '.join(f'{name!r} ({counts[name]})' for name in names)} → {usual!r}"
        )
    if found.nameless():
        said.append(
            f"  ! the first line reads as a row ({found.label!r} is a label below it too): put a line with "
            "the columns' names before it, as text,label"
        )
    # two names may be two classes: a person knows, and nothing is mended
    said += [
        f"  ? labels differ by a letter: {one!r} ({counts[one]}) and {other!r} ({counts[other]})"
        for one, other in found.close()
    ]
    # a class of one row that is a twin is a slip of writing, said above
    near = {name for names in found.near().values() for name in names}
    said += [
        f"  ! the class {name!r} has one row: nothing is left to evaluate it on"
        for name, count in counts.items()
        if count == 1 and name not in near
    ]
    hint = language_hint(found.texts)
    said += [f"  {hint}"] if hint else []
    if not any(line.startswith(("  !", "  ?")) for line in said):
        said.append("  nothing is wrong with it")
    return said


def next_command(found: Found, file: Path, mended_file: Path | None = None) -> str:
    """What one types after this look: mend a file with faults, train on one without."""
    # what only a person can mend, as a class of one row, would lead here again and again
    if mended_file is None and (found.wide or found.near() or left_out(found)):
        return f"finetune check {quote(str(file))} --mend {quote(f'{file.stem}_mended.csv')}"
    rows, language = mended_file or file, language_of(found.texts)
    rest = [name for name in found.columns if name not in (found.text, found.label)]
    words = ["finetune train", f"--dataset_name {quote(str(rows))}", f"--text_column {quote(found.text)}"]
    words += [f"--label_column {quote(found.label)}"]
    words += [f"--ignore_columns {' '.join(map(quote, rest))}"] if rest else []
    base = "minilm" if language in (None, "English") else BASES.get(language, MULTILINGUAL)
    words += [f"--model_name_or_path {base}", f"--method lora --output_dir {quote(f'runs/{file.stem}')}"]
    # what needs a network says so, with the way without
    local = "" if base == "minilm" else "\n      (the base is downloaded; minilm, packaged, reads English)"
    return " ".join(words) + local


def shared(one: Found, other: Found) -> list[str]:
    """Places in `other` of texts that also stand in `one`."""
    known = {plain(text) for text in one.texts if text}
    return [other.lines[place] for place, text in enumerate(other.texts) if plain(text) in known]


def left_out(found: Found) -> dict[int, str]:
    """Places of rows that can teach nothing, and why."""
    same, other = found.repeated()
    reasons = dict.fromkeys(found.empty(), "no text") | dict.fromkeys(found.unlabelled(), "no label")
    # later reasons win; a text without words can't be among the repeated
    return reasons | dict.fromkeys((*same, *other), "a text that stands before it")


def mended(found: Found, path: Path) -> list[str]:
    """Write the rows that can teach something, with one name for each label; lines that say what was
    changed.

    Raises:
        InputError: a file that is there already, or of a kind that isn't written.
    """
    if path.exists():
        raise InputError(f"--mend {path} is there already, and stays as it is; name a new file")
    usual = {name: one for one, names in found.near().items() for name in names}
    reasons = left_out(found)
    kept = [place for place in range(len(found.lines)) if place not in reasons]
    renamed = sum(
        found.labels[place] in usual and found.labels[place] != usual[found.labels[place]] for place in kept
    )
    rows = [{name: values[place] for name, values in found.columns.items()} for place in kept]
    for row in rows:
        # numbers stay numbers: only labels that have a twin are rewritten
        row[found.label] = usual.get(str(row[found.label]), row[found.label])
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending(path) == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif ending(path) == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(found.columns))
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise InputError(f"--mend {path} ends in '{path.suffix}'; wanted .csv or .jsonl")
    counts = Counter(reasons.values())
    gone = [f"{count} rows left out: {reason}" for reason, count in counts.items()]
    gone += [f"{len(found.wide)} lines left out: more cells than the header"] if found.wide else []
    gone += [f"{renamed} labels written like their neighbours"] if renamed else []
    return [f"{path}: {len(rows)} rows", *(f"  {line}" for line in gone or ["nothing had to be changed"])]
