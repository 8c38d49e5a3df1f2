"""CoNLL files: a word a line with its columns, blank lines between sentences → rows of words and
tags. Knows text alone.
"""

from __future__ import annotations

import re
from typing import Any

from finetune.errors import InputError

TAG = re.compile(r"(O|[BIESLUM]-\S+)")
NAMES = {  # what the columns of the usual files are called, by how many there are
    2: ("tokens", "ner_tags"),
    4: ("tokens", "pos_tags", "chunk_tags", "ner_tags"),
}
CONLLU = 10  # columns of Universal Dependencies' files
LOOKED_AT = 400  # lines that tell a file's kind


def is_conll(text: str) -> bool:
    """Whether a text file holds words and entity tags: the same number of columns in each line, the
    last one tags alone.
    """
    lines = [line.split() for line in text[: LOOKED_AT * 80].split("\n")[:-1][:LOOKED_AT] if line.strip()]
    lines = [cells for cells in lines if cells[0] != "-DOCSTART-" and not cells[0].startswith("#")]
    widths = {len(cells) for cells in lines}
    return (
        len(lines) > 1
        and len(widths) == 1
        and widths != {1}
        and all(TAG.fullmatch(cells[-1]) for cells in lines)
    )


def read_conll(text: str, name: str) -> tuple[dict[str, list[Any]], list[int]]:
    """Sentences as rows, and the line that each begins at.

    Columns are named tokens and ner_tags (of two), tokens, pos_tags, chunk_tags and ner_tags (of four,
    CoNLL-2003), tokens and pos_tags (of ten, CoNLL-U), else tokens, column_1, ..., ner_tags.

    Raises:
        InputError: a line with another number of columns than the first.
    """
    sentences: list[list[list[str]]] = [[]]
    starts: list[int] = []
    width: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            sentences.append([])
            continue
        # a comment holds words after its sign; a line "# O" is the word #
        if line.startswith("#") and (width == CONLLU or (width is None and len(cells) != 2)):
            continue
        width = width or len(cells)
        if len(cells) != width or width < 2:
            raise InputError(
                f"{name}, line {number}: {len(cells)} columns; wanted {max(width, 2)}, as above. Mend the "
                "line"
            )
        if width == CONLLU and not cells[0].isdigit():
            continue  # a word of several, or one that is not written: its parts stand in lines of their own
        if not sentences[-1]:
            starts.append(number)
        sentences[-1].append(cells)
    rows = [sentence for sentence in sentences if sentence]
    if not rows:
        return {}, []
    names, places = _columns(width or 2)
    return {
        column: [[cells[place] for cells in row] for row in rows]
        for column, place in zip(names, places, strict=True)
    }, starts


def _columns(width: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if width == CONLLU:
        return ("tokens", "pos_tags"), (1, 3)
    middle = tuple(f"column_{place}" for place in range(1, width - 1))
    return NAMES.get(width, ("tokens", *middle, "ner_tags")), tuple(range(width))
