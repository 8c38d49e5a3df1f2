"""Models that were tuned on rows of their own are not measured on them: by prompts, in a ladder, or by a run
that goes on from another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from test_prompts_runs import finish, options_of, run
from transformers import AutoModelForCausalLM

from finetune.artefacts.trained_rows import save_trained_rows
from finetune.data.columns import Columns
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.reports.page import page_of
from finetune.reports.run_folder import read_run
from finetune.tasks.table import find_task
from finetune.training.run import examine_rows
from finetune.training.trainer import TrainingArguments
from prompts.ladder.rows import ladder_rows
from prompts.study.again import compare_runs, stored_findings
from prompts.study.instruct import InstructArguments
from prompts.study.study import read_parts
from prompts.study.suite import one_study
from prompts.study.tune import TuneArguments

COLUMNS = Columns("text", None, "label")
KNOWN = 3


def rows_of(folder: Path) -> Dataset:
    return load_dataset("json", data_files=str(folder / "test.jsonl"), split="train")


@pytest.fixture
def tuned(saved, review_file: Path) -> Path:
    """A model whose folder says that it was trained on three of the evaluation rows."""
    folder = saved("llama", AutoModelForCausalLM)
    save_trained_rows(folder, (rows_of(review_file).select(range(KNOWN)), COLUMNS))
    return folder


def test_prompts_ask_about_unseen_rows_alone(tuned: Path, review_file: Path, tmp_path: Path) -> None:
    study, data = run(tuned, review_file, tmp_path / "a")
    whole = len(rows_of(review_file))
    known = set(rows_of(review_file)["text"][:KNOWN])
    with pytest.raises(InputError, match="--models names .* twice"):
        finish(replace(study, models=[str(tuned), str(tuned)]), data)
    found = finish(study, data)
    assert not known & {row.columns["text"] for row in found.rows} and len(found.rows) == 20
    assert (found.population.left_out, found.population.trained_on) == (KNOWN, 0)
    folder = Path(study.output_dir)
    said = f"20, drawn plainly, of {whole - KNOWN} rows"
    for text in ((folder / "report.md").read_text(), page_of([read_run(folder)])):
        assert said in text and f"{KNOWN} more are left out, which a model asked here was trained on" in text
    assert stored_findings(folder).population == found.population


def test_rows_are_kept_by_the_users_word_and_the_report_says_so(
    tuned: Path, review_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study, data = run(tuned, review_file, tmp_path / "a")
    options = options_of(study, keep_trained_rows=True)
    found = one_study(options, data, TuneArguments(), InstructArguments())[0]
    assert (found.population.left_out, found.population.trained_on) == (0, KNOWN)
    folder = Path(study.output_dir)
    assert f"({KNOWN} of the" in (folder / "report.md").read_text()
    # who compares it with another run learns of it
    compare_runs(folder, folder)
    assert f"asks about {KNOWN} rows that a model of its own was trained on" in caplog.text
    with pytest.raises(InputError, match="--keep_trained_rows is read with --models trained here alone"):
        one_study(
            replace(options, study=replace(study, models=["smollm2"])),
            data,
            TuneArguments(),
            InstructArguments(),
        )


def test_nothing_but_trained_rows_is_refused(tuned: Path, review_file: Path, tmp_path: Path) -> None:
    save_trained_rows(tuned, (rows_of(review_file), COLUMNS))
    study, data = run(tuned, review_file, tmp_path / "a")
    with pytest.raises(InputError, match="was trained on all .*--keep_trained_rows true"):
        read_parts(study, data, TuneArguments(), options_of(study).answers)


def test_a_ladder_measures_nothing_on_rows_that_its_models_know(tuned: Path, review_file: Path) -> None:
    data = DataArguments(dataset_name=[str(review_file)])
    plain, without = ladder_rows(data), ladder_rows(data, ["minilm", str(tuned)])
    assert set(plain.unseen["text"]) - set(without.unseen["text"]) == set(
        rows_of(review_file)["text"][:KNOWN]
    )
    # bare texts that a start has read give no answer away
    (tuned / "arguments.yaml").write_text(yaml.safe_dump({"objective": "clm"}))
    assert len(ladder_rows(data, [str(tuned)]).unseen) == len(plain.unseen)


def test_a_run_that_goes_on_is_not_evaluated_on_rows_of_its_start(
    tuned: Path, review_file: Path, tmp_path: Path
) -> None:
    row, data = find_task("classification"), DataArguments(dataset_name=[str(review_file)])
    training = TrainingArguments(output_dir=str(tmp_path / "out"))
    options = {"output_dir": str(tmp_path / "out"), "model_name_or_path": str(tuned)}
    found = examine_rows(row, data, training, options)
    assert len(found.rows.eval) == len(rows_of(review_file)) - KNOWN
    assert not set(rows_of(review_file)["text"][:KNOWN]) & set(found.rows.eval["text"])
