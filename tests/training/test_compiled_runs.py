"""--torch_compile as a user sets it: the layers alone, and the run's weights are those of a plain one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from bounds import assert_near, weights
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import AutoModel

from finetune.cli.parser import parse
from finetune.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def train(model: Path, rows: Path, out: Path, *further: str) -> dict[str, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("train", SCRIPTS / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = (
        f"--model_name_or_path {model} --dataset_name {rows} --output_dir {out} --max_steps 4 --bf16 false "
        "--method full --per_device_train_batch_size 4"
    )
    module.main(*parse(module.main, [*told.split(), *further]))
    return weights(out)


# torch's compiler looks at what no backward pass fills
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_run_ends_with_a_plain_ones_weights(saved, review_file, tmp_path, monkeypatch):
    base = saved("bert", AutoModel)
    # masks drawn inside of a graph are others
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda given, *args, **kwargs: given)
    wanted = train(base, review_file, tmp_path / "plain")
    torch._dynamo.reset()
    counters.clear()
    found = train(base, review_file, tmp_path / "compiled", "--torch_compile_backend", "aot_eager")
    # The one number that the compiler is tried with; and with a mask, without one (no row was padded), and
    # where a length is by chance the width: no more, for both layers and all four steps.
    assert 1 < counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()
    # Adam divides by the size of a gradient: what cancels out to rounding moves as far as the rest
    assert_near(found, wanted, 1e-3)
    assert (tmp_path / "compiled" / "arguments.yaml").read_text().count("aot_eager") == 1


def test_a_run_without_a_compiler_is_refused_before_its_first_step(saved, review_file, tmp_path):
    lacking = inductor.patch({"cpp.cxx": (str(tmp_path / "none"),), "force_disable_caches": True})
    wanted = "^--torch_compile true: torch.compile fails here .*Install a C.. compiler .*, or leave it out$"
    with lacking, pytest.raises(InputError, match=wanted):
        train(saved("bert", AutoModel), review_file, tmp_path / "run", "--torch_compile", "true")
    torch._dynamo.reset()
