"""Instructions that a model writes: they race on training rows, and are measured on rows that no choice
saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_server import fake_server, text
from transformers import AutoModelForCausalLM

from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.load import ScoringArguments
from prompts.study.instruct import InstructArguments
from prompts.study.options import StudyArguments
from prompts.study.run import Options
from prompts.study.suite import one_study
from prompts.study.tune import TuneArguments

ENTRY = """
metric: exact_match
target: "{{ answer }}"
templates: {hand: "{{ question }} {{ mask }}"}
endings: {line: {until: ["\\n"], tokens: 8}}
"""


def written(good: str | None) -> Any:
    """A server that writes instructions, and that answers rightly behind the good one alone."""
    told = iter(range(1000))

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if "Write a better instruction" in asked:
            number = next(told)
            return 200, text(
                good if good and number == 2 else f"Please think about it well, number {number}."
            )
        if asked.startswith("One, two"):
            return 200, text("x")
        question = asked.rpartition("\n")[2].strip()
        return 200, text(question[-1] if (good and good in asked) or question.endswith("1") else "none")

    return answer


def run(folder: Path, url: str, **options: Any):
    (folder / "own.yaml").write_text(ENTRY)
    for split, start in (("train", 0), ("test", 100)):
        rows = [{"question": f"say {n}", "answer": str(n)[-1]} for n in range(start, start + 40)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = StudyArguments(
        prompts=[str(folder / "own.yaml")],
        models=["openai:m"],
        choose_rows=32,
        output_dir=str(folder / "out"),
    )
    given = Options(
        study, ScoringArguments(), endpoint=EndpointArguments(base_url=url, weigh_by="counts", retries=0)
    )
    instruct = InstructArguments(instruct="openai:m", instruct_proposals=4, instruct_rows=8, **options)
    return one_study(given, ColumnArguments(dataset_name=str(folder)), TuneArguments(), instruct)[0]


def test_the_winner_is_measured_on_rows_that_no_choice_saw(tmp_path: Path) -> None:
    with fake_server(written("Say the last digit.")) as fake:
        found = run(tmp_path, fake.url)
    assert found.trial.found is not None and "gains" in found.gain and "no gain" not in found.gain
    values = {one.cell.template: one.measures["exact_match"].value for one in found.outcomes}
    assert values.pop("own/hand") < 0.2 and set(values.values()) == {1.0}
    assert "instructions written by a model were tried" in (tmp_path / "out" / "report.md").read_text()
    learnt = {row.identity for row in found.parts["training"]}
    assert not learnt & {row.identity for row in found.rows}


def test_no_gain_is_said_where_there_is_none(tmp_path: Path) -> None:
    with fake_server(written(None)) as fake:
        found = run(tmp_path, fake.url, instruct_rounds=1)
    assert "no gain found" in found.gain


def test_a_budget_ends_the_search(tmp_path: Path) -> None:
    with fake_server(written("Say the last digit.")) as fake:
        run(tmp_path, fake.url, instruct_budget=20)
        asked = sum(
            "say" in body.get("prompt", "") and "better instruction" not in body.get("prompt", "")
            for _, body, _ in fake.asked
        )
    assert asked < 20 + 2 * 40 + 2 * 32 + 8


def test_a_search_without_training_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(ENTRY)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "say 1", "answer": "1"}))
    with fake_server(written("x")) as fake:
        study = StudyArguments(
            prompts=[str(tmp_path / "own.yaml")], models=["openai:m"], output_dir=str(tmp_path / "out")
        )
        given = Options(study, endpoint=EndpointArguments(base_url=fake.url, weigh_by="counts"))
        with pytest.raises(InputError, match="training rows to search instructions on"):
            one_study(
                given,
                ColumnArguments(dataset_name=str(tmp_path / "rows.jsonl")),
                TuneArguments(),
                InstructArguments(instruct="openai:m"),
            )


def test_instructions_for_labels_come_from_a_local_model(saved, review_file: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        'labels: [neg, pos]\ntemplates: {is: "{{ text }} it was {{ mask }}"}\nverbalizers: {w: {neg: bad, '
        "pos: good}}\n"
    )
    model = str(saved("llama", AutoModelForCausalLM, initializer_range=0.3, max_position_embeddings=1024))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[model], choose_rows=16, output_dir=str(tmp_path / "out")
    )
    given = Options(study, ScoringArguments(dtype="float32"))
    data = ColumnArguments(dataset_name=str(review_file), max_eval_rows=12)
    instruct = InstructArguments(instruct=model, instruct_proposals=2, instruct_rows=8, instruct_rounds=1)
    found = one_study(given, data, TuneArguments(), instruct)[0]
    assert found.trial.base == "own/is" and found.gain
