"""A file's faults are said at once, with its own lines, and mended."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from finetune.cli.parser import parse
from finetune.data.doctor import a_letter_apart, look, mended, next_command, report
from finetune.data.languages import language_hint, language_of
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.tasks import classification

SCRIPT = Path(__file__).parents[2] / "scripts" / "check.py"
TICKETS = """\ufeffText;Klasse;Datum
Die Rechnung ist falsch und ich will mein Geld.;Rechnung;2024-01-02
Das Paket kam nicht an, für mich schlimm.;Versand ;2024-01-03
die rechnung ist falsch und ich will  mein Geld.;rechnung;2024-01-04
;Versand;2024-01-05
Ich habe eine Frage; sie ist lang.;Frage;2024-01-05
Das ist nicht gut und auch nicht für mich.;;2024-01-06
Der Versand ist langsam.;Versand;2024-01-07
Die Rechnung ist falsch und ich will mein Geld.;Versand;2024-01-08
Ich bin nicht zufrieden.;Rechnung;2024-01-08
"""


@pytest.fixture
def tickets(tmp_path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS, encoding="utf-8")
    return path


def check(*arguments: object) -> None:
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, [str(word) for word in arguments]))


def test_all_faults_are_said_with_their_lines(tickets):
    said = "\n".join(report(look(tickets, None, None)))
    for part in (
        "cells parted by ';'; 8 rows; text ← Text, label ← Klasse", "'Rechnung'                     2",
        "more cells than the header (quote texts that hold the delimiter): line 6",
        "1 rows have no text: line 5", "1 rows have no label: line 7",
        "repeat an earlier text with the same label: line 4", "with another label: line 9",
        "'Rechnung' (2), 'rechnung' (1) → 'Rechnung'", "look German: a base such as deepset/gbert-base",
    ):  # fmt: skip
        assert part in said, part


def test_the_mended_file_trains(tickets, tmp_path, capsys):
    check(tickets, "--mend", tmp_path / "mended.csv")
    assert "4 rows" in capsys.readouterr().out
    data = DataArguments(str(tmp_path / "mended.csv"), eval_split="train", ignore_columns=["Datum"])
    found = classification.examine(load_rows(data), data, pair=False)
    assert found.labels == ["Rechnung", "Versand"] and len(found.rows.train) == 4
    assert report(look(tmp_path / "mended.csv", None, None))[-1] == "  nothing is wrong with it"


def test_a_row_without_a_label_hides_no_labelled_one(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nSame words.,\nSame words.,a\nSame words.,\nOther words.,b\nMore words.,a\n")
    found = look(file, None, None)
    assert found.repeated() == ([], []) and found.unlabelled() == [0, 2]
    assert "3 rows" in mended(found, tmp_path / "mended.csv")[0]


def test_labels_that_differ_by_a_letter_are_asked_about():
    names = Counter({"Rechnung": 9, "Rechnug": 2, "Rechnnug": 1, "Rechmung": 1, "card": 5, "cart": 5})
    assert a_letter_apart(names) == [("Rechnung", name) for name in ("Rechnug", "Rechnnug", "Rechmung")]
    assert a_letter_apart(Counter(["class 1", "class 2", "class 12", "positive", "negative"])) == []


def test_a_question_or_a_class_of_one_row_is_not_mended_again_and_again(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nOne.,Rechnung\nTwo.,Rechnung\nThree.,Rechnug\n")
    found = look(file, None, None)
    said = "\n".join(report(found))
    assert "? labels differ by a letter: 'Rechnung' (2) and 'Rechnug' (1)" in said
    assert "! the class 'Rechnug' has one row" in said and "--mend" not in next_command(found, file)


def test_a_file_without_names_of_columns_and_with_nul_bytes(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("A fine day.,a\nA bad day.,b\nA \0 day.,a\nA long day.,b\n")
    said = "\n".join(report(look(file, None, None)))
    assert "the first line reads as a row ('a' is a label below it too)" in said
    assert "1 rows hold NUL bytes in their text: line 3" in said


def test_no_file_is_written_over(tickets):
    with pytest.raises(InputError, match="is there already, and stays as it is"):
        check(tickets, "--mend", tickets)
    assert tickets.read_text(encoding="utf-8") == TICKETS


def test_what_to_type_next_is_said(tickets, tmp_path):
    assert next_command(look(tickets, None, None), tickets).endswith("--mend tickets_mended.csv")
    said = next_command(look(tickets, None, None), tickets, tmp_path / "m.csv")
    assert "--text_column Text --label_column Klasse --ignore_columns Datum" in said
    assert "--model_name_or_path deepset/gbert-base" in said and f"{tmp_path / 'm.csv'}" in said
    clean = tmp_path / "clean.csv"
    clean.write_text("text,label\n" + "".join(f"the film of {n} is that,{n % 2}\n" for n in range(6)))
    assert "--model_name_or_path minilm" in next_command(look(clean, None, None), clean)


def test_texts_that_two_files_share_are_named(tickets, tmp_path, capsys):
    (tmp_path / "test.csv").write_text("text,label\nder versand ist LANGSAM.,Versand\nNeu.,Rechnung\n")
    check(tickets, tmp_path / "test.csv")
    assert "1 texts of test.csv also stand in tickets.csv: line 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="--mend writes one file"):
        check(tickets, tmp_path / "test.csv", "--mend", tmp_path / "x.csv")


def test_what_cannot_be_looked_at_is_named(tickets, tmp_path):
    with pytest.raises(InputError, match="No file"):
        check(tmp_path / "none.csv")
    with pytest.raises(InputError, match="No column 'x'.*Set --label_column"):
        look(tickets, None, "x")
    with pytest.raises(InputError, match=r"--mend .* ends in '.txt'"):
        mended(look(tickets, None, None), tmp_path / "x.txt")


def test_languages():
    assert language_of(["the film is good and that is all of it"] * 3) == "English"
    assert (
        language_of(["le film est bon et je ne dors pas"] * 3) == "French"
        and language_of(["xyz"] * 3) is None
    )
    assert language_hint(["der Film ist gut und das ist nicht alles"]).startswith("the texts look German")
    assert language_hint([]) is None
