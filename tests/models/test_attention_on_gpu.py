"""Packed attention on an accelerator: the CPU's numbers, nothing asked of the device, and a fallback
where there is no kernel.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from finetune import loss
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
        part.detach().cpu().float()
        for part in (found, *torch.autograd.grad(found.float().square().sum(), given))
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


def test_attention_and_losses_ask_nothing_of_the_device():
    """transformers itself asks once a micro-batch, whether positions restart."""
    parts = [part.cuda().requires_grad_() for part in line(2, torch.bfloat16)]
    states = torch.randn(4, 30, device="cuda", requires_grad=True)
    labels = torch.tensor([[-100, 3, 4], [5, -100, 6]], device="cuda")
    edges = EDGES.cuda()

    def step() -> None:
        found, _ = packed.attend(None, *parts, None, cu_seq_lens_q=edges, max_length_q=109)
        places = loss.labelled_places(labels, 4)
        gold = labels[places[:, 0], places[:, 1]]
        losses = loss.placed_cross_entropy(loss.token_costs(states, gold), labels)
        (found.float().square().sum() + losses.sum()).backward()

    step()  # probes, and memory that is taken for the first time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it doesn't see every kind
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
