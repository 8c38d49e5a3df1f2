"""Copies of a model on two processes (DDP), of verbs that sample their own rows, learn from pairs or mix
adapters: the weights are those of one process, and a run that was killed goes on, on as many processes as
there are then.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from bounds import difference, weights
from conftest import WORDS, make_model, make_tokenizer
from forking import KILLED, ROOT
from transformers import AutoModel, AutoModelForCausalLM

from finetune.artefacts.checkpoints import checkpoints

pytestmark = pytest.mark.slow
COMMON = "--bf16 false --learning_rate 1e-2"
# four rows a process, in as many micro-batches as make eight
STEPS = (
    "--max_steps 6 --save_strategy steps --save_steps 4 --global_batch_size 8 --per_device_train_batch_size 4"
)
START = "--prompt_tokens 3 --model_name_or_path {folder}/llama"
ASKED = f"{START} --reward function:{{folder}}/mine.py:vowels"
TAUGHT = f"{START} --teacher_model_name_or_path {{folder}}/teacher"
# three steps an epoch, so that the kill falls into the second one; with dropout, as in fuse's base
SAMPLED = (
    f"{STEPS} {ASKED} --held_out_prompts 8 --logging_steps 1 --max_train_rows 6 --max_completion_length 4"
)
DROPPING = '--method lora --method_kwargs {{"lora_dropout":0.2}}'
# two rows are left over in an epoch
ALONE = f"{STEPS} --held_out_prompts 8 --logging_steps 1 --max_train_rows 26 {DROPPING}"
ONLINE = f"{ASKED} {ALONE} --max_new_tokens 4 --disable_dropout false"
# in the eighth step, which ends the second epoch, one process has four pairs and the other one
PAIRED = f"{STEPS} --max_steps 8 --model_name_or_path {{folder}}/llama --eval_strategy no --max_length 24"
PPO = (
    f"ppo {ASKED} --rollout_batch_size 8 --minibatch_size 4 --max_new_tokens 4 --steps 6 --save_steps 4 "
    "--eval_prompts 8 --stop_kl 10"
)
ROWS = {
    "pairs": lambda n: {"chosen": f" {(WORDS * 2)[n]} film", "rejected": " story" * (1 + n % 3)},
    "attributes": lambda n: {"response": f" {(WORDS * 2)[n]} film", "good": n % 5, "long": n % 3},
    "process": lambda n: {"completions": [" a film", f" of {n}"][: 1 + n % 2],
                          "labels": [True, n % 3 == 0][: 1 + n % 2]},
}  # fmt: skip
VERBS = {
    "grpo": f"grpo {SAMPLED} --num_generations 4 --method full",
    "grpo, dropout": f"grpo {SAMPLED} --num_generations 4 --beta 0.1 --loss_type bnpo {DROPPING}",
    "grpo, two steps of a sampling": f"grpo {SAMPLED} --num_generations 4 --num_iterations 2 --method full",
    "rloo": f"grpo --algorithm rloo {SAMPLED} --num_generations 4 {DROPPING}",
    "online_dpo": f"align --algorithm online_dpo {ONLINE}",
    "distill": f"align --algorithm distill {TAUGHT} {ALONE} --max_completion_length 4",
    "dpo": f"dpo {PAIRED} --method full",
    "reward": f"reward {PAIRED}",
    "orpo": f"dpo --algorithm orpo {PAIRED} --method full",
    "cpo": f"dpo --algorithm cpo {PAIRED} --method full",
    "simpo": f"dpo --algorithm simpo {PAIRED} --method lora",
    "attributes": f"reward --algorithm attributes --attributes good long {PAIRED}",
    "process": f"reward --algorithm process {PAIRED}",
    "fuse": f"fuse {STEPS} --adapters {{folder}}/films {{folder}}/books --max_length 24 --eval_strategy no",
    "ppo": f"{PPO} --method lora",
    # the coefficient of the penalty is a state too
    "ppo, all weights": f"{PPO} --method full --kl_target 1",
    # as are values that begin as a reward model's, in a unit that the first step finds out
    "ppo, values": f"{PPO} --method lora --reward model:{{folder}}/scorer --value_from reward",
}


@pytest.fixture
def run(tmp_path, review_file, forking):
    """A verb's words, a folder, processes and the micro-batch or step to kill the last one at → the weights
    in its folder, its checkpoints, or the words that it refused with.
    """

    def made(
        words: str, name: str, processes: int = 1, kill_at: int | None = None, refused: bool = False
    ) -> Any:
        verb, *told = f"{words} {COMMON}".format(folder=tmp_path).split()
        told = [ROOT / "scripts" / f"{verb}.py", *told]
        form = next((form for form in ("attributes", "process") if form in told), "pairs")
        rows = tmp_path / form if verb in ("dpo", "reward") else review_file
        told += ["--dataset_name", rows, "--output_dir", tmp_path / name]
        if kill_at:
            kill = {"KILL_AT": str(kill_at), "KILL_RANK": str(processes - 1)}
            assert forking.run([KILLED, *told], processes, **kill, **cache).returncode != 0
            return [path.name for path in checkpoints(tmp_path / name)]
        finished = forking.run(told, processes, **cache)
        if refused:
            assert finished.returncode == 2, finished.stderr[-3000:]
            return finished.stderr
        assert finished.returncode == 0, finished.stderr[-3000:]
        return weights(tmp_path / name)

    # reference log-probabilities of another test would be taken
    cache = {"HF_HOME": str(tmp_path / "hub")}
    for form, row in ROWS.items():
        (tmp_path / form).mkdir()
        # three whole steps an epoch and five rows
        for split, numbers in (("train", range(29)), ("test", range(29, 33))):
            lines = [json.dumps({"prompt": "say it", **row(n)}) + "\n" for n in numbers]
            (tmp_path / form / f"{split}.jsonl").write_text("".join(lines))
    # with dropout: chance follows from the rows, whichever process has them
    make_model("bert", AutoModel, hidden_dropout_prob=0.1).save_pretrained(tmp_path / "bert")
    make_model("llama", AutoModelForCausalLM).save_pretrained(tmp_path / "llama")
    make_model("llama", AutoModelForCausalLM, seed=3).save_pretrained(tmp_path / "teacher")
    make_tokenizer("llama").save_pretrained(tmp_path / "teacher")
    for family in ("bert", "llama"):
        make_tokenizer(family).save_pretrained(tmp_path / family)
    vowels = (
        "def vowels(prompts, answers):\n    return [float(sum(map(a.count, 'aeiou'))) for a in answers]\n"
    )
    (tmp_path / "mine.py").write_text(vowels)
    return made


def prepare(run: Any, verb: str) -> str:
    """The verb's words, and the runs there that it begins with."""
    if verb == "fuse":
        for seed, name in enumerate(("films", "books")):
            tuned = "train --method bottleneck --max_length 24 --model_name_or_path {folder}/bert"
            run(f"{tuned} {STEPS} --seed {seed}", name)
    if verb == "ppo, values":
        run(f"reward {PAIRED} --method lora", "scorer")
    return VERBS[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_leave_the_weights_of_one_and_a_killed_run_goes_on(run, verb):
    """One of two processes is killed and one goes on alone; one is killed and two go on."""
    words = prepare(run, verb)
    whole = run(words, "whole")
    assert difference(run(words, "two", 2), whole) < 1e-6
    # PPO's loop knows steps; of the others' gradients one process makes two a step, and two make two in a
    # step that some rows are left for
    alone = 5 if words.startswith("ppo") else 9
    for name, before, at, after in (("less", 2, 6, 1), ("more", 1, alone, 2)):
        assert run(words, name, before, kill_at=at) == ["checkpoint-4"]
        assert difference(run(words, name, after), whole) < 1e-6


def test_a_last_step_of_several_micro_batches_is_that_of_one_process(run):
    """Thirteen pairs: two micro-batches of each of two processes, of which the last has one pair."""
    words = f"{VERBS['dpo']} --global_batch_size 16 --max_steps 4"
    assert difference(run(words, "two", 2), run(words, "whole")) < 1e-6


def test_what_follows_from_a_processs_own_share_goes_on_as_it_was_begun(run, tmp_path):
    """Two steps of a sampling, each with a part of each process's answers, and a kill between them; with a
    reference that follows the policy.
    """
    words = f"{VERBS['grpo']} --steps_per_generation 2 --save_steps 3"
    words += " --beta 0.1 --sync_ref_model true --ref_model_sync_steps 1"
    whole = run(words, "whole", 2)
    assert run(words, "killed", 2, kill_at=4) == ["checkpoint-3"]
    alone = run(f"{words} --per_device_train_batch_size 8", "killed", refused=True)
    assert "written by 2 processes" in alone and "Start it as it was begun" in alone
    assert difference(run(words, "killed", 2), whole) < 1e-6
