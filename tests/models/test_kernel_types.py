"""No mixture of types that autocast leaves reaches a kernel of a GPU: packed attention goes its way for
other devices with tensors that hold nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.models.attention import packed

PRODUCTS = ("varlen", "scaled_dot_product", "::bmm", "::baddbmm", "::mm")


class TypesOfProducts(TorchDispatchMode):
    """Notes the floating types that each product was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if any(part in name for part in PRODUCTS):
            tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
            self.seen.append((name, {one.dtype for one in tensors if one.is_floating_point()}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_hands_on_one_type(kernel, window, monkeypatch):
    # what autocast computes in on a GPU; there is none to turn it on for
    monkeypatch.setattr(packed, "computed_in", lambda _: torch.bfloat16)
    monkeypatch.setattr(packed, "_has_kernel", lambda *_: kernel)
    types = TypesOfProducts()
    with types:
        # as rotary positions and projections leave them under autocast
        query, key, value = (
            torch.empty(1, heads, 10, 16, device="meta", dtype=dtype)
            for heads, dtype in ((4, torch.float32), (2, torch.float32), (2, torch.bfloat16))
        )
        edges = torch.empty(4, dtype=torch.int32, device="meta")
        found, _ = packed.attend(
            torch.nn.Identity(), query, key, value, None,
            cu_seq_lens_q=edges, max_length_q=5, sliding_window=window,
        )  # fmt: skip
    assert found.shape == (1, 10, 4, 16) and found.device.type == "meta"
    assert types.seen and all(len(dtypes) == 1 for _, dtypes in types.seen)
    # the kernel takes no float32
    assert not kernel or types.seen[0][1] == {torch.bfloat16}
