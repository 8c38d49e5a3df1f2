"""`load` knows every task and every objective; the artefact of each task is asked where its task is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from bounds import assert_near
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from finetune.adapters import Embedder, Writer, load
from finetune.adapters.predictor import SHAPES
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.tasks.table import TASKS

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_every_task_has_an_object():
    # the last four have objects of their own kind
    others = {"classification", "pairs", "seq2seq", "sft", "forecast"}
    assert (set(SHAPES) - {"number of two"}) | others == set(TASKS)


@pytest.mark.parametrize(
    ("objective", "family", "kind"),
    [("contrastive", "bert", AutoModel), ("clm", "llama", AutoModelForCausalLM),
     ("mlm", "bert", AutoModelForMaskedLM)],
)  # fmt: skip
def test_objectives_have_an_object_or_say_why_not(objective, family, kind, saved, review_file, tmp_path):
    spec = importlib.util.spec_from_file_location("pretrain", SCRIPTS / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # two views of a text are told apart by dropout
    base = saved(family, kind, **({"hidden_dropout_prob": 0.1} if family == "bert" else {}))
    out = tmp_path / "run"
    given = (
        f"--objective {objective} --model_name_or_path {base} --dataset_name {review_file} "
        f"--output_dir {out} --method lora --max_steps 2 --bf16 false --save_strategy no --eval_strategy no "
        "--max_length 16"
    )
    module.main(*parse(module.main, given.split()))
    if objective == "mlm":
        with pytest.raises(InputError, match="pretrained by 'mlm', which answers nothing by itself"):
            load(out)
        return
    first, second = (load(out, device="cpu") for _ in range(2))
    if objective == "clm":
        assert isinstance(first, Writer)
        assert first("the film", max_new_tokens=4) == second("the film", max_new_tokens=4)
        return
    assert isinstance(first, Embedder)
    one, other = first(["the film", "a story"]), second(["the film", "a story"])
    assert_near(other, one)
    assert_near(one.norm(dim=1), torch.ones(2))
