"""Files as people have them: encodings, delimiters, quotes, JSON in several shapes, CoNLL, books;
faults with the file's own lines.
"""

from __future__ import annotations

import json

import pytest

from finetune.data.files import Reading, as_dataset, read_files
from finetune.data.sources import DataArguments, load_rows
from finetune.data.tables import decoded, delimited, typed
from finetune.errors import InputError


def read(path, content: bytes | str, **how):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_files([path], Reading(**how))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("text,label\na,1\nb,2\n", {"text": ["a", "b"], "label": [1, 2]}),
        ("Text;Preis\nRot, grün;1,5\nBlau, gelb;2,5\n",
        {"Text": ["Rot, grün", "Blau, gelb"], "Preis": ["1,5", "2,5"]}),
        ('text,label\n"two\nlines, and ""quotes""",x\n\nb,NA\n',
        {"text": ['two\nlines, and "quotes"', "b"], "label": ["x", "NA"]}),
        ("text\tlabel\n\"never closed\tpos\nb\tneg\n",
        {"text": ['"never closed', "b"], "label": ["pos", "neg"]}),
        ("a|b\n007|\n12|x\n", {"a": ["007", "12"], "b": [None, "x"]}),
        ("only\nNone\nnull\n", {"only": ["None", "null"]}),
        ("a,b\n1,2\n3\n", {"a": [1, 3], "b": [2, None]}),
    ],
)  # fmt: skip
def test_delimited_text(text, columns):
    assert delimited(text, "x.csv")[0] == columns


def test_records_begin_at_their_own_lines():
    assert delimited('a,b\n"x\ny",1\n\nz,2\n', "x.csv")[1] == [2, 5]


def test_cells_too_many_are_named_with_their_lines():
    with pytest.raises(
        InputError,
        match=r"x.csv: 2 records have more cells than the header's 2, .* line 3 \(3\), line 5 \(4\)",
    ):
        delimited("a,b\n1,2\n1,2,3\n1,2\n1,2,3,4\n1,2\n", "x.csv", (",",))


def test_cells_are_numbers_where_all_are():
    assert typed(["1", "", "-2"]) == [1, None, -2] and typed(["1.5", "2"]) == [1.5, 2.0]
    assert typed(["1", "nan"]) == ["1", "nan"] and typed(["12345678901234567890"]) == ["12345678901234567890"]


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_encodings_are_told_from_the_bytes(codec):
    text = "Grüße aus Köln, schöne „Sätze“ zum Lesen"
    assert decoded(text.encode(codec), "x") == text


def test_an_encoding_can_be_named():
    text = "Привет из Москвы, как дела?"
    assert decoded(text.encode("koi8-r"), "x", "koi8-r") == text
    assert decoded(("Вопрос и ответ на русском языке, " * 9).encode("cp1251"), "x").startswith("Вопрос")
    with pytest.raises(InputError, match="--encoding utf-8"):
        decoded(b"\xff\xfe\xfa", "x", "utf-8")


@pytest.mark.parametrize(
    "content",
    [
        [{"a": "x", "b": 1}, {"a": "y", "b": 2}], {"data": [{"a": "x", "b": 1}, {"a": "y", "b": 2}],
        "version": "1"},
        {"a": ["x", "y"], "b": [1, 2]}, {"a": {"0": "x", "1": "y"}, "b": {"0": 1, "1": 2}},
        {"0": {"a": "x", "b": 1}, "1": {"a": "y", "b": 2}},
        {"columns": ["a", "b"], "index": [0, 1], "data": [["x", 1], ["y", 2]]},
    ],
)  # fmt: skip
def test_json_in_every_shape(tmp_path, content):
    rows = read(tmp_path / "rows.json", json.dumps(content))
    assert rows.select_columns(["a", "b"]).to_dict() == {"a": ["x", "y"], "b": [1, 2]}


def test_one_chat_in_a_json_file_is_a_row(tmp_path):
    rows = read(
        tmp_path / "rows.json",
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    )
    assert len(rows) == 1 and len(rows[0]["messages"]) == 2


def test_faulty_lines_are_all_named(tmp_path):
    with pytest.raises(InputError, match=r"rows.jsonl: line 2: .*; line 4 holds 'text'.*wanted a record"):
        read(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": \n{"a": 2}\n"text"\n')
    with pytest.raises(
        InputError, match=r"'a' of .* holds a number in row 0 \(line 1\) \(1\) and a text in row 2 \(line 4\)"
    ):
        read(tmp_path / "mixed.jsonl", '{"a": 1}\n{"a": 2}\n\n{"a": "x"}\n')


def test_records_keep_their_own_keys_and_nulls():
    calls = [[{"arguments": {"town": "Oslo", "when": None}}], [{"arguments": {"n": 1}}]]
    assert as_dataset({"calls": calls}, "x")["calls"][:] == calls
    mixed = [{"found": ["ab", 3]}, {"found": [4]}]  # texts and numbers in a record's list
    assert as_dataset({"spans": mixed}, "x")["spans"][:] == mixed


def test_conll(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nOslo NNP B-NP B-LOC\n"
    rows = read(tmp_path / "train.txt", text)
    assert rows["tokens"][:] == [["EU", "rejects"], ["Oslo"]] and rows["ner_tags"][:] == [
        ["B-ORG", "O"],
        ["B-LOC"],
    ]
    assert rows["pos_tags"][:] == [["NNP", "VBZ"], ["NNP"]] and rows["__place__"][:] == [
        "row 0 (line 3)",
        "row 1 (line 6)",
    ]
    two = read(tmp_path / "a.conll", "# a comment of words\nIn O\nOslo S-LOC\n")
    assert two["ner_tags"][:] == [["O", "S-LOC"]]
    with pytest.raises(InputError, match="line 2: 3 columns; wanted 2"):
        read(tmp_path / "b.conll", "In O\nOslo NNP S-LOC\n")


def test_books(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"The book {name}.\nIts second line.\n\nA paragraph more.\n")
    count = {
        how: len(load_rows(DataArguments(str(tmp_path), documents=how, eval_split="train")).train)
        for how in (None, "files", "paragraphs", "lines")
    }
    assert count == {None: 3, "files": 3, "paragraphs": 6, "lines": 12}
    assert (
        load_rows(DataArguments(str(tmp_path), eval_split="train"))
        .train[0]["text"]
        .endswith("\n\nA paragraph more.")
    )


def test_the_split_kept_aside_has_the_classes_in_proportion(tmp_path):
    rows = [{"text": f"text {n}", "label": "rare" if n % 10 == 0 else "usual"} for n in range(200)] + [
        {"text": "one", "label": "once"}
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_rows(DataArguments(str(tmp_path / "rows.jsonl")))
    assert [found.eval["label"][:].count(name) for name in ("usual", "rare", "once")] == [18, 2, 0]
    again = load_rows(DataArguments(str(tmp_path / "rows.jsonl"), sample_seed=1))
    assert again.eval["text"][:] != found.eval["text"][:] and len(found.train) + len(found.eval) == 201
    assert (
        found.eval[0]["__place__"]
        == f"row {found.eval[0]['text'].split()[1]} (line {int(found.eval[0]['text'].split()[1]) + 1})"
    )
