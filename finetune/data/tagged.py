"""Words with tags, in any scheme, or texts with the places of entities → words and IOB2 tags. Knows
columns and tags alone.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence, Set
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

from finetune.data.checks import want_lists
from finetune.data.columns import TEXTS, Columns, label_lists, pick_columns
from finetune.data.labelled import as_read, named_classes
from finetune.data.layouts import first_of
from finetune.data.places import columns_of, place_of, unreadable
from finetune.data.questions import Laid
from finetune.data.sources import DataArguments
from finetune.errors import InputError

logger = logging.getLogger(__name__)

WORDS, TAGS = ("tokens", "words"), ("ner_tags", "pos_tags", "tags", "labels", "chunk_tags")
ENTITIES = ("entities", "spans", "ents", "annotations", "label", "labels")
STARTS, ENDS, KINDS = (
    ("start", "begin", "start_offset", "start_char"),
    ("end", "end_offset", "end_char"),
    ("label", "type", "entity", "tag", "entity_type", "entity_group", "labels"),
)
SURFACE = ("text", "word", "value", "mention", "surface")  # what an entity says of its own words
ENTRY = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d+"""  # of a list in a table's cell
LISTED = re.compile(rf"\[\s*(?:{ENTRY})(?:[\s,]+(?:{ENTRY}))*\s*\]")
PIECE = re.compile(r"\w+|[^\w\s]")
ENDING, SINGLE, INNER = ("E-", "L-"), ("S-", "U-"), ("I-", "M-")  # BIOES, BILOU, BMES


def lay_out_tags(rows: Dataset, data: DataArguments) -> Laid:
    """Words and a tag for each.

    Raises:
        InputError: columns that are missing or hold no lists, entities that don't stand where they say.
    """
    there = columns_of(rows)
    # records with places need text and no words; words with tags come first
    spans = data.label_column or first_of(ENTITIES, there)
    if (
        data.text_column not in WORDS
        and not first_of(WORDS, there)
        and spans in there
        and isinstance(rows.features[spans], List)
    ):
        return _from_places(rows, data, spans)
    columns = pick_columns(rows, data, text=WORDS, label=TAGS)
    # tables can't hold lists: words and tags come as texts with blanks
    rows = _parted_words(rows, columns)
    for column in (columns.text, columns.label):
        want_lists(rows, column)
    rows = _with_numbers(rows, columns.label)
    rows = named_classes(rows, columns.label, data.class_names)
    _check_named(rows, columns.label)
    rows = in_iob2(rows, columns.label)
    laid = as_read(rows, columns)
    # other layers of tags on the same words are known companions, not unread text
    layers = tuple(
        name
        for name in there
        if name not in (columns.text, columns.label) and _as_long(rows, name, columns.text)
    )
    return Laid(laid.rows, laid.columns, laid.used, laid.texts, aside=layers)


def _parts(cell: str) -> list[str]:
    """The words of a cell: between blanks, or in a list as Python, numpy or JSON write it into a table."""
    if not LISTED.fullmatch(cell.strip()):
        return cell.split()
    found = re.findall(ENTRY, cell)
    return [re.sub(r"\\(.)", r"\1", one[1:-1]) if one[0] in "\"'" else one for one in found]


def _parted_words(rows: Dataset, columns: Columns) -> Dataset:
    """Words and tags as lists where both are texts with as many parts between blanks."""
    pair = (columns.text, columns.label)
    if not all(isinstance(rows.features[n], Value) and rows.features[n].dtype == "string" for n in pair):
        return rows
    parts = [[_parts(str(cell or "")) for cell in rows[name]] for name in pair]
    uneven = next((n for n, (a, b) in enumerate(zip(*parts, strict=True)) if len(a) != len(b)), None)
    if uneven is not None:
        raise InputError(
            f"In {place_of(rows, uneven)} '{pair[0]}' has {len(parts[0][uneven])} parts between blanks and "
            f"'{pair[1]}' {len(parts[1][uneven])}; wanted a tag for each word. Mend the row"
        )
    for name, lists in zip(pair, parts, strict=True):
        # columns that are made anew would stand last
        order = rows.column_names
        rows = rows.remove_columns(name).add_column(name, lists, feature=List(Value("string")))
        rows = rows.select_columns(order)
    return rows


