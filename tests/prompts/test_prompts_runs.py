"""Whole studies: from options to report, in one process and in two, tuned, written, checked and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bounds import assert_near
from conftest import make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from finetune.artefacts.passport import write_passport
from finetune.cli.parser import parse_into
from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from finetune.methods import attach
from prompts.scoring.cache import Memory
from prompts.scoring.load import ScoringArguments, embed, load_prompt_scorer
from prompts.scoring.score import Request, Scorer
from prompts.study.asking import Asking
from prompts.study.instruct import InstructArguments
from prompts.study.options import AnswerArguments, StudyArguments
from prompts.study.run import Options, keep_options
from prompts.study.study import read_parts
from prompts.study.suite import one_study, study_once
from prompts.study.tune import TuneArguments
from prompts.study.weighed import CALIBRATIONS

ROOT = Path(__file__).parents[2]
ENTRY = """
labels: [neg, pos]
templates:
  is: {text: "{{ text }} it was {{ mask }}", follows: own}
  film: {text: "the film was\\n{{ text }} it is {{ mask }}", follows: own}
verbalizers:
  plain: {neg: bad, pos: good}
  strong: {neg: [awful, dull], pos: [great, fine]}
"""


def run(model: Path, rows: Path, folder: Path, **options: object) -> tuple[StudyArguments, ColumnArguments]:
    (folder / "own.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "own.yaml").write_text(ENTRY)
    study = StudyArguments(
        prompts=[str(folder / "own.yaml")],
        models=[str(model)],
        choose_rows=12,
        output_dir=str(folder / "out"),
        **options,
    )  # type: ignore[arg-type]
    return study, ColumnArguments(dataset_name=str(rows), max_eval_rows=20)


def options_of(study: StudyArguments, **answers: object) -> Options:
    # type: ignore[arg-type]
    return Options(study, ScoringArguments(dtype="float32"), AnswerArguments(**answers))


def finish(study: StudyArguments, data: ColumnArguments, tuning: TuneArguments | None = None):
    return one_study(options_of(study), data, tuning or TuneArguments(), InstructArguments())[0]


def test_each_evaluation_set_has_its_figures(saved, review_file: Path, tmp_path: Path) -> None:
    lines = (review_file / "test.jsonl").read_text().splitlines()
    sets = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, part in zip(sets, (lines[:8], lines[8:14]), strict=True):
        file.write_text("\n".join(part))
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    data = replace(data, eval_dataset_name=list(map(str, sets)))
    assert not study_once(options_of(study), data, TuneArguments(), InstructArguments())
    folder = Path(study.output_dir)
    report = (folder / "report.md").read_text()
    assert "2 evaluation sets" in report and "01_one.jsonl" in report and "02_two.jsonl" in report
    for name, part in (("01_one.jsonl", lines[:8]), ("02_two.jsonl", lines[8:14])):
        table = pq.read_table(folder / name / "rows.parquet").to_pylist()
        places = [row["row"] for row in table if row["part"] == "unseen"]
        assert len(set(places)) == len(part)
        assert any(row["part"] == "training" for row in table)


def test_a_whole_study(saved, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, data = run(
        saved("llama", AutoModelForCausalLM, initializer_range=0.2),
        review_file,
        tmp_path / "a",
        shots=[0, 1],
        search=True,
        search_rows=8,
    )
    found = finish(study, data)
    cells = {answers.cell for answers in found.answers}
    assert len(cells) == len(found.answers) and {cell.shots for cell in cells} == {0, 1}
    assert {cell.verbalizer for cell in cells} == {"plain", "strong", "words"} and any(
        "composed" in cell.template for cell in cells
    )
    folder = Path(study.output_dir)
    table = pq.read_table(folder / "rows.parquet").to_pylist()
    assert sum(row["part"] == "unseen" for row in table) == 20 * len(cells) and {
        row["prediction"] for row in table
    } <= {"neg", "pos"}
    report = (folder / "report.md").read_text()
    for part in (
        "Chosen on training rows",
        "Spread over prompts",
        "What each calibration does",
        "not significant",
        "All prompts together",
    ):
        assert part in report
    assert report in capsys.readouterr().out and (folder / "spread.png").stat().st_size > 5000
    first = {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.suffix in (".md", ".csv", ".parquet", ".png", ".json")
    }
    finish(study, data)  # from the answers kept
    assert {name: (folder / name).read_bytes() for name in first} == first
    assert {name.rpartition(".")[2] for name in first} == {"md", "csv", "parquet", "png", "json"}
    unseen = {row.identity for row in found.rows}
    parts = read_parts(study, data, TuneArguments()).parts
    pieces = [{row.identity for row in piece} for piece in (parts.training, parts.search, parts.examples)]
    assert len(set.union(*pieces)) == sum(map(len, pieces)) and not unseen & set.union(
        *pieces
    )  # nothing is chosen on what it is measured on


def test_options_are_kept_as_config_takes_them(tmp_path: Path) -> None:
    study = StudyArguments(prompts=["topic"], shots=[0, 4], output_dir=str(tmp_path))
    keep_options(tmp_path, study, ColumnArguments(), ScoringArguments(), TuneArguments())
    again = parse_into(
        [StudyArguments, ColumnArguments, ScoringArguments, TuneArguments],
        ["--config", str(tmp_path / "arguments.yaml")],
    )
    assert again == [study, ColumnArguments(), ScoringArguments(), TuneArguments()]


def test_a_study_with_a_tuned_prompt(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    found = finish(study, data, TuneArguments(tune="prompt", tune_rows=16))
    folder = Path(study.output_dir) / "tuned_prompt"
    assert {answers.cell.model for answers in found.answers} == {study.models[0], str(folder)}
    weights = folder / "adapter_model.safetensors"
    assert (folder / "passport.json").is_file()

    def trained(**options: object) -> int:
        finish(study, data, TuneArguments(**{"tune": "prompt", "tune_rows": 16, **options}))
        return weights.stat().st_mtime_ns

    first = weights.stat().st_mtime_ns
    assert trained() == first  # once
    second = trained(tune_epochs=2)
    (tmp_path / "a" / "own.yaml").write_text(ENTRY.replace("it was", "it is"))
    assert first < second < trained(tune_epochs=2)  # what is asked for is another adapter


def test_a_study_with_label_vectors(saved, review_file: Path, tmp_path: Path) -> None:
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.2)
    study, data = run(model, review_file, tmp_path / "a", soft_rows=16, shots=[0, 1])
    found = finish(study, data)
    soft = [answers for answers in found.answers if answers.cell.verbalizer == "soft"]
    templates = {answers.cell.template for answers in found.answers}
    assert {(a.cell.template, a.cell.shots) for a in soft} == {
        (template, shots) for template in templates for shots in (0, 1)
    }
    assert (
        soft[0].labels["unseen"].shape == (20, 2) and np.isfinite(soft[0].scores("prior", "training")).all()
    )
    parts = read_parts(study, data, TuneArguments()).parts
    assert len(parts.soft) == 16 and not {r.identity for r in parts.soft} & {
        r.identity for r in [*parts.training, *parts.unseen]
    }


@pytest.mark.slow
def test_nearest_examples_and_other_families(saved, review_file: Path, tmp_path: Path) -> None:
    embedder = saved("bert", AutoModel, seed=1)
    vectors = embed(str(embedder), ["the film", "the film", "a dull story"])
    assert_near(np.linalg.norm(vectors, axis=1), 1)
    assert_near(vectors[0], vectors[1])
    for family, auto in (("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)):  # and nothing chosen
        study, data = run(
            saved(family, auto),
            review_file,
            tmp_path / family,
            shots=[1],
            shot_choice="nearest",
            embedder=str(embedder),
        )
        found = finish(replace(study, choose_rows=0), data)
        assert len(found.answers) == 4 and found.chosen is None


def test_generated_texts_are_measured(saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(
        'metric: rougeL\ntarget: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}", b: "{{ text }} and {{ '
        'mask }}"}\n'
        'endings: {line: {until: ["\\n"], tokens: 4}}\n'
    )
    (tmp_path / "test.jsonl").write_text(
        "\n".join(json.dumps({"text": "the film was", "end": "very good"}) for _ in range(3))
    )
    model = saved("llama", AutoModelForCausalLM)
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[str(model)], output_dir=str(tmp_path / "out")
    )
    found = finish(study, ColumnArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl"]))
    assert [one.cell.name for one in found.outcomes] == ["own/a/line", "own/b/line"]
    assert "rougeL" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {line["wanted"] for line in lines} == {"very good"}


def test_texts_are_written_behind_examples_of_texts(saved, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        'target: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}"}\nendings: {line: {until: ["."], '
        "tokens: 4}}\n"
    )
    for split, texts in (("test", ["the film", "a story"]), ("train", ["the actor", "the film", "it was"])):
        lines = [
            json.dumps({"text": text, "end": f"very {'good' if split == 'train' else 'bad'}"})
            for text in texts
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[str(saved("llama", AutoModelForCausalLM))], shots=[0,
        2],
        shot_choice="random", output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    data = ColumnArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl", "train=train.jsonl"])
    found = finish(study, data)
    assert [one.cell.name for one in found.outcomes] == ["own/a/line", "own/a/line 2 shots, seed 0"]
    loaded = read_parts(study, data, TuneArguments())
    asking = Asking(Memory(load_prompt_scorer(study.models[0]), "x"), study, loaded.parts.examples)
    entry, row = loaded.entry, loaded.parts.unseen[0]
    wanted = entry.targets["a"]
    request = asking.text_request(
        entry.templates["a"], lambda one: wanted.listed(one.columns), row, (2, 0), 4
    )
    assert request.context.endswith("\n\nthe film") and request.context.count("very good\n\n") == 2
    blanks = replace(entry.templates["a"], text="{{ text }}   {{ mask }}")  # one of them is the answer's
    shown = asking.text_request(blanks, lambda one: wanted.listed(one.columns), row, (0, 0), 4)
    assert shown.context == "the film  "
    for options, message in (
        ({"search": True}, "leave out --search"),
        ({"shots": [4]}, "3 training rows for .* 4 examples"),
    ):
        with pytest.raises(InputError, match=message):
            read_parts(replace(study, **options), data, TuneArguments())


def test_calibration_keeps_what_is_no_text(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    (tmp_path / "rows").mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (review_file / f"{split}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row |= {
                "stars": number % 5 + 1,
                "words": row["text"].split(),
                "title": None if number % 3 else "a film",
            }
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path(study.prompts[0]).write_text(
        ENTRY.replace(
            "{{ text }} it was", "{{ title }} {{ stars + 1 }} {{ words[0] }} {{ words[-1] }} it was"
        ).replace("the film was\\n{{ text }} it is {{ mask }}", "{{ text }} {{ mask }}")
    )
    found = finish(study, replace(data, dataset_name=str(tmp_path / "rows")))
    assert len(found.answers) == 4 and all(
        np.isfinite(a.scores(how)).all() for a in found.answers for how in CALIBRATIONS
    )


def launched(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in two processes, as the README launches it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    config = str(ROOT / "scripts" / "accelerate" / "two_cpus.yaml")
    launcher = ["accelerate", "launch", "--config_file", config, "--main_process_port", "0"]
    return subprocess.run(
        [*launcher, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_adapter_on_a_tuned_model_is_asked_on_the_two_merged(saved, tmp_path: Path) -> None:
    base, folders = (
        saved("llama", AutoModelForCausalLM, initializer_range=0.2),
        (tmp_path / "sft", tmp_path / "dpo"),
    )
    network, tokenizer = AutoModelForCausalLM.from_pretrained(base), make_tokenizer("llama")
    for below, folder in zip((base, folders[0]), folders, strict=True):
        config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules="all-linear")
        network = get_peft_model(network, config)
        network.save_pretrained(folder)
        write_passport(folder, network, tokenizer, base=str(below), method="lora", method_kwargs=None,
        task="sft", labels=None,
                       data_fingerprint=None, metrics=None)  # fmt: skip
        (folder / "arguments.yaml").write_text(f"model_name_or_path: {below}\n")
        network = network.merge_and_unload()
    asked = [Request("the film was", (" good", " bad"))]
    expected = Scorer(network, tokenizer)(asked)[0]
    for dtype, near in (("float32", 1e-4), ("bfloat16", 0.2)):
        found = load_prompt_scorer(str(folders[1]), ScoringArguments(dtype=dtype))
        assert next(found.network.parameters()).dtype == getattr(torch, dtype)
        np.testing.assert_allclose(np.concatenate(found(asked)[0]), np.concatenate(expected), atol=near)
    virtual = attach(AutoModelForCausalLM.from_pretrained(base), "prompt", None, "CAUSAL_LM")
    virtual.save_pretrained(folders[0])
    (folders[0] / "passport.json").unlink()
    with pytest.raises(InputError, match=r"PROMPT_TUNING adds tokens.* can't be merged"):
        load_prompt_scorer(str(folders[1]))


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(saved, review_file: Path, tmp_path: Path) -> None:
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.2)
    (tmp_path / "own.yaml").write_text(ENTRY)
    options = (
        f"--prompts own.yaml --models {model} --dataset_name {review_file} --choose_rows 12 --shots "
        "0 1 --search true"
    )
    further = "--search_rows 8 --soft_rows 8 --tune lora --tune_rows 8 --output_dir out"
    command = [str(ROOT / "scripts" / "prompt.py"), *options.split(), *further.split()]
    done = launched(command, tmp_path)
    assert done.returncode == 0 and done.stdout.count("# own: 24 rows") == 1, done.stderr[
        -3000:
    ]  # one process reports
    names = (
        "rows.parquet",
        "figures.csv",
        "pairs.csv",
        "report.md",
        "findings.json",
        "spread.png",
        "arguments.yaml",
    )
    two = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / "out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, timeout=300, check=True)
    assert two == {name: (tmp_path / "out" / name).read_bytes() for name in names}
