"""Models in shards (accelerate's FSDP2), as the scripts share them, on meshes of CPUs: the weights are those
of one process, and a run that was killed goes on, on as many processes as there are then."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from bounds import difference, weights
from conftest import WORDS, make_model, make_tokenizer
from forking import KILLED, ROOT, SHARDED
from transformers import AutoModel, AutoModelForCausalLM

from finetune.artefacts.checkpoints import checkpoints

SHARDS, ZERO = (ROOT / "scripts" / "accelerate" / f"{name}.yaml" for name in ("fsdp2", "zero2"))
ASKED = [f"say {'film ' * (n % 5)}" for n in range(40)]
ANSWERS = [f" {WORDS[n % 29]} {'very ' * (n % 3)}{WORDS[7 * n % 29]}" for n in range(40)]
PAIRS = [
    {"prompt": asked, "chosen": answer, "rejected": " story"}
    for asked, answer in zip(ASKED, ANSWERS, strict=True)
]
ROWS = {
    "sft": [{"prompt": asked, "completion": f"a great film {n}"} for n, asked in enumerate(ASKED)],
    "pretrain": [{"text": f"a great film {n} of its own kind{' and more' * (n % 3)}"} for n in range(40)],
    "dpo": PAIRS,
    "reward": PAIRS,
    "kto": [
        {"prompt": asked, "completion": ANSWERS[n], "label": n % 2 == 0} for n, asked in enumerate(ASKED)
    ],
    "attributes": [
        {"prompt": asked, "response": ANSWERS[n], "good": n % 5, "long": n % 3}
        for n, asked in enumerate(ASKED)
    ],
    # one step or two, so that processes read unequal numbers of them
    "process": [
        {"prompt": asked, "completions": [" a film", f" of {n}"][: 1 + n % 2],
         "labels": [True, n % 3 == 0][: 1 + n % 2]}
        for n, asked in enumerate(ASKED)
    ],
}  # fmt: skip
FURTHER = {"pretrain": ["--objective", "clm"], "attributes": ["--attributes", "good", "long"]}
FIGURES = dict.fromkeys(("train", "sft", "pretrain", "dpo", "dpo kto"), "loss") | {"reward": "margin"}
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, review_file, forking):
    """Verb or algorithm of it, folder, further options → what came of it: alone, or in shards."""

    def made(
        verb: str, folder: str, *further: object, shards: int = 0, config: Path = SHARDS, **told: str
    ) -> Any:
        verb, _, algorithm = verb.partition(" ")
        rows, base, form = review_file, tmp_path / f"base-{verb}", algorithm if algorithm in ROWS else verb
        if form in ROWS:
            rows = tmp_path / form
            rows.mkdir(exist_ok=True)
            lines = [json.dumps(row) + "\n" for row in ROWS[form]]
            # five rows are left over in an epoch; kto's estimate wants whole steps
            (rows / "train.jsonl").write_text("".join(lines[: 32 if form == "kto" else 29]))
            (rows / "test.jsonl").write_text("".join(lines[32:]))
        if not base.is_dir():
            family, kind = ("bert", AutoModel) if verb == "train" else ("llama", AutoModelForCausalLM)
            make_model(family, kind).save_pretrained(base)
            make_tokenizer(family).save_pretrained(base)
        options = {
            "model_name_or_path": base, "dataset_name": rows, "output_dir": tmp_path / folder,
            "bf16": "false", "max_steps": 6, "save_strategy": "steps", "save_steps": 2,
            "eval_strategy": "steps", "eval_steps": 3,
            "learning_rate": 1e-2, "max_length": 24, "global_batch_size": 8,
            # kto's estimate is of the rows that are computed at once
            "per_device_train_batch_size": 8 if form == "kto" and not shards else 4,
            **({"algorithm": algorithm} if algorithm else {}),
        }  # fmt: skip
        words = [ROOT / "scripts" / f"{verb}.py", *FURTHER.get(form, []), *further]
        words += [part for name, value in options.items() for part in (f"--{name}", value)]
        # reference log-probabilities of another test would be taken
        told["HF_HOME"] = str(tmp_path / "hub")
        if not shards:
            return forking.run(words, **told)
        stages = [SHARDED, *([KILLED] if "KILL_AT" in told else [])]
        return forking.run([*stages, *words], shards, config, **told)

    return made


def done(finished: Any) -> None:
    assert finished.returncode == 0, finished.stderr[-3000:]


@pytest.mark.parametrize(
    ("verb", "method", "later"),
    [
        ("train", "full", 1), ("sft", "lora", 1), ("pretrain", "full", 1), ("dpo", "lora", 2),
        ("dpo", "full", 1), ("reward", "lora", 1),
        ("dpo kto", "lora", 2), ("dpo kto", "full", 1), ("dpo orpo", "full", 2), ("dpo cpo", "lora", 1),
        ("dpo simpo", "full", 2), ("reward attributes", "full", 1), ("reward process", "lora", 2),
    ],
)  # fmt: skip
def test_a_run_in_shards_is_the_whole_one_killed_and_gone_on_with(run, tmp_path, verb, method, later):
    done(run(verb, "whole", "--method", method))
    killed = run(verb, "shared", "--method", method, shards=2, KILL_AT="6")
    assert killed.returncode != 0
    assert [path.name for path in checkpoints(tmp_path / "shared")] == ["checkpoint-4", "checkpoint-2"], (
        killed.stderr[-3000:]
    )
    done(run(verb, "shared", "--method", method, shards=later))
    whole, shared = weights(tmp_path / "whole"), weights(tmp_path / "shared")
    # Adam divides a gradient by its own size, so that the rounding of those next to nothing shows
    assert difference(shared, whole) < 1e-4
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("shared", "whole")]
    # of orpo and cpo TRL's evaluation is a mean of its batches' means, whose rows differ
    if figure := FIGURES.get(verb):
        assert figures[0][figure] == pytest.approx(figures[1][figure], rel=1e-4)


@pytest.mark.parametrize(("verb", "method"), [("sft", "lora"), ("train", "full")])
def test_compiled_layers_in_shards_learn_the_same(run, tmp_path, verb, method):
    done(run(verb, "whole", "--method", method))
    done(run(verb, "shared", "--method", method, "--torch_compile_backend", "aot_eager", shards=2))
    assert difference(weights(tmp_path / "shared"), weights(tmp_path / "whole")) < 1e-4


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(
    ("verb", "method", "stage"),
    [
        ("train", "full", 2),
        ("dpo", "lora", 2),
        ("pretrain", "full", 2),
        ("sft", "lora", 2),
        ("sft", "lora", 1),
    ],
)
def test_a_run_under_zero_is_the_whole_one_killed_and_gone_on_with(run, tmp_path, verb, method, stage):
    config = tmp_path / "zero.yaml"
    config.write_text(ZERO.read_text().replace("zero_stage: 2", f"zero_stage: {stage}"))
    on_zero = {"config": config, "DS_ACCELERATOR": "cpu"}
    done(run(verb, "whole", "--method", method))
    killed = run(verb, "shared", "--method", method, shards=2, KILL_AT="5", **on_zero)
    assert killed.returncode != 0
    found = [path.name for path in checkpoints(tmp_path / "shared")]
    assert found == ["checkpoint-4", "checkpoint-2"], killed.stderr[-2000:]
    # its parts of the optimizer's states fit as many processes as wrote them
    refused = run(verb, "shared", "--method", method, shards=1, **on_zero)
    assert refused.returncode != 0 and "written by 2 processes" in refused.stderr, refused.stderr[-2000:]
    done(run(verb, "shared", "--method", method, shards=2, **on_zero))
    assert difference(weights(tmp_path / "shared"), weights(tmp_path / "whole")) < 1e-4