def _with_numbers(rows: Dataset, column: str) -> Dataset:
    """Tags that a table holds as texts of numbers, as numbers."""
    feature = rows.features[column]
    tags = {tag for row in rows[column] for tag in row or ()}
    if not tags or not all(isinstance(tag, str) and re.fullmatch(r"-?\d+", tag) for tag in tags):
        return rows
    return rows.cast_column(column, List(Value("int64"))) if isinstance(feature, List) else rows


def _check_named(rows: Dataset, column: str) -> None:
    """Tags have names: of numbers alone nobody could tell which begin an entity.

    Raises:
        InputError: they have none.
    """
    inner = rows.features[column].feature
    if isinstance(inner, ClassLabel) or not str(getattr(inner, "dtype", "")).startswith(("int", "uint")):
        return
    found = sorted({tag for row in rows[column] for tag in row or () if tag is not None})
    named = ", ".join([*map(str, found[:5]), *["..."] * bool(found[5:])])
    raise InputError(
        f"The tags in '{column}' are numbers ({named}) without names, which say what begins an "
        "entity. Set --class_names in the order of the numbers, as O B-PER I-PER (or 0 1 2 where they mark "
        "no entities), or --label_column"
    )


def _as_long(rows: Dataset, column: str, words: str) -> bool:
    """Whether a column says something of each word, as parts of speech do."""
    feature = rows.features[column]
    return isinstance(feature, List) and all(
        len(one or ()) == len(other or ()) for one, other in zip(rows[column], rows[words], strict=True)
    )


def in_iob2(rows: Dataset, column: str) -> Dataset:
    """Rows with their tags in IOB2, whatever scheme they are in; tags that mark no entities stay."""
    feature = rows.features[column]
    tags = label_lists(feature, rows[column][:], rows)
    declared = isinstance(feature.feature, ClassLabel)
    other = in_usual_signs({t for row in tags for t in row} | set(feature.feature.names if declared else ()))
    if other:
        tags, declared = [[other[tag] for tag in row] for row in tags], False
    # declared names count too: a split may lack the S- or E- that tell the scheme
    scheme = scheme_of([*tags, *([name] for name in feature.feature.names)] if declared else tags)
    # names that were declared with the data are IOB2's, and an I- that begins is a fault of its row
    if not other and (scheme in (None, "IOB2") or (declared and scheme == "IOB1")):
        return rows
    logger.warning("Tags in '%s' are %s and read as IOB2", column, scheme)
    made = rows.remove_columns(column).add_column(
        column, [to_iob2(row) for row in tags], feature=List(Value("string"))
    )
    return made.select_columns(rows.column_names)


def in_usual_signs(names: Set[str]) -> dict[str, str] | None:
    """Tags that are written `B_LOC`, `LOC-B` or `LOC_B` → as `B-LOC`; None where any is of no such kind."""
    for sign in (r"(?P<at>[BILUESM])_(?P<kind>.+)", r"(?P<kind>.+)[-_](?P<at>[BILUESM])"):
        found = {name: re.fullmatch(sign, name) for name in names - {"O"}}
        parts = {name: f"{part['at']}-{part['kind']}" for name, part in found.items() if part}
        # without a beginning or an inside they may be any names
        usual = any(name[:2] in ("B-", *INNER) for name in parts.values())
        if usual and len(parts) == len(found) and not all(name[1:2] == "-" for name in found):
            return parts | {"O": "O"}
    return None


