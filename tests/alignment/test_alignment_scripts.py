"""Pairs, reward model, DPO and PPO as a user runs them one after the other, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WORDS
from datasets import load_dataset
from scripted import ROOT, TINY, TRAINING, run

from finetune.adapters import load
from finetune.alignment.policy import load_start
from finetune.artefacts.trained_rows import read_trained_rows, trained_among
from finetune.errors import InputError
from finetune.models.load import ModelArguments

PPO = (
    "--bf16 false --max_new_tokens 4 --rollout_batch_size 8 --minibatch_size 8 --per_device_batch_size 4 "
    "--eval_prompts 8 "
    "--prompt_tokens 3 --eval_steps 2 --save_steps 1"
)


def test_from_prompts_to_an_aligned_model(aligning, capsys):  # each step reads what the one before left
    folder, model, reviews, reward = aligning
    sampling = "--max_new_tokens 4 --prompt_tokens 3 --answers_per_prompt 3 --text_column text"
    run("prefer", model + reviews, reward, sampling, f"--output_dir {folder}/pairs")
    pairs = [json.loads(line) for line in (folder / "pairs" / "train.jsonl").read_text().splitlines()]
    assert len(pairs) > 20
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)

    for place, pair in enumerate(pairs):
        pair["licence"] = ("MIT", "unknown")[place % 2]
    (folder / "pairs" / "train.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    licensed = f"{TRAINING} --licences mit"
    run("reward", model + f"{folder}/pairs", licensed, f"--output_dir {folder}/reward")
    figures = json.loads((folder / "reward" / "metrics.json").read_text())
    assert 0 <= figures["interval"][0] <= figures["accuracy"] <= figures["interval"][1] <= 1
    assert (folder / "reward" / "calibration.png").is_file()

    run("dpo", model + f"{folder}/pairs", licensed, f"--output_dir {folder}/dpo")
    for name in ("reward", "dpo"):
        told = json.loads((folder / name / "provenance.json").read_text())
        (entry,) = told["data"]
        assert entry["licences"] == {"MIT": (len(pairs) + 1) // 2} and 0 < told["rows_used"] <= entry["rows"]
        assert entry["files"][0]["file"] == "train.jsonl"
    assert json.loads((folder / "dpo" / "metrics.json").read_text())["loss"] > 0
    assert not (folder / "dpo" / "ref").exists()  # TRL's second adapter
    assert "trl" not in (folder / "dpo" / "README.md").read_text()  # nor its form: the card is this project's
    with pytest.raises(InputError, match="--beta 0"):
        run(
            "grpo",
            f"--algorithm rloo --model_name_or_path {folder}/dpo --method full --dataset_name",
            reviews,
            reward,
            f"--output_dir {folder}/rloo",
        )
    load_start(
        ModelArguments(model_name_or_path=str(folder / "dpo"))
    )  # what alignment leaves can be aligned again

    capsys.readouterr()
    run("ppo", model + reviews, PPO, f"--steps 2 --reward model:{folder}/reward --output_dir {folder}/ppo")
    said = capsys.readouterr().out
    assert "generation" in said and "scoring" in said and "update" in said
    metrics = json.loads((folder / "ppo" / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert len(read_trained_rows(folder / "ppo")) == 48
    told = json.loads((folder / "ppo" / "provenance.json").read_text())
    assert told["rows_used"] == 48 and told["data"][0]["files"][0]["bytes"] > 0
    assert metrics["before"]["held_out_kl"] == pytest.approx(0, abs=1e-5)
    assert "| score" in (folder / "ppo" / "samples-2.md").read_text()
    assert not (folder / "ppo" / "reward").exists()  # the borrowed adapter is no part of the policy
    for name in ("dpo", "ppo"):
        assert isinstance(load(folder / name)("tok1 tok2", max_new_tokens=3), str)
    with pytest.raises(InputError, match="answers nothing by itself"):
        load(folder / "reward")


@pytest.mark.parametrize(("algorithm", "method"), [("grpo", "full"), ("rloo", "lora")])
def test_policy_gradients_without_values(aligning, algorithm, method):
    folder, model, reviews, reward = aligning
    told = (
        "--bf16 false --disable_tqdm true --prompt_tokens 3 --max_completion_length 4 --max_steps 2 "
        f"--learning_rate 1e-2 --lr_scheduler_type constant --method {method}"
    )
    sizes = "--per_device_train_batch_size 4 --num_generations 4 --logging_steps 1 --save_steps 1"
    told += f" --algorithm {algorithm}"
    run("grpo", model + reviews, reward, told, sizes, f"--output_dir {folder}/one")
    assert json.loads((folder / "one" / "provenance.json").read_text())["rows_used"] == 48
    # told by the rows' own texts, of which the policy was asked the first tokens
    rows = load_dataset("json", data_files=f"{reviews}/train.jsonl", split="train")
    seen = trained_among(folder / "one", rows, None)
    assert seen.all() and len(seen) == 48
    figures = json.loads((folder / "one" / "metrics.json").read_text())
    assert abs(figures["kl"]) > 1e-4  # to the model that training started from, not to the one it ended with
    recipe = folder / "one" / "arguments.yaml"  # of the time when RLOO was a script of its own
    lines = recipe.read_text().splitlines(keepends=True)
    (folder / "old.yaml").write_text("".join(line for line in lines if not line.startswith("algorithm")))
    run("grpo", f"--config {folder}/old.yaml --max_steps 3 --output_dir {folder}/whole")
    run("grpo", f"--resume_from {folder}/one --max_steps 3 --output_dir {folder}/longer")
    whole, longer = (json.loads((folder / name / "metrics.json").read_text()) for name in ("whole", "longer"))
    assert longer["kl"] == pytest.approx(whole["kl"], rel=1e-4) and longer["kl"] != figures["kl"]
    assert isinstance(load(folder / "one")("tok1 tok2", max_new_tokens=3), str)


@pytest.mark.parametrize("verb", ["ppo", "dpo", "reward", "grpo", "align --algorithm online_dpo"])
def test_rows_whose_licence_nobody_says_are_refused_by_every_verb(aligning, verb):
    folder, model, reviews, reward = aligning
    name, *further = verb.split()
    told = reward if name not in ("dpo", "reward") else ""
    with pytest.raises(InputError, match="--licences MIT: nothing says the licence of"):
        run(name, *further, model + reviews, told, f"--licences MIT --output_dir {folder}/run")


@pytest.mark.parametrize("script", ["ppo", "dpo", "reward", "grpo", "prefer"])
def test_the_recipe_of_another_script_is_refused(aligning, script):
    folder, model, reviews, reward = aligning
    told = "" if script in ("dpo", "reward") else reward
    with pytest.raises(InputError, match=f"--task sft.*{script}"):
        run(script, model + reviews, told, f"--task sft --output_dir {folder}/other")


def test_a_frontier_is_drawn_by_one_process(aligning, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        run("frontier", f"--output_dir {aligning[0]}/frontier")


def test_a_stopped_making_of_pairs_is_continued(aligning, capsys):
    folder, model, reviews, reward = aligning
    told = (
        model + reviews,
        reward,
        "--max_new_tokens 4 --prompt_tokens 3 --max_train_rows 6 --max_eval_rows 6",
    )
    run("prefer", *told, f"--output_dir {folder}/whole")
    run("prefer", f"--config {folder}/whole/arguments.yaml --output_dir {folder}/stopped")
    (folder / "stopped" / "test.jsonl").unlink()
    (folder / "stopped" / "train.jsonl").write_text("kept as it is")
    run("prefer", *told, f"--output_dir {folder}/stopped")
    assert (folder / "stopped" / "test.jsonl").read_bytes() == (folder / "whole" / "test.jsonl").read_bytes()
    assert (folder / "stopped" / "train.jsonl").read_text() == "kept as it is"
    (folder / "stopped" / "test.jsonl").unlink()
    with pytest.raises(InputError, match="other pairs.*max_new_tokens: 4 there, 5 now.*--output_dir"):
        run("prefer", *told, f"--max_new_tokens 5 --output_dir {folder}/stopped")
    with pytest.raises(InputError, match="train.jsonl and test.jsonl.*--output_dir"):
        run("prefer", *told, f"--output_dir {folder}/whole")


def test_a_stopped_run_is_continued(aligning, monkeypatch):
    folder, model, reviews, reward = aligning
    told = (model + reviews, PPO, reward, "--steps 3")
    run("ppo", *told, f"--output_dir {folder}/whole")
    from finetune.alignment.ppo_trainer import Learner

    learn, stopped = Learner.learn, []

    def learn_until_third(self, prompts):
        if self.step == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return learn(self, prompts)

    monkeypatch.setattr(Learner, "learn", learn_until_third)
    with pytest.raises(KeyboardInterrupt):
        run("ppo", *told, f"--output_dir {folder}/stopped")
    run("ppo", *told, f"--output_dir {folder}/stopped")
    logs = [
        [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    without_times = [
        [{k: v for k, v in entry.items() if not k.startswith("seconds")} for entry in log] for log in logs
    ]
    assert without_times[0] == without_times[1]
    weights = [(folder / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def on_two_processes(script: str, *told: str, wrapper: tuple[str, ...] = (), **environment: str) -> int:
    words = [word for part in told for word in part.split()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
                "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    command = [*launcher, *wrapper, str(ROOT / "scripts" / f"{script}.py"), *words]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, timeout=180, check=False
    ).returncode


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dpo", "reward"])
def test_a_run_of_two_processes_that_was_killed_is_continued_bit_by_bit(aligning, script):
    folder, model, _, _ = aligning
    lines = [
        json.dumps({"prompt": f"the {a} film", "chosen": f" {b} great", "rejected": f" bad {a}"})
        for a in WORDS
        for b in WORDS[:2]
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    told = (
        model + f"{folder}/pairs.jsonl",
        TRAINING,
        "--save_strategy steps --save_steps 2 --per_device_train_batch_size 4",
    )
    assert on_two_processes(script, *told, f"--output_dir {folder}/whole") == 0
    wrapper = (str(Path(__file__).parents[1] / "killed_run.py"),)
    assert on_two_processes(script, *told, f"--output_dir {folder}/killed", wrapper=wrapper, KILL_AT="4") != 0
    assert (folder / "killed" / "checkpoint-2" / "seal.json").is_file()
    assert on_two_processes(script, *told, f"--output_dir {folder}/killed") == 0
    weights = [(folder / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_prompt_longer_than_the_context_is_named(aligning):
    folder, model, reviews, reward = aligning
    with pytest.raises(InputError, match=r"64 positions.*--max_new_tokens"):
        run("ppo", model + reviews, PPO, reward, f"--max_new_tokens 100 --steps 1 --output_dir {folder}/long")
    with pytest.raises(InputError, match="--max_prompt_length"):
        run(
            "ppo", model + reviews, PPO, reward, f"--max_prompt_length 1 --steps 1 --output_dir {folder}/none"
        )


def test_a_folder_with_a_finished_or_another_run_is_refused(aligning):
    folder, model, reviews, reward = aligning
    told = (model + reviews, PPO, reward, f"--steps 1 --output_dir {folder}/ppo")
    run("ppo", *told)
    with pytest.raises(InputError, match="finished run.*--output_dir"):
        run("ppo", *told)
    with pytest.raises(InputError, match="not empty.*--output_dir"):
        run("prefer", model + reviews, reward, f"--output_dir {folder}/ppo")


@pytest.mark.parametrize("told", ["--kl_coeficient 1", "--kl_coef 1", "--value_coefficient 1"])
def test_misspelled_and_shortened_options_are_refused(aligning, told):
    folder, model, reviews, reward = aligning
    with pytest.raises(InputError, match="Unknown option"):
        run("ppo", model + reviews, PPO, reward, told, f"--output_dir {folder}/ppo")


@pytest.mark.parametrize(
    "body", ["[float('nan')] * len(answers)", "[0.5]", "None", "['good'] * len(answers)"]
)
def test_a_reward_that_gives_no_numbers_stops_the_run(aligning, body):
    folder, model, reviews, _ = aligning
    (folder / "bad.py").write_text(f"def bad(prompts, answers):\n    return {body}\n")
    with pytest.raises(InputError, match="Mend --reward"):
        run(
            "ppo",
            model + reviews,
            PPO,
            f"--reward function:{folder}/bad.py:bad --steps 1 --output_dir {folder}/ppo",
        )


SUMS = [
    {"prompt": f"the film {a} {b}", "answer": word}
    for word in WORDS[:6]
    for a, b in (("was", "very"), ("is", "not"))
]
SEEING = """
def right(prompts, completions, answer, **columns):
    with open(r"FILE", "a") as seen:
        seen.write(f"{len(prompts)} {len(answer)} {sorted(columns)}\\n")
    assert all(isinstance(text, str) for text in answer)
    pairs = enumerate(zip(answer, completions, strict=True))
    return [None if i == 0 else gold in text for i, (gold, text) in pairs]


