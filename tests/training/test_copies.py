"""Copies of a model on two processes (DDP), of verbs that sample their own rows or mix adapters: the weights
are those of one process, and a run that was killed goes on, on as many processes as there are then.
"""

from __future__ import annotations

from typing import Any

import pytest
from bounds import difference, weights
from conftest import make_model, make_tokenizer
from forking import KILLED, ROOT
from transformers import AutoModel, AutoModelForCausalLM

from finetune.artefacts.checkpoints import checkpoints

pytestmark = pytest.mark.slow
COMMON = "--bf16 false --learning_rate 1e-2"
# four rows a process, in as many micro-batches as make eight
STEPS = (
    "--max_steps 4 --save_strategy steps --save_steps 2 --global_batch_size 8 --per_device_train_batch_size 4"
)
ASKED = "--prompt_tokens 3 --model_name_or_path {folder}/llama --reward function:{folder}/mine.py:vowels"
SAMPLED = f"{STEPS} {ASKED} --held_out_prompts 8 --logging_steps 1"
PPO = (
    f"ppo {ASKED} --rollout_batch_size 8 --minibatch_size 4 --max_new_tokens 4 --steps 4 --save_steps 2 "
    "--eval_prompts 8 --stop_kl 10"
)
VERBS = {
    "grpo": f"grpo {SAMPLED} --method full --max_completion_length 4 --num_generations 4",
    "rloo": f"grpo --algorithm rloo {SAMPLED} --max_completion_length 4 --num_generations 4",
    "fuse": f"fuse {STEPS} --adapters {{folder}}/films {{folder}}/books --max_length 24 --eval_strategy no",
    "ppo": f"{PPO} --method lora",
    # the coefficient of the penalty is a state too
    "ppo, all weights": f"{PPO} --method full --kl_target 1",
}
ELASTIC = ["fuse", "ppo", "ppo, all weights"]


@pytest.fixture
def run(tmp_path, review_file, forking):
    """A verb's words, a folder, processes and the micro-batch or step to kill the last one at → the weights
    in its folder, or its checkpoints.
    """

    def made(words: str, name: str, processes: int = 1, kill_at: int | None = None) -> Any:
        verb, *told = f"{words} {COMMON}".format(folder=tmp_path).split()
        told = [ROOT / "scripts" / f"{verb}.py", *told]
        told += ["--dataset_name", review_file, "--output_dir", tmp_path / name]
        if kill_at:
            assert forking.run([KILLED, *told], processes, KILL_AT=str(kill_at)).returncode != 0
            return [path.name for path in checkpoints(tmp_path / name)]
        finished = forking.run(told, processes)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return weights(tmp_path / name)

    # with dropout: chance follows from the rows, whichever process has them
    make_model("bert", AutoModel, hidden_dropout_prob=0.1).save_pretrained(tmp_path / "bert")
    make_model("llama", AutoModelForCausalLM).save_pretrained(tmp_path / "llama")
    for family in ("bert", "llama"):
        make_tokenizer(family).save_pretrained(tmp_path / family)
    vowels = (
        "def vowels(prompts, answers):\n    return [float(sum(map(a.count, 'aeiou'))) for a in answers]\n"
    )
    (tmp_path / "mine.py").write_text(vowels)
    return made


def prepare(run: Any, verb: str) -> str:
    """The verb's words, and the adapters there that it mixes."""
    if verb == "fuse":
        for seed, name in enumerate(("films", "books")):
            tuned = "train --method bottleneck --max_length 24 --model_name_or_path {folder}/bert"
            run(f"{tuned} {STEPS} --seed {seed}", name)
    return VERBS[verb]


@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_two_processes_leave_the_weights_of_one(run, verb):
    words = prepare(run, verb)
    # Adam divides a gradient by its own size, so that the rounding of those next to nothing shows
    assert difference(run(words, "two", 2), run(words, "one")) < 1e-3


@pytest.mark.parametrize("verb", ELASTIC)
def test_a_run_that_was_killed_goes_on_with_less_and_with_more(run, verb):
    """One of two processes is killed and one goes on alone; one is killed and two go on."""
    words = prepare(run, verb)
    whole = run(words, "whole")
    assert difference(run(words, "two", 2), whole) < 1e-6
    # PPO's loop knows steps; of the others' micro-batches one process makes two a step
    alone = 3 if words.startswith("ppo") else 5
    for name, before, at, after in (("less", 2, 3, 1), ("more", 1, alone, 2)):
        assert run(words, name, before, kill_at=at) == ["checkpoint-2"]
        assert difference(run(words, name, after), whole) < 1e-6