def scheme_of(tags: Sequence[Sequence[str]]) -> str | None:
    """IOB2, IOB1 (B- only between neighbours of one kind) or BIOES, which BILOU and BMES are other
    names of; None for other tags.
    """
    names = {tag for row in tags for tag in row} - {"O"}
    if not names or not all(len(name) > 2 and name[:2] in ("B-", *ENDING, *SINGLE, *INNER) for name in names):
        return None
    # only these schemes mark ends and singles
    if any(name[:2] in (*ENDING, *SINGLE, "M-") for name in names):
        return "BIOES"
    begins, follows = False, False
    for row in tags:
        if len(row) == 1:
            continue  # one word, or the name of a class: it has no neighbour
        # each tag with the one before it
        for before, tag in zip(["O", *row], row, strict=False):
            fresh = before[2:] != tag[2:]
            begins |= tag.startswith("I-") and fresh
            follows |= tag.startswith("B-") and fresh
    # in IOB1 an entity begins with I-; B- stands only behind one of its own kind
    return "IOB1" if begins and not follows else "IOB2"


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags of a row in IOB2: an entity begins with B-, goes on with I-."""
    made, before = [], "O"
    for tag in tags:
        goes_on = (
            tag[:2] in (*INNER, *ENDING) and before[2:] == tag[2:] and before[:2] not in (*ENDING, *SINGLE)
        )
        made.append(tag if tag == "O" else ("I-" if goes_on else "B-") + tag[2:])
        # as it was written: an S- or E- ends an entity, which I- would not show
        before = tag
    return made


def _from_places(rows: Dataset, data: DataArguments, column: str) -> Laid:
    text = data.text_column or first_of(TEXTS, columns_of(rows))
    if text is None:
        raise InputError(
            f"No column 'text' in {data.name}; it has {', '.join(columns_of(rows))}. Set --text_column"
        )
    kinds = (ValueError, KeyError, TypeError)

    def read(row: dict[str, Any]) -> tuple[list[str], list[str]]:
        said, given = row[text] or "", row[column] or ()
        return tagged(said, [checked_place(one, said) for one in given])

    words, tags = [], []
    for index, row in enumerate(rows):
        try:
            found = read(row)
        except kinds as error:
            said = unreadable(rows, index, f", column '{column}': {error}", read, kinds)
            raise InputError(f"{said}. Mend what stands there, or leave it out") from error
        words.append(found[0])
        tags.append(found[1])
    # made below under these names
    kept = rows.remove_columns([name for name in rows.column_names if name in (*WORDS, *TAGS)])
    made = kept.add_column("tokens", words, feature=List(Value("string"))).add_column(
        "ner_tags", tags, feature=List(Value("string"))
    )
    return Laid(
        made,
        Columns("tokens", None, "ner_tags"),
        {"text": [text], "label": [column]},
        lambda row: str(row[text]),
        "places of entities",
    )


def checked_place(given: Any, text: str) -> tuple[int, int, str]:
    """`place_in`, whose words are those that the entity says it has, where it says any.

    Raises:
        ValueError: others stand there.
    """
    start, end, kind = place_in(given)
    said = next((given[key] for key in SURFACE if given.get(key)), None) if isinstance(given, dict) else None
    if isinstance(said, str) and text[start:end].strip() != said.strip():
        raise ValueError(
            f"the entity {kind} from {start} to {end} is said to be {said!r:.60}, and there stands "
            f"{text[start:end]!r:.60}"
        )
    return start, end, kind


def place_in(given: Any) -> tuple[int, int, str]:
    """First and last character (exclusive) of an entity, and its kind: a record, or a list of the three.

    Raises:
        ValueError: neither.
    """
    if isinstance(given, dict):
        given = {key: value for key, value in given.items() if value is not None}
        found = [first_of(names, list(given)) for names in (STARTS, ENDS, KINDS)]
        if None in found:
            raise ValueError(f"the entity {given!r:.80}; wanted start, end and label")
        start, end, kind = (given[str(name)] for name in found)
        # Label Studio gives a list of labels
        kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
        return int(start), int(end), str(kind)
    if isinstance(given, (list, tuple)) and len(given) == 3:
        return int(given[0]), int(given[1]), str(given[2])
    raise ValueError(f"the entity {given!r:.80}; wanted start, end and label")


def tagged(text: str, entities: Sequence[tuple[int, int, str]]) -> tuple[list[str], list[str]]:
    """Words of a text and their IOB2 tags. A word ends where an entity does.

    Raises:
        ValueError: entities that lie across each other, beyond the text, or on nothing.
    """
    borders = {border for start, end, _ in entities for border in (start, end)}
    places = []
    for match in PIECE.finditer(text):
        # an entity may end within a word (`Oslo's`): the word is cut there
        cuts = [match.start(), *sorted(b for b in borders if match.start() < b < match.end()), match.end()]
        places += list(itertools.pairwise(cuts))
    tags, before = ["O"] * len(places), -1
    # in order of place, so that overlap shows against the one before
    for start, end, kind in sorted(entities):
        # blanks at an entity's ends hold no word
        inside = [place for place, (a, b) in enumerate(places) if start <= a and b <= end]
        if not inside or not 0 <= start < end <= len(text):
            raise ValueError(
                f"the entity {kind} from {start} to {end} holds no word of a text of {len(text)} characters"
            )
        if start < before:
            raise ValueError(
                f"the entity {kind} from {start} to {end} lies across another one; wanted one tag a word"
            )
        for place in inside:
            tags[place] = ("B-" if place == inside[0] else "I-") + kind
        before = end
    return [text[a:b] for a, b in places], tags
