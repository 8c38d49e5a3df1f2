"""Packed attention on an accelerator: the CPU's numbers, nothing asked of the device, and a fallback where there is no kernel."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune import loss
from finetune.data import collate
from finetune.methods import attach
from finetune.models import heads
from finetune.models.attention import packed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
EDGES = torch.tensor([0, 40, 41, 150, 200], dtype=torch.int32)


def line(groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, 200, 64, generator=generator).to(dtype)
        for heads in (4, 4 // groups, 4 // groups)
    ]


def attended(parts: list[torch.Tensor], place: str, **options) -> tuple[torch.Tensor, ...]:
    """Output and gradients, on the CPU."""
    given = [part.to(place).requires_grad_() for part in parts]
    found, _ = packed.attend(None, *given, None, cu_seq_lens_q=EDGES.to(place), max_length_q=109, **options)
    return tuple(
        part.cpu().float() for part in (found, *torch.autograd.grad(found.float().square().sum(), given))
    )


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_and_gradients_are_the_cpus(dtype, groups, window):
    parts = line(groups, dtype)
    wanted = attended([part.double() for part in parts], "cpu", sliding_window=window)
    found = attended(parts, "cuda", sliding_window=window)
    for one, other in zip(found, wanted, strict=True):
        near = 1e-4 if dtype == torch.float32 else 0.02
        assert float((one - other).norm() / other.norm()) < near


@pytest.mark.parametrize("groups", [1, 4])
def test_the_kernel_is_there_on_cards_since_ampere(groups):
    if torch.cuda.get_device_capability() >= (8, 0):
        assert packed._has_kernel(torch.device("cuda", 0), torch.bfloat16, 64, groups)


def test_dropout_takes_the_padded_rows():
    found = attended(line(2, torch.bfloat16), "cuda", dropout=0.5)
    assert all(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_asks_nothing_of_the_device(method):
    network = make_model("llama", AutoModelForCausalLM).cuda()
    packed.pack(network)
    tuned = attach(network, method, None, "CAUSAL_LM").cuda()
    rows = [
        {"input_ids": [8, 9, 10, 11], "labels": [-100, 10, 11, 6]},
        {"input_ids": [12, 13], "labels": [-100, 6]},
    ]
    batch = {
        k: v.cuda() if torch.is_tensor(v) else v
        for k, v in collate.packed(make_tokenizer("llama"))(rows).items()
    }
    labels = batch.pop("labels")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss.placed_cross_entropy(heads.packed(tuned, batch, labels), labels).sum().backward()

    step()  # probes, and memory that is taken for the first time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it doesn't see every kind
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")
