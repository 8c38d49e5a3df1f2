"""Files as people have them: put together, with comments, odd signs, keys twice; read as meant, or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from finetune.data.preferred import lay_out_pairs
from finetune.data.sources import DataArguments, Rows, load_rows
from finetune.data.streaming import open_stream
from finetune.errors import InputError
from finetune.tasks import classification, multilabel, seq2seq, sft, tokens

TOWNS = ["Oslo", "Bern", "Rome", "Paris"]
LINES = "".join(f"{town} größer,{'ab'[n % 2]}\n" for n, town in enumerate(TOWNS))


def read(path: Path, content: bytes | str) -> Dataset:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = load_rows(DataArguments(str(path), eval_split="train")).train
    assert found is not None
    return found


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_that_is_repeated_is_no_row(mark, tmp_path, caplog):
    rows = read(tmp_path / "a.csv", f"text,label\n{LINES}{mark}text,label\n{LINES}")
    assert rows["label"][:] == list("abab") * 2 and "repeats its header in line 6" in caplog.text
    streamed = open_stream(str(tmp_path / "a.csv"), None, None, "train")
    assert [row["label"] for row in streamed] == list("abab") * 2


def test_a_word_under_its_own_name_is_a_row(tmp_path):
    assert read(tmp_path / "a.csv", "word\nOslo\nword\n")["word"][:] == ["Oslo", "word"]


@pytest.mark.parametrize("zeros", ["\0", "\0\0\0"])
def test_a_few_zeros_make_no_other_encoding(zeros, tmp_path):
    rows = read(tmp_path / "a.csv", f"text,label\n{LINES}".replace("Oslo", f"Oslo{zeros}"))
    assert rows["text"][:] == [f"Oslo{zeros} größer", *(f"{town} größer" for town in TOWNS[1:])]


def test_two_encodings_in_one_file_are_refused(tmp_path):
    halves = b"text,label\n" + LINES.encode() + LINES.encode("cp1252")
    with pytest.raises(InputError, match=r"UTF-8 in some lines.*4 of 8 .*the first is line 6.*--encoding"):
        read(tmp_path / "a.csv", halves)
    whole = read(tmp_path / "b.csv", b"text,label\n" + LINES.encode("cp1252"))
    assert whole["text"][0] == "Oslo größer"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.json"])
def test_a_key_that_stands_twice_is_named(name, tmp_path):
    record = '{"text": "one", "text": "two", "label": 1}'
    content = f'{{"data": [\n{record}\n]}}' if name == "b.json" else record
    with pytest.raises(InputError, match="the key 'text' stands twice in one record"):
        read(tmp_path / name, content)


def test_records_parted_by_old_line_ends(tmp_path):
    rows = read(tmp_path / "a.jsonl", "\r".join(json.dumps({"text": town}) for town in TOWNS))
    assert rows["text"][:] == TOWNS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", f"# made by a tool\ntext,label\n{LINES}", "Line 1 begins with '#': remove what"),
        ("a.csv", f'text,label\n"Oslo is far,a\n{LINES}', "line 2 opens a quote that is closed nowhere"),
        ("a.zip", "PK", "ends in '.zip'; unpack the archive"),
        ("a.tar.gz", "x", "unpack the archive"),
        ("a.csv", "PK\x03\x04rest", "a zip archive or an Excel file, whatever its name says. Name it .xlsx"),
        ("a.jsonl", "PAR1rest", "is a Parquet file, whatever its name says"),
    ],
)  # fmt: skip
def test_what_is_no_table_says_what_to_do(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, content)


def test_a_line_for_excel_names_the_delimiter(tmp_path):
    rows = read(tmp_path / "a.csv", "sep=;\ntext;label\n" + LINES.replace(",", ";"))
    assert rows.column_names[:2] == ["text", "label"] and rows["__place__"][0] == "row 0 (line 3)"


def test_a_last_cell_of_two_lines_is_one(tmp_path):
    assert read(tmp_path / "a.csv", 'label,text\na,x y\nb,"one\ntwo"\n')["text"][:] == ["x y", "one\ntwo"]


def both(rows: list[dict]) -> Rows:
    part = Dataset.from_list(rows)
    return Rows(part, part, "rows")


def test_a_message_a_row_is_no_bare_text():
    rows = [{"message_id": str(n), "parent_id": str(n - 1), "role": "prompter", "text": f"{town} is far"}
            for n, town in enumerate(TOWNS)]  # fmt: skip
    with pytest.raises(InputError, match="a message a row .*Join the messages by their parents"):
        sft.examine(both(rows), DataArguments("rows"))
    assert sft.examine(both(rows), DataArguments("rows", layout="text")).columns.text == "text"


def test_a_turn_behind_the_last_answer_is_counted(caplog):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    sft.examine(both([{"messages": [*chat, {"role": "user", "content": "Bye"}]}, {"messages": chat}]),
                DataArguments("rows"))  # fmt: skip
    assert "1 evaluation chats end with a turn that nothing answers: it is left out (rows 0)" in caplog.text


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        ("\"['In', 'Oslo', '[x]']\"", "\"['O', 'B-LOC', 'O']\""),
        ("\"['In' 'Oslo' '[x]']\"", "\"['O' 'B-LOC' 'O']\""),
        ('"[""In"", ""Oslo"", ""[x]""]"', '"[""O"", ""B-LOC"", ""O""]"'),
        ("In Oslo [x]", "O B-LOC O"),
    ],
    ids=["python", "numpy", "json", "blanks"],
)
def test_lists_of_words_in_a_tables_cells(words, tags, tmp_path):
    rows = read(tmp_path / "a.csv", f"tokens,ner_tags\n{words},{tags}\n{words},{tags}\n")
    found = tokens.examine(Rows(rows, rows, "rows"), DataArguments("rows")).rows.train
    assert found["tokens"][0] == ["In", "Oslo", "[x]"] and found["ner_tags"][0] == ["O", "B-LOC", "O"]


def test_words_in_brackets_are_no_list(tmp_path):
    rows = read(tmp_path / "a.csv", "tokens,ner_tags\n" + "[CLS] Oslo [SEP],O B-LOC O\n" * 2)
    found = tokens.examine(Rows(rows, rows, "rows"), DataArguments("rows")).rows.train
    assert found["tokens"][0] == ["[CLS]", "Oslo", "[SEP]"]


def test_shares_of_classes_are_no_labels():
    with pytest.raises(InputError, match="hold numbers such as 0.2, which are no labels"):
        multilabel.examine(both([{"text": f"{t} is far", "labels": [0.2, 0.8]} for t in TOWNS]),
                           DataArguments("rows"))  # fmt: skip


def test_a_content_that_is_a_number_is_named(tmp_path):
    lines = [
        json.dumps({"messages": [{"role": "user", "content": town}, {"role": "assistant", "content": n}]})
        for n, town in enumerate(TOWNS)
    ]
    rows = read(tmp_path / "a.jsonl", "\n".join(lines))
    with pytest.raises(InputError, match="row 0 .* stands the content 0; wanted a text"):
        sft.examine(Rows(rows, rows, "rows"), DataArguments("rows"))


def test_a_column_inside_a_column_is_named_with_a_dot(capsys):
    chat = [{"role": "user", "content": "Name a town."}, {"role": "assistant", "content": "Oslo"}]
    rows = both([{"custom_id": str(n), "body": {"messages": chat, "model": "m"}} for n in range(3)])
    found = sft.examine(rows, DataArguments("rows", text_column="body.messages"))
    assert found.rows.train["messages"][0] == chat and "text ← body.messages" in capsys.readouterr().out
    classes = both([{"text": f"{t} is far", "about": {"kind": n % 2}} for n, t in enumerate(TOWNS)])
    found = classification.examine(classes, DataArguments("rows", label_column="about.kind"), pair=False)
    assert found.labels == ["0", "1"]
    noted = both([{"body": {"messages": chat, "note": f"Seen by a reader of {t}."}} for t in TOWNS])
    with pytest.raises(InputError, match="'body' holds text that nothing reads"):
        sft.examine(noted, DataArguments("rows", text_column="body.messages"))
    sft.examine(noted, DataArguments("rows", text_column="body.messages", ignore_columns=["body"]))
    other = both([{"log": chat}] * 2)
    assert sft.examine(other, DataArguments("rows", text_column="log")).rows.train["messages"][0] == chat
    with pytest.raises(InputError, match="No column 'body.chat'"):
        sft.examine(rows, DataArguments("rows", text_column="body.chat"))


def test_answers_of_a_table_that_are_whole_numbers_are_texts(tmp_path):
    rows = read(tmp_path / "a.csv", "question,answer\n" + "".join(f"2 + {n}?,{n + 2}\n" for n in range(4)))
    whole = Rows(rows, rows, "rows")
    found = sft.examine(whole, DataArguments("rows"))
    assert sorted(found.rows.train["completion"]) == ["2", "3", "4", "5"] and found.columns.text == "prompt"
    found = seq2seq.examine(whole, DataArguments("rows"))
    assert sorted(found.rows.train[found.columns.label]) == ["2", "3", "4", "5"]
    halves = rows.map(lambda row: {"answer": row["answer"] / 2})
    with pytest.raises(InputError, match="'answer' of the evaluation rows holds .*Set --label_column"):
        seq2seq.examine(Rows(halves, halves, "rows"), DataArguments("rows"))


def test_a_question_that_is_a_chat_in_json_is_a_chat():
    asked = [{"role": "user", "content": "Name a town."}]
    rows = Dataset.from_list([{"prompt": json.dumps(asked), "chosen": "Oslo", "rejected": "No."}] * 2)
    assert lay_out_pairs(rows, DataArguments("rows")).rows["prompt"][0] == asked
