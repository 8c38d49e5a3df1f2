"""Models whose weights lie in shards on several processes (FSDP2). Knows torch's tensors of shards; knows no
Trainer.

Nothing that is written, hashed or merged can be read from a shard. At the end of a run the weights are put
together again,
one at a time: on the main process in its memory, on the others not at all.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(network: nn.Module) -> bool:
    """Whether weights lie in shards: every call of the model is then one that all processes make together."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@torch.no_grad()
def make_whole(network: nn.Module) -> None:
    """Put the weights of a sharded network together in place; call on every process, when the last forward is
    done.

    On the main process it can then be saved and hashed like any other; elsewhere its weights are empty.
    Weights that several modules share stay shared.
    """
    if not is_sharded(network):
        return
    # by parameter: tied weights are put together once, and stay one
    main, whole = PartialState().is_main_process, {}
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else its own hook would do it as soon as the weights are asked for
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if parameter not in whole:
                    tensor = parameter.full_tensor()  # all processes take part, in one order
                    tensor = tensor.cpu() if main else torch.empty(0, dtype=tensor.dtype)
                    whole[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                module.register_parameter(name, whole[parameter])
