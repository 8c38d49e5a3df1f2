"""Models in shards (accelerate's FSDP2), as the scripts share them, on meshes of CPUs: the weights are those
of one process, and a run that was killed goes on, on as many processes as there are then."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bounds import difference
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from finetune.artefacts.checkpoints import checkpoints

ROOT = Path(__file__).parents[2]
SHARDED, KILLED = ROOT / "tests" / "sharded_run.py", ROOT / "tests" / "killed_run.py"
SHARDS, ZERO = (ROOT / "scripts" / "accelerate" / f"{name}.yaml" for name in ("fsdp2", "zero2"))
ROWS = {
    "sft": [{"prompt": f"say {'film ' * (n % 5)}", "completion": f"a great film {n}"} for n in range(40)],
    "dpo": [
        {"prompt": f"say {'film ' * (n % 5)}", "chosen": f" film {n}", "rejected": " story"}
        for n in range(40)
    ],
    "pretrain": [{"text": f"a great film {n} of its own kind{' and more' * (n % 3)}"} for n in range(40)],
}
ROWS["reward"] = ROWS["dpo"]
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, review_file):
    """Verb, folder, further options → what came of the verb's script: alone, or in shards on processes."""

    def made(
        verb: str, folder: str, *further: object, shards: int = 0, config: Path = SHARDS, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        rows, base, causal = review_file, tmp_path / f"base-{verb}", verb != "train"
        if verb in ROWS:
            rows = tmp_path / verb
            rows.mkdir(exist_ok=True)
            lines = [json.dumps(row) + "\n" for row in ROWS[verb]]
            (rows / "train.jsonl").write_text("".join(lines[:32]))
            (rows / "test.jsonl").write_text("".join(lines[32:]))
        if not base.is_dir():
            family, kind = ("llama", AutoModelForCausalLM) if causal else ("bert", AutoModel)
            make_model(family, kind).save_pretrained(base)
            make_tokenizer(family).save_pretrained(base)
        options = {
            "model_name_or_path": base, "dataset_name": rows, "output_dir": tmp_path / folder,
            "bf16": "false", "max_steps": 6, "save_strategy": "steps", "save_steps": 2,
            "eval_strategy": "steps", "eval_steps": 3,
            "learning_rate": 1e-2, "max_length": 24, "per_device_train_batch_size": 8 // max(shards, 1),
            **({"objective": "clm"} if verb == "pretrain" else {}),
        }  # fmt: skip
        words = [str(ROOT / "scripts" / f"{verb}.py"), *(str(part) for option in options.items() for part in
                 (f"--{option[0]}", option[1])), *map(str, further)]  # fmt: skip
        if shards:
            stages = [SHARDED, *([KILLED] if "KILL_AT" in environment else [])]
            launcher = [
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                config,
                "--num_processes",
                shards,
            ]
            words = [*map(str, [*launcher, "--main_process_port", 0, *stages]), *words]
        # what stands on the path beside, such as DeepSpeed, stays there
        places = [str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
        paths["HF_HOME"] = str(tmp_path / "hub")  # reference log-probabilities of another test would be taken
        words.insert(0, sys.executable)
        return subprocess.run(
            words, env=os.environ | paths | environment, capture_output=True, text=True, timeout=300
        )

    return made


def done(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr[-3000:]


def weights(folder: Path) -> dict:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize(
    ("verb", "method", "later"),
    [
        ("train", "full", 1), ("sft", "lora", 2), ("pretrain", "full", 1), ("dpo", "lora", 2),
        ("dpo", "full", 1), ("reward", "lora", 2),
    ],
)  # fmt: skip
def test_a_run_in_shards_is_the_whole_one_killed_and_gone_on_with(run, tmp_path, verb, method, later):
    done(run(verb, "whole", "--method", method))
    killed = run(verb, "shared", "--method", method, shards=2, KILL_AT="5")
    assert killed.returncode != 0
    assert [path.name for path in checkpoints(tmp_path / "shared")] == ["checkpoint-4", "checkpoint-2"], (
        killed.stderr[-3000:]
    )
    done(run(verb, "shared", "--method", method, shards=later))
    whole, shared = weights(tmp_path / "whole"), weights(tmp_path / "shared")
    # Adam divides a gradient by its own size, so that the rounding of those next to nothing shows
    assert difference(shared, whole) < 1e-4
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("shared", "whole")]
    assert figures[0]["loss" if verb != "reward" else "margin"] == pytest.approx(
        figures[1]["loss" if verb != "reward" else "margin"], rel=1e-4
    )


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(("verb", "method"), [("train", "full"), ("dpo", "lora")])
def test_a_run_under_zero_is_the_whole_one_killed_and_gone_on_with(run, tmp_path, verb, method):
    on_zero = {"config": ZERO, "DS_ACCELERATOR": "cpu"}
    done(run(verb, "whole", "--method", method))
    killed = run(verb, "shared", "--method", method, shards=2, KILL_AT="5", **on_zero)
    assert killed.returncode != 0
    assert [path.name for path in checkpoints(tmp_path / "shared")] == ["checkpoint-4", "checkpoint-2"]
    # its parts of the optimizer's states fit as many processes as wrote them
    refused = run(verb, "shared", "--method", method, shards=1, **on_zero)
    assert refused.returncode != 0 and "written by 2 processes" in refused.stderr, refused.stderr[-2000:]
    done(run(verb, "shared", "--method", method, shards=2, **on_zero))
    assert difference(weights(tmp_path / "shared"), weights(tmp_path / "whole")) < 1e-4
