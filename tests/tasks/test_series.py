"""Series with a class each: one channel or several, of unequal length; learnt, saved, tuned and assessed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_train import script

from finetune.adapters import load
from finetune.adapters.assess import assess_task
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.tasks.series import fault

TINY = "d_model=16,ffn_dim=16,num_hidden_layers=1,num_attention_heads=2,norm_type=layernorm"


def lines(count: int, seed: int) -> list[dict]:
    """Two channels, of which the second rises or falls; 10 to 14 steps."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        steps, up = 10 + number % 5, number % 2 == 0
        slope = np.linspace(0, 1 if up else -1, steps)
        cell = [rng.normal(size=steps).tolist(), (slope + rng.normal(0, 0.1, steps)).tolist()]
        found.append({"series": cell, "label": "up" if up else "down"})
    return found


def write(folder, changed: dict | None = None, **at: object):
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("validation", 12)):
        rows = lines(count, len(split))
        for name, value in (changed or {}).items() if split == "train" else ():
            rows[int(name)]["series"] = value
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def train(folder, out, *further: str) -> dict:
    main = script("train").main
    given = f"--task series --bf16 false --dataset_name {folder} --output_dir {out}"
    main(*parse(main, [*given.split(), *further]))
    return json.loads((out / "metrics.json").read_text())


FRESH = ("--from_config", "patchtst", "--config_overrides", TINY, "--method", "full")


def test_series_are_learnt_saved_tuned_and_assessed(tmp_path):
    folder, out = write(tmp_path / "rows"), tmp_path / "run"
    figures = train(folder, out, *FRESH, "--num_train_epochs", "12", "--learning_rate", "1e-2",
                    "--eval_strategy", "no")  # fmt: skip
    assert figures["accuracy"] > 0.9
    names = [one["name"] for one in json.loads((out / "baselines.json").read_text())]
    assert names[1:] == ["random kernels", "1 nearest neighbour (DTW)"]
    first = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])
    assert first["text"].endswith("steps, 2 channels") and first["gold"] in ("up", "down")
    held = DataArguments([str(folder)], eval_split="validation")
    assert assess_task(read_artefact(out), held)["accuracy"] == figures["accuracy"]
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    said = load(out)([np.array(row["series"]) for row in rows])
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sorted(one["prediction"] for one in said) == sorted(one["prediction"] for one in answers)
    with pytest.raises(InputError, match="wanted an array of numbers"):
        load(out)("no series")
    with pytest.raises(InputError, match="was trained on all 24"):
        assess_task(read_artefact(out), DataArguments([str(folder)], eval_split="train"))
    for method in ("bottleneck", "linear_probe"):
        tuned = train(folder, tmp_path / method, "--model_name_or_path", str(out), "--method", method,
                      "--max_steps", "1", "--eval_strategy", "no")  # fmt: skip
        assert tuned["trainable"] < tuned["parameters"]
        assert assess_task(read_artefact(tmp_path / method), held)["loss"] == pytest.approx(
            tuned["loss"], rel=1e-5
        )
    with pytest.raises(InputError, match="'prefix' can't tune PatchTSTForClassification"):
        train(folder, tmp_path / "prefix", "--model_name_or_path", str(out), "--method", "prefix")


def test_a_list_of_numbers_is_one_channel_and_longer_series_are_cut(tmp_path, caplog):
    folder = write(tmp_path / "rows")
    for split in ("train", "validation"):
        file = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps(row | {"series": row["series"][1]}) for row in rows))
    train(folder, tmp_path / "run", *FRESH, "--max_steps", "1", "--context_length", "12")
    assert "9 of 24 series are longer than 12 steps and are cut" in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"3": [[1.0, None, 2.0], [1.0, 2.0, 3.0]]},
            r"row 3 .*a gap at step 1 of channel 0.*--drop_empty_rows",
        ),
        ({"3": [[1.0, float("nan")], [1.0, 2.0]]}, "row 3 .*at step 1 of channel 0"),
        ({"3": [[], []]}, "row 3 .*has no values"),
        ({"3": [[1.0, 2.0]]}, "row 3 .*1 channels where the first row has 2.*Mend them, or"),
        ({"3": [[1.0, 2.0], [1.0]]}, "row 3 .*channels of 1 and 2 steps"),
        ({str(n): [[1.0] * 9, [2.0] * 9] for n in range(24)}, "'channel 0' has the value 1 in all training"),
        ({str(n): "flat" for n in range(24)}, "holds .*'flat' in row 0.*--text_column"),
    ],
)
def test_what_is_no_series_is_named_with_its_row(tmp_path, changed, said):
    with pytest.raises(InputError, match=said):
        train(write(tmp_path / "rows", changed), tmp_path / "run", *FRESH, "--max_steps", "1")


def test_rows_with_gaps_are_left_out_when_asked(tmp_path, caplog):
    folder = write(tmp_path / "rows", {"3": [[1.0, None, 2.0], [1.0, 2.0, 3.0]]})
    train(folder, tmp_path / "run", *FRESH, "--max_steps", "1", "--drop_empty_rows", "true")
    assert "they are left out" in caplog.text and "(lines 4; rows 3)" in caplog.text


def test_yes_and_no_are_read_as_1_and_0(tmp_path):
    values = {str(n): [[True, False, True] * 3, [False, n % 2 == 0, True] * 3] for n in range(24)}
    folder = write(tmp_path / "rows", values)
    assert 0 <= train(folder, tmp_path / "run", *FRESH, "--max_steps", "1")["accuracy"] <= 1


def test_faults_of_a_cell():
    assert (
        fault([[1.0, 2.0]], 1) is None and fault([1.0, float("inf")], 1) == "has inf at step 1 of channel 0"
    )


def test_a_model_for_other_channels_is_refused(tmp_path):
    folder, out = write(tmp_path / "rows"), tmp_path / "run"
    train(folder, out, *FRESH, "--max_steps", "1", "--eval_strategy", "no")
    for split in ("train", "validation"):
        file = folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps(row | {"series": row["series"][1:]}) for row in rows))
    with pytest.raises(InputError, match="made for 2 channels, and the series has 1"):
        train(folder, tmp_path / "other", "--model_name_or_path", str(out), "--method", "full")
    with pytest.raises(InputError, match="channels channel 0; the model was trained on channel 0, channel 1"):
        assess_task(read_artefact(out), DataArguments([str(folder)], eval_split="validation"))
