"""What a study says of its rows before a model is asked: what columns are for, rows as templates ask them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.data.sources import ColumnArguments
from prompts.study.options import StudyArguments
from prompts.study.rows import StudyRow
from prompts.study.shown import prompt_texts, show_asked
from prompts.study.study import Loaded, read_parts
from prompts.study.tune import TuneArguments

LABELS = """
labels: data
description: "You judge films."
templates: {a: "{{ text }} it was {{ mask }}", b: "Of {{ title }}: {{ mask }}."}
verbalizers: {w: {bad: dull, good: fine}, v: {bad: "no", good: "yes"}}
"""
WRITTEN = 'target: "{{ end }}"\ntemplates: {a: "{{ text }}: {{ mask }}"}\n'
CHOSEN = 'choices: "{{ x }}|||{{ y }}"\ntarget: "{{ right }}"\ntemplates: {a: "{{ text }}: {{ mask }}"}\n'
ROW = {"text": "the slow film", "title": "Oslo by night", "label": "bad", "id": "r0", "end": "at last",
       "note": "somebody said so here", "x": "one", "y": "two", "right": "two"}  # fmt: skip


def loaded(folder: Path, entry: str, *templates: str) -> tuple[Loaded, list[str]]:
    (folder / "own.yaml").write_text(entry)
    other = {"label": "good", "note": "and nobody else did", "title": "Bern at noon", "id": "r1"}
    rows = [ROW, ROW | other, ROW | other | {"note": "who would know that", "id": "r2"}]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = [f"{folder / 'own.yaml'}{template}" for template in templates or [""]]
    study = StudyArguments(prompts=names, check=True)
    data = ColumnArguments(dataset_name=[str(folder)], data_files=["test=test.jsonl"])
    return read_parts(study, data, TuneArguments()), names


def first(found: Loaded) -> StudyRow:
    return next(row for row in found.parts.unseen if row.columns["id"] == "r0")


def test_every_column_is_accounted_for(tmp_path: Path, capsys, caplog) -> None:
    loaded(tmp_path, LABELS)
    told = capsys.readouterr().out
    assert "templates ← text + title" in told and "label ← label" in told
    assert "id" in told.partition("not used: ")[2]
    assert "own' that is asked reads 'note'" in caplog.text and "'title'" not in caplog.text
    caplog.clear()
    loaded(tmp_path, LABELS, "/a")  # of what is asked alone
    assert "templates ← text\n" in capsys.readouterr().out and "'title'" in caplog.text
    loaded(tmp_path, WRITTEN)
    assert "templates ← end + text" in capsys.readouterr().out
    loaded(tmp_path, CHOSEN)
    assert "templates ← right + text + x + y" in capsys.readouterr().out


def test_rows_are_shown_as_templates_ask_them(tmp_path: Path, capsys) -> None:
    found, names = loaded(tmp_path, LABELS)
    assert prompt_texts(found, names, first(found)) == [
        ("own/a/w", "You judge films.\n\nthe slow film it was ⟦dull⟧"),
        ("own/b/w", "You judge films.\n\nOf Oslo by night: ⟦dull⟧."),
    ]
    capsys.readouterr()
    show_asked(found, names, 2)
    told = capsys.readouterr().out
    assert told.count("\nrow ") == 4 and told.count("the right answer: ⟦so⟧") == 4
    found, names = loaded(tmp_path, WRITTEN)
    assert [text for _, text in prompt_texts(found, names, first(found))] == ["the slow film: ⟦at last⟧"]
    found, names = loaded(tmp_path, CHOSEN)
    assert [text for _, text in prompt_texts(found, names, first(found))] == ["the slow film: ⟦two⟧"]


@pytest.mark.parametrize("template", ["{{ nowhere }} {{ mask }}", "{{ text }}"])
def test_what_keeps_a_row_from_being_asked_is_shown(tmp_path: Path, template: str) -> None:
    found, names = loaded(tmp_path, WRITTEN.replace("{{ text }}: {{ mask }}", template))
    ((_, text),) = prompt_texts(found, names, first(found))
    assert ("nowhere" if "nowhere" in template else "slot") in text and "⟦" not in text
