"""Copies of a model on two processes (DDP), of verbs that sample their own rows or mix adapters: the weights
are those of one process.
"""

from __future__ import annotations

from typing import Any

import pytest
from bounds import difference, weights
from conftest import make_model, make_tokenizer
from forking import ROOT
from transformers import AutoModel, AutoModelForCausalLM

pytestmark = pytest.mark.slow
COMMON = "--bf16 false --learning_rate 1e-2 --max_steps 4 --save_strategy steps --save_steps 2"
ASKED = "--prompt_tokens 3 --held_out_prompts 8 --logging_steps 1 --model_name_or_path {folder}/llama"
REWARD = "--reward function:{folder}/mine.py:vowels"
VERBS = {
    "grpo": f"grpo {ASKED} {REWARD} --method full --max_completion_length 4 --num_generations 4",
    "rloo": f"grpo --algorithm rloo {ASKED} {REWARD} --max_completion_length 4 --num_generations 4",
    "fuse": "fuse --adapters {folder}/films {folder}/books --max_length 24 --eval_strategy no",
}


@pytest.fixture
def run(tmp_path, review_file, forking):
    """A verb's words and processes → the weights in its folder."""

    def made(words: str, name: str, processes: int = 1) -> Any:
        verb, *told = f"{words} {COMMON}".format(folder=tmp_path).split()
        told += ["--dataset_name", review_file, "--output_dir", tmp_path / name]
        told += ["--per_device_train_batch_size", 8 // processes]
        finished = forking.run([ROOT / "scripts" / f"{verb}.py", *told], processes)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return weights(tmp_path / name)

    for family, kind in (("bert", AutoModel), ("llama", AutoModelForCausalLM)):
        make_model(family, kind).save_pretrained(tmp_path / family)
        make_tokenizer(family).save_pretrained(tmp_path / family)
    vowels = (
        "def vowels(prompts, answers):\n    return [float(sum(map(a.count, 'aeiou'))) for a in answers]\n"
    )
    (tmp_path / "mine.py").write_text(vowels)
    return made


@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_leave_the_weights_of_one(run, verb):
    if verb == "fuse":
        for seed, name in enumerate(("films", "books")):
            tuned = "train --method bottleneck --max_length 24 --model_name_or_path {folder}/bert"
            run(f"{tuned} --seed {seed}", name)
    # Adam divides a gradient by its own size, so that the rounding of those next to nothing shows
    assert difference(run(VERBS[verb], "two", 2), run(VERBS[verb], "one")) < 1e-3
