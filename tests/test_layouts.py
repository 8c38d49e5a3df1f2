"""The same rows in every layout: the same ids and labels; every word of every text is rendered, or
the run stops.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import TOWNS
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune.data.encode import sequence
from finetune.data.layouts import LAYOUTS
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.errors import InputError
from finetune.tasks import choice, classification, sft

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson "
    "}}{% endif %}<|end|>"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% "
    "endif %}"
)
# 24 chats: words of the system, questions (in two parts) and answers
CHATS = [
    (
        "Be brief.",
        [("Name the country.", f"It is that of {town}.", f"{town} knows.")]
        + [("Again.", "", town)] * (place % 2),
    )
    for place, town in enumerate(TOWNS * 2)
]


@pytest.fixture(scope="module")
def processor() -> PreTrainedTokenizerFast:
    """Bytes as tokens, so that no word is unknown, and a template with calls and tools."""
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")
    found.chat_template = TEMPLATE
    return found


def question(parts: tuple[str, str, str]) -> str:
    return "\n\n".join(part for part in parts[:2] if part)


def as_messages(
    role: str = "role", content: str = "content", names: tuple[str, ...] = ("system", "user", "assistant")
):
    def rows(system, turns):
        said = [(names[0], system)] + [
            pair for t in turns for pair in ((names[1], question(t)), (names[2], t[2]))
        ]
        return [{role: who, content: what} for who, what in said]

    return rows


def chats(layout: str) -> list[dict]:
    """CHATS in a layout."""
    plain, gpt = as_messages(), as_messages("from", "value", ("system", "human", "gpt"))
    made = []
    for system, turns in CHATS:
        *before, last = turns
        history = [[question(turn), turn[2]] for turn in before]
        parts = [
            {
                **m,
                "content": [
                    {"type": "text", "text": m["content"][:4]},
                    {"type": "text", "text": m["content"][4:]},
                ],
            }
            for m in plain(system, turns)
        ]
        made.append(
            {
                "messages": {"messages": plain(system, turns)},
                "sharegpt": {"conversations": gpt(system, turns)},
                "sharegpt_system": {"system": system, "conversations": gpt(system, turns)[1:]},
                "other_roles": {"messages": as_messages(names=("SYSTEM", "prompter", "bot"))(system, turns)},
                "parts": {"messages": parts},
                "conversation": {"conversation": as_messages("speaker", "text")(system, turns)},
                "alpaca": {"instruction": last[0], "input": last[1], "output": last[2], "system": system,
                "history": history},
                "dolly": {"instruction": last[0], "context": last[1], "response": last[2], "system": system,
                "history": history, "category": "qa"},
                "prompt_completion": {"prompt": question(last), "completion": last[2], "system": system,
                "history": history},
                "trl": {"prompt": plain(system, turns)[:-1], "completion": plain(system, turns)[-1:]},
                "question_answer": {"id": system, "question": last[0], "context": last[1], "answer": last[2],
                "system_prompt": system, "history": history},
                "query_response": {"query": question(last), "response": last[2], "system": system,
                "history": history},
                "input_output": {"input": question(last), "output": last[2], "system": system,
                "history": history},
            }[layout]
        )  # fmt: skip
    return made


STYLES = (
    "messages", "sharegpt", "sharegpt_system", "other_roles", "parts", "conversation", "alpaca", "dolly",
    "prompt_completion", "trl",
    "question_answer", "query_response", "input_output",
)  # fmt: skip


def encoded(path: Path, processor, task=sft, max_length: int = 4096, **options):
    """What a file becomes: its features, ordered by their ids."""
    data = DataArguments(str(path), eval_split="train", **options)
    found = task.examine(load_rows(data), data)
    features = task.encode(found.rows.train, found.columns, processor, max_length, found.labels)
    return sorted(zip(features["input_ids"][:], features["labels"][:], strict=True))


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wanted(processor, tmp_path_factory):
    return encoded(write(tmp_path_factory.mktemp("wanted") / "rows.jsonl", chats("messages")), processor)


@pytest.mark.parametrize("layout", STYLES)
def test_the_same_chats_have_the_same_ids_and_labels(layout, processor, wanted, tmp_path):
    given = encoded(write(tmp_path / "rows.jsonl", chats(layout)), processor, learn_turns="all")
    assert len(given) == 24 and given == wanted


def test_a_layout_can_be_named_and_history_is_not_learnt(processor, wanted, tmp_path):
    path = write(tmp_path / "rows.jsonl", chats("alpaca"))
    once = encoded(path, processor, layout="alpaca")
    assert [ids for ids, _ in once] == [ids for ids, _ in wanted]
    assert (
        once
        == encoded(write(tmp_path / "same.jsonl", chats("messages")), processor, learn_turns="last")
        != wanted
    )
    with pytest.raises(
        InputError, match="Unknown layout 'alpacca'; wanted one of: messages, sharegpt, alpaca"
    ):
        encoded(path, processor, layout="alpacca")


# 24 classified texts
CLASSIFIED = [
    (f"The air of {town} is {'fine' if n % 2 else 'dull'}; I say: „größer“, or NA.", ("None", "NA")[n % 2])
    for n, town in enumerate(TOWNS * 2)
]
COLUMNS = {"text": [text for text, _ in CLASSIFIED], "label": [label for _, label in CLASSIFIED]}


def as_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(COLUMNS)
        writer.writerows(CLASSIFIED)
    return path


def packed(path: Path, how) -> Path:
    path.write_bytes(how(as_csv(path.with_name("plain.csv")).read_bytes()))
    return path


def as_zst(path: Path) -> Path:
    return packed(path, pytest.importorskip("zstandard").ZstdCompressor().compress)


def as_excel(path: Path) -> Path:
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.append(list(COLUMNS))
    for row in CLASSIFIED:
        book.active.append(list(row))
    book.save(path)
    return path


def as_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


RECORDS = [dict(zip(COLUMNS, row, strict=True)) for row in CLASSIFIED]
FILES = {
    "a.csv": as_csv, "semicolon.csv": partial(as_csv, delimiter=";"), "tab.csv": partial(as_csv,
    delimiter="\t"),
    "a.tsv": partial(as_csv, delimiter="\t"), "bom.csv": partial(as_csv, encoding="utf-8-sig"),
    "old.csv": partial(as_csv, encoding="cp1252"),
    "utf16.csv": partial(as_csv, encoding="utf-16"), "semicolon16.csv": partial(as_csv, delimiter=";",
    encoding="utf-16-le"),
    "a.csv.gz": lambda path: packed(path, gzip.compress), "a.csv.zst": as_zst, "a.xlsx": as_excel,
    "a.jsonl": lambda path: write(path, RECORDS), "lines.json": lambda path: write(path, RECORDS),
    "list.json": lambda path: as_json(path, RECORDS), "data.json": lambda path: as_json(path,
    {"version": 1, "data": RECORDS}),
    "columns.json": lambda path: as_json(path, COLUMNS),
    "pandas.json": lambda path: as_json(path,
    {name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_same_classified_texts_have_the_same_ids_and_classes(name, processor, tmp_path):
    data = DataArguments(str(FILES[name](tmp_path / name)), eval_split="train")
    found = classification.examine(load_rows(data), data, pair=False)
    assert found.labels == ["NA", "None"]
    features = sequence(found.rows.train, found.columns, processor, 512, found.labels)
    texts = [processor.decode(ids) for ids in features["input_ids"]]
    assert Counter(zip(texts, [found.labels[n] for n in features["labels"]], strict=True)) == Counter(
        CLASSIFIED
    )


def test_a_text_that_nothing_reads_stops_and_can_be_left_out(processor, tmp_path, capsys):
    rows = [
        {**row, "notes": f"Seen by a reader of {town}."}
        for row, town in zip(chats("dolly"), TOWNS * 2, strict=True)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        InputError, match=r"the column 'notes' holds text that nothing reads .*Set --ignore_columns notes"
    ):
        encoded(path, processor)
    encoded(path, processor, ignore_columns=["notes"])
    said = capsys.readouterr().out
    assert (
        "text ← instruction + context" in said and "label ← response" in said and "not used: category" in said
    )
    with pytest.raises(
        InputError, match=r"No column 'note' in .*, named by --ignore_columns; .*Did you mean notes\?"
    ):
        encoded(path, processor, ignore_columns=["note"])


def test_what_stands_under_a_strange_key_of_a_message_stops(processor, tmp_path):
    rows = chats("messages")
    for row, town in zip(rows, TOWNS * 2, strict=True):
        row["messages"][-1]["critique"] = f"Too short for {town}."
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"'messages.critique' holds text"):
        encoded(path, processor)
    assert len(encoded(path, processor, ignore_columns=["messages.critique"])) == 24


@pytest.mark.parametrize("as_json", [False, True])
def test_a_name_that_the_template_drops_stops_and_can_be_left_out(as_json, processor, tmp_path):
    rows = chats("messages")
    for row in rows:
        row["messages"][-2]["name"] = "Ann"
        row |= {"messages": json.dumps(row["messages"])} if as_json else {}
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"does not render the name of message \d+ \(user\): 'Ann'"):
        encoded(path, processor)
    found = encoded(path, processor, ignore_columns=["messages.name"])
    plain = encoded(write(tmp_path / "plain.jsonl", chats("messages")), processor)
    assert found == plain


def test_texts_that_are_read_already_stop_nothing(processor, tmp_path, capsys):
    rows = []
    for row, (_, turns) in zip(chats("messages"), CHATS, strict=True):
        whole = f"Below is an instruction.\n\n### Instruction:\n{turns[0][0]}\n\n### Response:\n{turns[0][2]}"
        rows.append(
            {**row, "prompt": question(turns[0]), "answer": turns[0][2]} if len(turns) else {"text": whole}
        )
    encoded(write(tmp_path / "rows.jsonl", rows), processor)
    assert "as their texts are read already: prompt, answer" in capsys.readouterr().out


def test_every_layout_of_the_table_is_read(processor):
    for name, layout in LAYOUTS.items():
        part = Dataset.from_list([layout.example] * 2)
        found = sft.examine(Rows(part, part, "rows"), DataArguments("rows", layout=name))
        assert len(sft.encode(found.rows.train, found.columns, processor, 4096, None)) == 2, name


def test_choices_in_every_form():
    arc = {
        "question": "Which town?",
        "choices": {"text": ["Oslo", "Bern"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    forms = [
        arc, {"question": "Which town?", "choices": ["Oslo", "Bern"], "answer": 1},
        {"question": "Which town?",
        "choices": [{"label": "1", "text": "Oslo"}, {"label": "2", "text": "Bern"}], "answer": "2"},
        {"question": "Which town?", "A": "Oslo", "B": "Bern", "answer": "B"}, {"question": "Which town?",
        "option1": "Oslo", "option2": "Bern", "answer": "2"},
        {"question": "Which town?", "options": ["Oslo", "Bern"], "answer": "Bern"},
        {"sent1": "Which", "sent2": "town?", "ending0": "Oslo", "ending1": "Bern", "label": 1},
    ]  # fmt: skip
    for form in forms:
        part = Dataset.from_list([form, form])
        found = choice.examine(Rows(part, part, "rows"), DataArguments("rows"))
        row = found.rows.train[0]
        assert (row[found.columns.text], row[str(found.columns.pair)], row[found.columns.label]) == (
            "Which town?",
            ["Oslo", "Bern"],
            1,
        ), form
