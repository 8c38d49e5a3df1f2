"""A model → ExecuTorch's `.pte` for XNNPACK: the file that a phone's runtime reads. Knows the format; knows
no rows.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.adapters.onnx import silent
from finetune.errors import InputError

FILE, SHORTEST = "model.pte", 2


class _OneText(nn.Module):
    """What the program computes: ids (and token types) [1, time] → logits; a text alone has no padding."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # a cache would be an output of the program that nothing reads
        cached = "use_cache" in inspect.signature(network.forward).parameters
        self.further = {"use_cache": False} if cached else {}

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        # made inside, so that the program has one input less; a single text has no padding
        whole = torch.ones_like(input_ids)
        return self.network(input_ids=input_ids, attention_mask=whole, **types, **self.further)["logits"]


def save_executorch(network: Any, folder: Path, longest: int, types: bool = False) -> Path:
    """Write `model.pte`, for one text of 2 to `longest` tokens at a time.

    Args:
        types: whether texts come with token types, as pairs do.

    Raises:
        InputError: the model can't be traced or lowered.
    """
    # its import warns of its own deprecations
    with silent():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

    # an example of some length: the dimension below is what holds
    given = tuple(torch.ones(1, min(9, longest), dtype=torch.long) for _ in range(1 + types))
    length = {1: torch.export.Dim("time", min=SHORTEST, max=longest)}
    try:
        with silent(), torch.no_grad():
            program = torch.export.export(
                _OneText(network).eval(), given, dynamic_shapes=(length,) * len(given), strict=False
            )
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            content = lowered.to_executorch().buffer
    # whatever torch's tracer or a backend's pass says of a model that it doesn't take
    except Exception as error:
        # tracers' messages go on for pages; the first line names the cause
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{type(network).__name__} can't be exported to ExecuTorch: {first}") from error
    (folder / FILE).write_bytes(content)
    return folder / FILE
