"""Adapters that alignment made over a tuned model's adapter: every loader reads them on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bounds import assert_near
from conftest import WORDS
from safetensors.torch import load_file, save_file
from scripted import run
from test_dpo import save_changed, save_sft
from transformers import AutoModelForCausalLM

from finetune.adapters import load
from finetune.adapters.assess import trained_as
from finetune.adapters.loading import mount
from finetune.alignment.policy import load_scorer, load_start
from finetune.artefacts.folder import read_artefact
from finetune.artefacts.passport import adapters_below, read_passport
from finetune.errors import InputError
from finetune.models.load import ModelArguments
from finetune.pool.plan import Plan
from finetune.pool.pool import AdapterPool
from prompts.scoring.load import ScoringArguments, load_prompt_scorer


def test_an_adapter_over_another_is_read_on_it_by_whatever_loads_it(tmp_path: Path, saved):
    base = saved("llama", AutoModelForCausalLM)
    sft = save_sft(tmp_path / "sft", base)
    _, start = load_start(ModelArguments(model_name_or_path=str(tmp_path / "sft")))
    aligned = save_changed(start, tmp_path / "dpo", tmp_path / "sft", seed=2)
    assert read_passport(tmp_path / "dpo")["base"] == str(tmp_path / "sft")
    ids = torch.tensor([[7, 8, 9, 10]])
    # trained on, the first adapter is the same one, on the same base
    longer = save_changed(sft, tmp_path / "longer", tmp_path / "sft", seed=3, went_on=True)
    assert read_passport(tmp_path / "longer")["base"] == str(base)
    for folder, network in ((tmp_path / "dpo", aligned), (tmp_path / "longer", longer)):
        with torch.no_grad():
            expected = network(input_ids=ids).logits
            again = load_start(ModelArguments(model_name_or_path=str(folder)))[1]
            scorer = load_prompt_scorer(str(folder), ScoringArguments(dtype="float32"))
            answering = load(folder, device="cpu").network
            for found in (mount(folder)[1], again.eval(), scorer.network, answering):
                assert_near(found(input_ids=ids).logits, expected)
    pool = AdapterPool(str(base))
    pool.add("dpo", tmp_path / "dpo")
    plan = Plan([pool.chain("dpo")])
    with torch.no_grad():
        expected = aligned(input_ids=ids).logits
        assert_near(pool.run(plan, lambda: pool.network(input_ids=ids)).logits, expected)
    file = tmp_path / "sft" / "adapter_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match="on which it stands, has changed since"):
        AdapterPool(str(base)).add("dpo", tmp_path / "dpo")


def test_a_reward_adapter_over_another_is_read_with_its_one_score(tmp_path: Path, saved):
    save_sft(tmp_path / "sft", saved("llama", AutoModelForCausalLM))
    _, scorer = load_scorer(ModelArguments(model_name_or_path=str(tmp_path / "sft")))
    rewarding = save_changed(scorer, tmp_path / "reward", tmp_path / "sft", seed=2, task="SEQ_CLS")
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert_near(mount(tmp_path / "reward")[1](input_ids=ids).logits, rewarding(input_ids=ids).logits)
    with pytest.raises(InputError, match="one of 'reward', which has no labelled rows"):
        trained_as(replace(read_artefact(tmp_path / "reward"), options={"task": "reward"}))


def test_a_run_called_as_its_base_stands_on_no_adapter_and_moved_ones_are_found(tmp_path: Path, saved):
    base = saved("llama", AutoModelForCausalLM)
    (tmp_path / "runs").mkdir()
    same = tmp_path / "runs" / base.name
    save_sft(same, base)
    assert adapters_below(same) == []
    _, start = load_start(ModelArguments(model_name_or_path=str(same)))
    save_changed(start, tmp_path / "runs" / "dpo", same, seed=2)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert adapters_below(tmp_path / "moved" / "dpo") == [(tmp_path / "moved" / base.name).resolve()]


def test_held_out_pairs_that_the_start_learnt_are_left_out(aligning, caplog):
    """What it was tuned on: a prompt with some answer, or a pair."""
    folder, model, _, _ = aligning
    pairs = [
        {"prompt": f"the {word} film", "chosen": " was great", "rejected": " was bad"} for word in WORDS[2:22]
    ]
    tuned = [{"prompt": pair["prompt"], "completion": " was fine"} for pair in pairs[:14]]
    for name, rows in (("tuned", tuned), ("train", pairs[:8]), ("test", pairs[8:]), ("seen", pairs[8:12])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    short = "--bf16 false --disable_tqdm true --max_steps 1 --max_length 16"
    run(
        "sft",
        model,
        f"{folder}/tuned.jsonl --eval_dataset_name {folder}/tuned.jsonl {short} --output_dir {folder}/sft",
    )
    start = (
        f"{short} --model_name_or_path {folder}/sft --dataset_name {folder}/train.jsonl --eval_dataset_name"
    )
    for verb, further in (("dpo", ""), ("reward", ""), ("dpo", "--algorithm kto")):
        caplog.clear()
        run(verb, start, f"{folder}/test.jsonl", further, f"--output_dir {folder}/{verb}{further[-3:]}")
        assert "6 of 12 rows are left out" in caplog.text or "12 of 24 rows are left out" in caplog.text
    with pytest.raises(InputError, match="was trained on all 4 of these rows"):
        run("dpo", start, f"{folder}/seen.jsonl --output_dir {folder}/none")
