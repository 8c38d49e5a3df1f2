"""KTO, ORPO, CPO, online DPO and distillation as a user runs them, and the table of all algorithms."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from bounds import difference, weights
from conftest import WORDS
from scripted import ROOT, TINY, TRAINING, run
from transformers import AutoModelForCausalLM
from trl.experimental.online_dpo import OnlineDPOTrainer as TrlOnlineDPOTrainer

from finetune.alignment import own_sampling
from finetune.alignment.grpo_options import PRESETS
from finetune.alignment.table import ALIGNMENTS
from finetune.cli.parser import main_of, parse
from finetune.errors import InputError
from finetune.reports.run_folder import read_run
from finetune.reports.sections import headline
from finetune.scripts import dpo


def verdicts(folder: Path, labels: str) -> str:
    rows = [
        {"prompt": f"the {WORDS[i]}", "completion": f" {WORDS[-i - 1]}", "label": label == "+"}
        for i, label in enumerate(labels)
    ]
    (folder / "verdicts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{folder}/verdicts.jsonl --eval_split train"


KTO = (
    "--algorithm kto --bf16 false --disable_tqdm true --max_length 32 --num_train_epochs 1 "
    "--eval_strategy no --save_strategy no"
)


def test_kto_on_answers_without_pairs(aligning):
    folder, model, _, _ = aligning
    told = f"{KTO} --desirable_weight 1.5 --undesirable_weight 0.5 --output_dir {folder}/kto"
    run("dpo", model + verdicts(folder, "++-+-+--"), told)
    assert "loss" in json.loads((folder / "kto" / "metrics.json").read_text())
    assert json.loads((folder / "kto" / "provenance.json").read_text())["rows_used"] > 0
    run("dpo", f"--config {folder}/kto/arguments.yaml --output_dir {folder}/again")


@pytest.mark.parametrize("labels", ["++++", "----"])
def test_kto_on_one_verdict_alone_is_refused(aligning, labels):
    folder, model, _, _ = aligning
    with pytest.raises(InputError, match="All 4 training answers are (un)?desirable"):
        run("dpo", model + verdicts(folder, labels), KTO, f"--output_dir {folder}/kto")


@pytest.mark.parametrize("loss", ["kto", "orpo"])
def test_a_run_of_when_all_losses_had_dpos_options_is_a_recipe(tmp_path: Path, loss):
    old = {"task": "dpo", "loss_type": [loss], "label_smoothing": 0.0, "precompute_ref_log_probs": True,
           "model_name_or_path": "smollm2", "dataset_name": ["pairs"], "output_dir": "out", "bf16": False,
           "beta": 0.3}  # fmt: skip
    recipe = tmp_path / "arguments.yaml"
    recipe.write_text(json.dumps(old))
    main = main_of(dpo.main, ["--config", str(recipe)])
    training = parse(main, ["--config", str(recipe)])[-1]
    assert training.algorithm == loss and training.beta == 0.3
    # an option that would have been idle is said, where it says something
    recipe.write_text(json.dumps(old | {"label_smoothing": 0.1}))
    with pytest.raises(InputError, match="label_smoothing has no effect here"):
        parse(main, ["--config", str(recipe)])


@pytest.mark.parametrize("algorithm", ["orpo", "cpo", "simpo"])
def test_losses_without_a_reference_run_from_their_recipes(aligning, algorithm):
    folder, model, reviews, reward = aligning
    run("prefer", model + reviews, reward, TINY, f"--output_dir {folder}/pairs")
    run("dpo", model + f"{folder}/pairs", TRAINING, f"--algorithm {algorithm} --output_dir {folder}/one")
    run("dpo", f"--config {folder}/one/arguments.yaml --output_dir {folder}/two")
    one, two = (json.loads((folder / name / "metrics.json").read_text())["loss"] for name in ("one", "two"))
    assert one == two


ONLINE = (
    "--bf16 false --disable_tqdm true --prompt_tokens 3 --max_steps 2 --learning_rate 1e-2 "
    "--per_device_train_batch_size 4"
)


def test_online_dpo_by_any_reward(aligning):
    folder, model, reviews, reward = aligning
    told = f"--algorithm online_dpo {ONLINE} --max_new_tokens 4 --held_out_prompts 4 --save_strategy no"
    run("align", model + reviews, reward, told, f"--output_dir {folder}/online")
    log = [json.loads(line) for line in (folder / "online" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2] and "reward" in log[1]
    assert log[1]["rewards/vowels/mean"] > 0 and log[2]["rewards/vowels/applies"] > 0
    assert json.loads((folder / "online" / "provenance.json").read_text())["rows_used"] == 48
    assert (folder / "online" / "trained_rows.safetensors").is_file()
    assert {"before", "after", "difference"} <= set(
        json.loads((folder / "online" / "metrics.json").read_text())
    )
    finished = read_run(folder / "online")
    assert re.fullmatch(r"reward [\d.]+ → [\d.]+, by prompt [+-].* \([+-].*\)", headline(finished))


@pytest.mark.parametrize("penalty", ["1.0", "1.1"])
def test_online_dpo_samples_in_the_precision_that_it_trains_in(aligning, monkeypatch, penalty):
    """A base whose products are in 16 bits and whose norms are not, as packages bring it, writes by nothing
    else.
    """
    folder, model, reviews, reward = aligning
    seen = []

    def watched(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return write(*args, **kwargs)

    # with a penalty TRL samples
    place = (TrlOnlineDPOTrainer, "_generate") if penalty != "1.0" else (own_sampling, "sample_answers")
    write = getattr(*place)
    monkeypatch.setattr(*place, watched)
    told = f"--algorithm online_dpo {ONLINE} --max_new_tokens 4 --held_out_prompts 4 --save_strategy no"
    told += f" --repetition_penalty {penalty}"
    told = told.replace("--bf16 false", "--bf16 true").replace("--max_steps 2", "--max_steps 1")
    run("align", model + reviews, reward, told, f"--output_dir {folder}/sixteen")
    assert seen == [True]


def online(aligning, name: str, rows: str, further: str = "") -> Path:
    """A run of two steps of eight prompts, by SGD, to which a gradient twice as large is a step twice as
    large.
    """
    folder, model, reviews, reward = aligning
    told = f"--algorithm online_dpo {ONLINE} --max_new_tokens 4 --held_out_prompts 4 --optim sgd"
    told += f" --method full --learning_rate 1 --save_strategy steps --save_steps 1 {further}"
    step = f"--per_device_train_batch_size {rows} --output_dir {folder}/{name}"
    run("align", model + reviews, reward, told, step)
    return folder / name


def test_micro_batches_of_online_dpo_make_one_step(aligning):
    one = online(aligning, "one", "8")
    two = online(aligning, "two", "4 --gradient_accumulation_steps 2")
    assert difference(weights(two), weights(one)) < 1e-5


def test_scores_that_follow_from_each_other_go_on_as_they_were_begun(aligning):
    folder = online(aligning, "scaled", "4 --gradient_accumulation_steps 2", "--normalise_rewards true")
    # as if killed in its second step
    (folder / "metrics.json").unlink()
    (folder / "checkpoint-2" / "seal.json").unlink()
    with pytest.raises(InputError, match="scored together. Start it as it was begun"):
        online(aligning, "scaled", "8", "--normalise_rewards true")


def test_a_student_learns_a_teachers_distribution(aligning, saved):
    folder, model, reviews, _ = aligning
    teacher = saved("llama", AutoModelForCausalLM, seed=3)
    told = (
        f"--algorithm distill {ONLINE} --max_steps 10 --max_completion_length 4 --held_out_prompts 4 "
        "--save_strategy no"
    )
    run(
        "align",
        model + reviews,
        told,
        f"--teacher_model_name_or_path {teacher} --output_dir {folder}/student",
    )
    figures = json.loads((folder / "student" / "metrics.json").read_text())
    assert figures["after"] < figures["before"]
    assert json.loads((folder / "student" / "provenance.json").read_text())["rows_used"] == 48
    assert (folder / "student" / "trained_rows.safetensors").is_file()
    with pytest.raises(InputError, match="No teacher"):
        run("align", model + reviews, told, f"--output_dir {folder}/none")


def test_every_row_of_the_table_is_run_by_its_verb():
    for name, row in ALIGNMENTS.items():
        text = (ROOT / "scripts" / f"{row.verb}.py").read_text()
        assert row.verb in (name, "align") or f'"{name}"' in text or name in PRESETS, name


def test_the_docs_print_the_table():
    text = (ROOT / "docs" / "alignment.md").read_text()
    section = text.partition("## ALIGNMENTS")[2].partition("## ")[0]
    found = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
    assert set(found) == set(ALIGNMENTS)
    assert all(row.paper in found[name] and row.data in found[name] for name, row in ALIGNMENTS.items())
