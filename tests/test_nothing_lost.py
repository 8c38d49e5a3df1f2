"""Random rows in random layouts, through the reader of every verb: every word of every text is in what the
model reads, or the run stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from chat_rows import tokenizer_for
from datasets import Dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finetune.alignment.preferences import with_prompt
from finetune.alignment.prompts import TEXTS
from finetune.data.accounting import cell_texts
from finetune.data.laying import laid_out
from finetune.data.preferred import lay_out_pairs, lay_out_unpaired
from finetune.data.questions import lay_out_prompts
from finetune.data.sources import DataArguments, Rows
from finetune.errors import InputError
from finetune.objectives.inputs import lay_out_texts
from finetune.tasks import classification, multilabel, regression, seq2seq, sft

COUNT = 4
WORD = st.text(alphabet="abcdefgäöé", min_size=3, max_size=8)
TEXT = st.lists(WORD, min_size=2, max_size=6).map(" ".join)
QUESTIONS = ("instruction", "input", "context", "system", "prompt", "question", "query", "notes", "rationale")
TEXTS_OF_A_TASK = ("text", "sentence", "review", "premise", "hypothesis", "sentence1", "sentence2", "notes",
                   "question", "answer", "body")  # fmt: skip
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def read_by(task: Any, **how: Any) -> Callable[[Rows, DataArguments], list[list[Any]]]:
    """What a task's model is asked and what it is to answer, a list of cells a row."""

    def cells(rows: Rows, data: DataArguments) -> list[list[Any]]:
        found = task.examine(rows, data, **how)
        names = [name for name in (found.columns.text, found.columns.pair, found.columns.label) if name]
        return [[row[name] for name in names] for row in found.rows.train]

    return cells


def laid_by(
    lay_out: Any, *names: str, then: Callable[..., Dataset] | None = None
) -> Callable[[Rows, DataArguments], list[list[Any]]]:
    """What is in the columns that a verb's rows are laid out into; all of them where none is named."""

    def cells(rows: Rows, data: DataArguments) -> list[list[Any]]:
        made = laid_out(rows, data, lay_out)[0].train
        made = then(made, "rows") if then else made
        return [[row[name] for name in names or row] for row in made]

    return cells


def rendered(rows: Rows, data: DataArguments) -> list[list[Any]]:
    """A chat as its template says it, ids and all."""
    processor, found = tokenizer_for(PLAIN), sft.examine(rows, data)
    features = sft.encode(found.rows.train, found.columns, processor, 100_000, None)
    return [[processor.decode(ids)] for ids in features["input_ids"]]


@dataclass(frozen=True)
class Reader:
    """How a verb reads rows, the columns that they may have, and those that they must have."""

    cells: Callable[[Rows, DataArguments], list[list[Any]]]
    names: tuple[str, ...]
    wanted: tuple[str, ...] = ()
    given: dict[str, list[Any]] = field(default_factory=dict)


CLASSES = {"label": ["good", "bad"] * (COUNT // 2)}
READERS = {
    "sft": Reader(rendered, (*QUESTIONS, "output", "response", "completion", "answer")),
    "seq2seq": Reader(read_by(seq2seq), (*QUESTIONS, "output", "response", "completion", "answer")),
    "classification": Reader(read_by(classification, pair=False), TEXTS_OF_A_TASK, (), CLASSES),
    "pairs": Reader(read_by(classification, pair=True), TEXTS_OF_A_TASK, (), CLASSES),
    "multilabel": Reader(read_by(multilabel), TEXTS_OF_A_TASK, (), {"labels": [["a"], ["b"]] * (COUNT // 2)}),
    "regression": Reader(read_by(regression), TEXTS_OF_A_TASK, (), {"score": [0.5, 1.5, 2.0, 3.25]}),
    "pretrain": Reader(laid_by(lay_out_texts, "text"), (*TEXTS_OF_A_TASK, "content"), ("text",)),
    "dpo": Reader(
        laid_by(lay_out_pairs, "prompt", "chosen", "rejected", then=with_prompt), QUESTIONS,
        ("chosen", "rejected"),
    ),
    "comparisons": Reader(
        laid_by(lay_out_pairs, "prompt", "chosen", "rejected", then=with_prompt), QUESTIONS,
        ("response_0", "response_1"), {"better_response_id": [0, 1] * (COUNT // 2)},
    ),
    "kto": Reader(
        laid_by(lay_out_unpaired, "prompt", "completion"), QUESTIONS, ("completion",),
        {"label": [True, False] * (COUNT // 2)},
    ),
    # what is no question stays for rewards
    "prompts": Reader(laid_by(partial(lay_out_prompts, texts=TEXTS)), QUESTIONS),
}  # fmt: skip


@pytest.mark.parametrize("verb", READERS)
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=st.data())
def test_every_word_is_read_or_the_run_stops(verb, drawn):
    reader = READERS[verb]
    names = drawn.draw(st.lists(st.sampled_from(reader.names), min_size=1, max_size=4, unique=True))
    rows = st.lists(TEXT, min_size=COUNT, max_size=COUNT, unique=True)
    cells = {name: drawn.draw(rows, label=name) for name in dict.fromkeys((*names, *reader.wanted))}
    part = Dataset.from_dict(cells | reader.given)
    try:
        found = reader.cells(Rows(part, part, "rows"), DataArguments("rows"))
    except InputError:
        return
    read = [{word for text in cell_texts(row) for word in text.split()} for row in found]
    for place in range(COUNT):
        words = {word for column in cells.values() for word in column[place].split()}
        assert any(words <= one for one in read), (list(cells), place)


@pytest.mark.parametrize("verb", READERS)
def test_rows_of_the_plainest_layout_are_read(verb):
    """A reader that refused everything would lose nothing either."""
    reader = READERS[verb]
    two = {
        "sft": ("prompt", "completion"),
        "seq2seq": ("question", "answer"),
        "pairs": ("premise", "hypothesis"),
    }
    first = two.get(verb, ("prompt",) if verb in ("dpo", "comparisons", "kto", "prompts") else ("text",))
    cells = {
        name: [f"{name} {town} is far" for town in ("Oslo", "Bern", "Rome", "Lima")]
        for name in dict.fromkeys((*first, *reader.wanted))
    }
    part = Dataset.from_dict(cells | reader.given)
    assert len(reader.cells(Rows(part, part, "rows"), DataArguments("rows"))) == COUNT