async def later(prompts, completions, **columns):
    return [len(text) for text in completions]
"""


@pytest.mark.parametrize("verb", ["ppo", "grpo", "rloo", "prefer"])
def test_every_column_reaches_the_rewards_of_every_verb(aligning, verb):
    folder, model, _, _ = aligning
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    (folder / "seeing.py").write_text(SEEING.replace("FILE", str(folder / "seen")))
    text = f"{model.split()[1]}:{{text}},{{answer}}:|great|bad"
    rewards = (
        f"--reward function:{folder}/seeing.py:right function:{folder}/seeing.py:later same_number "
        f"prompt:{text}"
    )
    told = (
        model + f"{folder}/sums.jsonl",
        rewards,
        "--reward_weights 1 0.5 0.1 0.1 --normalise_rewards true",
    )
    group = (
        "--bf16 false --disable_tqdm true --max_completion_length 4 --max_steps 2 "
        "--per_device_train_batch_size 4 "
    )
    group += "--num_generations 4 --save_strategy no --held_out_prompts 4"
    options = {
        "ppo": PPO.replace("--prompt_tokens 3", "") + " --steps 2",
        "grpo": group,
        "rloo": group + " --algorithm rloo",
    }
    run(verb.replace("rloo", "grpo"), *told, options.get(verb, TINY), f"--output_dir {folder}/out")
    seen = (folder / "seen").read_text().splitlines()
    assert seen and all(line.split()[0] == line.split()[1] and "['prompt']" in line for line in seen)
    if verb != "prefer":
        log = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
        for name in ("right", "later", "same_number", "prompt"):
            assert all(f"rewards/{name}/{part}" in log[1] for part in ("mean", "std", "applies"))
        answers = [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]
        assert [line["step"] for line in answers] == [0, 2]
        assert {"before", "after", "difference", "warnings"} <= set(
            json.loads((folder / "out" / "alignment.json").read_text())
        )
        page = (folder / "out" / "report.html").read_text()
        assert all(
            said in page for said in ("Answers through time", "By prompt, the reward changed", "reward right")
        )


def test_an_answer_that_was_cut_is_marked_as_such(aligning):
    folder, model, reviews, reward = aligning
    run("prefer", model + reviews, reward, TINY, f"--output_dir {folder}/pairs")
    pairs = [json.loads(line) for line in (folder / "pairs" / "train.jsonl").read_text().splitlines()]
    assert all(isinstance(pair[f"{side}_ended"], bool) for pair in pairs for side in ("chosen", "rejected"))


def test_values_begin_as_the_reward_models_scores(aligning):
    folder, model, reviews, reward = aligning
    run(
        "prefer",
        model + reviews,
        reward,
        "--max_new_tokens 4 --prompt_tokens 3",
        f"--output_dir {folder}/pairs",
    )
    run("reward", model + f"{folder}/pairs", TRAINING, f"--output_dir {folder}/reward")
    told = (
        model + reviews,
        PPO,
        f"--steps 2 --reward model:{folder}/reward --value_from reward --gradient_checkpointing true",
    )
    run("ppo", *told, f"--output_dir {folder}/ppo")
    log = [json.loads(line) for line in (folder / "ppo" / "log.jsonl").read_text().splitlines()]
    assert log[1]["value"] != 0
    with pytest.raises(InputError, match="--value_from reward, and 0 of the rewards"):
        run("ppo", model + reviews, PPO, reward, f"--steps 2 --value_from reward --output_dir {folder}/other")
    with pytest.raises(InputError, match="--report_to names nonsense"):
        run(
            "ppo", model + reviews, PPO, reward, f"--steps 2 --report_to nonsense --output_dir {folder}/third"
        )
