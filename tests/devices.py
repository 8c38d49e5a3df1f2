"""An accelerator's one rule, kept on a CPU: what was made without a device never meets what lies on one.

Tensors are followed by their storage: the model's and the batch's lie on the device once `to(device)` was
called on them, results lie where their arguments do, and what is made without `device=` lies on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# These take tensors of both sides: copies, and places to read at or write to.
MIXING = {
    aten._to_copy,
    aten.copy_,
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._local_scalar_dense,
}
MAKERS = {torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.arange, torch.empty,
torch.rand, torch.randn,
          torch.randint, torch.eye, torch.linspace, torch.randperm, torch.tril_indices,
          torch.triu_indices}  # fmt: skip


class StrayTensor(AssertionError):
    """A tensor on the host met one on the device."""


class OneDevice(TorchDispatchMode):
    """Follows every operation, and refuses those that a GPU would."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, Any] = {}  # storages on the device, alive, so that none takes another's address
        self.within = (
            0  # calls whose inside `Moves` can't see: what they make is taken to lie where it should
        )

    def put(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = [one for one in tensors if self.holds(one)]
        # a number in a tensor may lie on either side
        strays = [one for one in tensors if one.dim() and not self.holds(one)]
        if there and strays and func.overloadpacket not in MIXING:
            shapes = [tuple(one.shape) for one in strays]
            raise StrayTensor(
                f"{func}: {shapes} on the host, {[tuple(one.shape) for one in there]} on the device"
            )
        found = func(*args, **(kwargs or {}))
        if there or (self.within and not tensors):
            self.put(found)
        return found


class Moves(TorchFunctionMode):
    """Sees `to(device)` where it changes nothing, as it does on a CPU, and tensors that are made with
    a device.
    """

    def __init__(self, device: OneDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, inner = kwargs or {}, func not in MAKERS
        self.device.within += inner
        try:
            found = func(*args, **kwargs)
        finally:
            self.device.within -= inner
        told = kwargs.get("device") is not None or any(isinstance(one, torch.device) for one in args)
        if told and (func is Tensor.to or func in MAKERS):
            self.device.put(found)
        return found


@contextmanager
def one_device() -> Iterator[OneDevice]:
    device = OneDevice()
    with Moves(device), device:
        yield device
