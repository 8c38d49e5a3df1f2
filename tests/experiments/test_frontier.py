"""The frontier's experiment: made run by run, continued, never mixed with another; its pure parts by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import SHARED_DATA
from scripted import run

from finetune.errors import InputError
from finetune.experiments.frontier import moments_of
from finetune.experiments.frontier_options import SIZES, FrontierArguments


def points_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frontier.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_a_stopped_experiment_is_continued_and_finished_runs_stay(aligning):
    folder, model, reviews, reward = aligning
    told = (model + reviews, reward, "--size smoke --prompt_tokens 3", f"--output_dir {folder}/frontier")
    run("frontier", *told, "--max_points 2")
    first = {file.name: file.read_text() for file in (folder / "frontier" / "points").iterdir()}
    assert set(first) == {"start-0.json", "best-of-n-2.json"}
    run("frontier", *told)
    for name, text in first.items():
        assert (folder / "frontier" / "points" / name).read_text() == text
    size, found = SIZES["smoke"], points_of(folder / "frontier")
    runs = 1 + len(size.betas) + 2 * len(size.coefficients)
    assert len(list((folder / "frontier" / "points").iterdir())) == 1 + len(size.best_of) + runs
    ways = [(p["method"], p["setting"], p["steps"]) for p in found if p["method"].startswith("ppo")]
    assert ways == [
        ("ppo", "0.1", "1"),
        ("ppo", "0.1", "2"),
        ("ppo-true", "0.1", "1"),
        ("ppo-true", "0.1", "2"),
    ]
    assert (folder / "frontier" / "frontier.png").stat().st_size > 5000
    with pytest.raises(InputError, match="another experiment .*seed: 0 there, 1 now"):
        run("frontier", *told, "--seed 1")


def test_a_folder_with_other_files_is_refused(aligning):
    folder, model, reviews, reward = aligning
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no experiment's.*--output_dir"):
        run("frontier", model + reviews, reward, f"--size smoke --output_dir {folder}/full")
    assert [file.name for file in (folder / "full").iterdir()] == ["notes.txt"]


def test_texts_come_from_the_column_that_is_named_and_must_be_enough(aligning):
    folder, model, reviews, reward = aligning
    for split in ("train", "test"):
        file = Path(reviews) / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps({"opinion": row["text"]}) for row in rows))
    with pytest.raises(InputError, match=r"it has opinion. Set --text_column"):
        run("frontier", model + reviews, reward, f"--size smoke --output_dir {folder}/frontier")
    with pytest.raises(InputError, match="needs 1024 training and 256 held-out texts.* has 48 and 24"):
        run(
            "frontier",
            model + reviews,
            reward,
            f"--size cpu --text_column opinion --output_dir {folder}/frontier",
        )


@pytest.mark.parametrize(
    "told", [{"size": "huge"}, {"only": ["dqn"]}, {"prompt_tokens": 0}, {"output_dir": None}]
)
def test_options_that_mean_nothing_are_refused(told):
    with pytest.raises(InputError, match=f"--{next(iter(told))}"):
        FrontierArguments(**({"output_dir": "x"} | told))


def test_runs_are_measured_at_even_distances_and_at_their_end():
    assert moments_of(30, 3) == {10, 20, 30}
    assert moments_of(1, 3) == {1}


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED_DATA / "imdb").is_dir(), reason="the IMDB reviews are not beside the checkout"
)
def test_the_smoke_frontier_of_a_real_model(aligning):
    folder, _, _, reward = aligning
    run(
        "frontier",
        f"--size smoke --model_name_or_path smollm2 --dataset_name {SHARED_DATA}/imdb --output_dir "
        f"{folder}/imdb",
        reward,
    )
    found = points_of(folder / "imdb")
    assert {p["method"] for p in found} == {"start", "best-of-n", "preferred-ft", "dpo", "ppo", "ppo-true"}
    assert float(next(p for p in found if p["method"] == "start")["kl"]) == pytest.approx(0, abs=1e-3)
