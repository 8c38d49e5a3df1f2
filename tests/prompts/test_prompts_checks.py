"""Studies that can't be done, or not wholly: what --check says, what is refused and how it is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_prompts_runs import ENTRY, finish, run
from transformers import AutoModel, AutoModelForCausalLM

from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from prompts.scoring.load import ScoringArguments, load_prompt_scorer
from prompts.study.check import check
from prompts.study.options import StudyArguments
from prompts.study.study import read_parts
from prompts.study.tune import TuneArguments


def test_check_passes_good_prompts_and_stops_at_bad_ones(
    saved, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a", check=True)
    loaded = read_parts(study, data, TuneArguments())
    assert check(loaded, study, ScoringArguments()) == [] and "nothing wrong" in capsys.readouterr().out
    study.max_length = 6
    with pytest.raises(InputError, match="things are wrong with the prompts of 'own'"):
        check(loaded, study, ScoringArguments())
    assert "rows have more than 6 tokens" in capsys.readouterr().out


def test_a_template_for_other_models_is_no_fault(
    saved, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a", check=True)
    both = ENTRY.replace(
        "verbalizers:", '  cloze: {text: "{{ text }} was {{ mask }} and fine", follows: own}\nverbalizers:'
    )
    Path(study.prompts[0]).write_text(both)
    assert check(read_parts(study, data, TuneArguments()), study, ScoringArguments()) == []
    said = capsys.readouterr().out
    assert "not asked, as text follows the slot: own/cloze/plain, own/cloze/strong" in said


def test_check_reads_what_written_texts_are_compared_with(
    saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(
        'target: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}", b: "{{ txt }} {{ mask }}"}\n'
    )
    rows = [{"text": "the film", "end": ""}, {"text": "", "end": "x"}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(saved("llama", AutoModelForCausalLM))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[model], check=True, output_dir=str(tmp_path / "out")
    )
    data = ColumnArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl"])
    loaded = read_parts(study, data, TuneArguments())
    with pytest.raises(InputError, match="4 things are wrong"):
        check(loaded, study, ScoringArguments())
    told = capsys.readouterr().out
    for fault in (
        "own/a: 1 rows with an empty column", "own/a: 1 rows render to nothing",
        "own/target: 1 rows have no text",
        "own/b: no column 'txt'; the rows have text, end",
    ):  # fmt: skip
        assert fault in told


def test_tables_bear_any_label_and_the_cache_any_file(saved, tmp_path: Path) -> None:
    labels = ["a | b", "two\nlines", "gold"]
    (tmp_path / "own.yaml").write_text(
        'labels: data\ntemplates: {a: "{{ text }} it was {{ mask }}", b: "{{ text }} is {{ mask }}"}\n'
        'verbalizers: {w: {"a | b": good, "two\\nlines": bad, gold: dull}}\n'
    )
    for split in ("train", "test"):
        rows = [{"text": f"the film {'|' * i} \r\n was", "label": labels[i % 3]} for i in range(9)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[str(saved("llama", AutoModelForCausalLM))],
        choose_rows=0,
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    finish(study, ColumnArguments(dataset_name=str(tmp_path)))
    lines = (
        (tmp_path / "out" / "report.md")
        .read_text()
        .split("## Where the first prompt errs")[1]
        .split("\n## ")[0]
        .splitlines()
    )
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5} and sum(
        "gold ↓ said →" in line for line in tables
    ) == 1
    (tmp_path / "out" / "cache.sqlite").write_text("no database" * 99)
    with pytest.raises(
        InputError, match=r"cache.sqlite can't keep answers: .*Remove it, or set --cache_file"
    ):
        finish(study, ColumnArguments(dataset_name=str(tmp_path)))


def test_text_and_label_that_are_missing_are_asked_for_at_once(saved, tmp_path: Path) -> None:
    study, _ = run(saved("llama", AutoModelForCausalLM), tmp_path / "no.jsonl", tmp_path / "a")
    (tmp_path / "odd.jsonl").write_text('{"foo": "a film", "bar": "pos"}\n' * 4)
    data = ColumnArguments(dataset_name=str(tmp_path / "odd.jsonl"))
    wanted = (
        r"no columns '\w+' and 'label' in the data; it has foo, bar. Set --columns \w+=COLUMN and --label"
    )
    with pytest.raises(InputError, match=wanted):
        finish(study, data)


def test_classes_that_are_numbers_get_names(saved, tmp_path: Path) -> None:
    study, _ = run(saved("llama", AutoModelForCausalLM), tmp_path / "no.jsonl", tmp_path / "a")
    rows = [{"text": f"film {number}", "label": number % 2} for number in range(8)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = replace(study, choose_rows=0)
    data = ColumnArguments(dataset_name=str(tmp_path / "test.jsonl"))
    with pytest.raises(InputError, match="no label '0'; it has neg, pos. Set --class_names"):
        read_parts(study, data, TuneArguments())
    loaded = read_parts(study, replace(data, class_names=["neg", "pos"]), TuneArguments())
    assert loaded.labels == ("neg", "pos")
    assert {row.columns["text"][-1]: row.label for row in loaded.parts.unseen}["3"] == 1


@pytest.mark.parametrize("kind", ["labels", "choices", "text"])
def test_templates_that_can_not_be_asked_end_no_other(
    saved, review_file: Path, tmp_path: Path, kind: str
) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    bad = '  broken: "{{ text } {{ mask }}"\n  other: "{{ txt }} was {{ mask }}"\n  bare: "{{ text }} was"\n'
    entry = ENTRY.replace("templates:\n", f"templates:\n{bad}")
    if kind != "labels":
        more = {"choices": 'choices: ["neg", "pos"]\n', "text": 'endings: {x: {until: ["."], tokens: 2}}\n'}[
            kind
        ]
        entry = f'target: "{{{{ label }}}}"\n{more}' + entry.partition("verbalizers:")[0].partition("]\n")[2]
    Path(study.prompts[0]).write_text(entry)
    found = finish(replace(study, choose_rows=0), data)
    assert {one.cell.template for one in found.outcomes} == {"own/is", "own/film"}
    told = " ".join(what for _, _, what in found.notes.troubles)
    for reason in ("own/broken: no valid template", "own/other: no column 'txt'", "own/bare: no slots"):
        assert reason in told


def test_what_a_study_cannot_do_is_named(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    with pytest.raises(InputError, match="48 training rows for 60 to choose on"):
        read_parts(replace(study, choose_rows=60), data, TuneArguments())
    for option, wrong in (("choose_rows", -1), ("shots", [0, -1]), ("max_length", 0), ("shots", [])):
        with pytest.raises(InputError, match=f"--{option} .*wanted"):
            read_parts(replace(study, **{option: wrong}), data, TuneArguments())
    with pytest.raises(
        InputError, match=r"No row of '.*' among the 1 that words are searched on. Set --search_rows"
    ):
        finish(replace(study, search=True, search_rows=1), data)
    same = tmp_path / "same.yaml"
    same.write_text(ENTRY.replace("pos: good", "pos: zebra"))
    troubled = finish(replace(study, prompts=[str(same)]), data)  # the other words are asked
    assert {one.cell.verbalizer for one in troubled.outcomes} == {"strong"}
    told = [what for _, _, what in troubled.notes.troubles]
    assert any("The answer ' zebra' is unknown to the vocabulary" in what for what in told)
    with pytest.raises(InputError, match="was saved as BertModel"):
        load_prompt_scorer(str(saved("bert", AutoModel, seed=2)))
    with pytest.raises(InputError, match="text follows the slot"):
        cloze = tmp_path / "cloze.yaml"
        cloze.write_text(
            ENTRY.replace('it was {{ mask }}"', 'it was {{ mask }} ."').replace(
                'it is {{ mask }}"', 'it is {{ mask }} ."'
            )
        )
        finish(replace(study, prompts=[str(cloze)]), data)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "x"})
    )
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="answers by a head of its own"):
        load_prompt_scorer(str(adapter))
