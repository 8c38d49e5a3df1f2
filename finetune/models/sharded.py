"""Models whose weights lie in shards on several processes (FSDP2). Knows torch's tensors of shards; knows no
Trainer.

Nothing that is written, hashed or merged can be read from a shard. At the end of a run the weights are put
together again,
one at a time: on the main process in its memory, on the others not at all.
"""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(network: nn.Module) -> bool:
    """Whether weights lie in shards: every call of the model is then one that all processes make together."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def name_layers(network: nn.Module) -> None:
    """Tell accelerate which layers to shard, unless the launcher has; call before it makes an Accelerator.

    Left alone, it takes transformers' list of modules not to be split. That of BERT's kin, ModernBERT and ViT
    holds the module around the input embeddings, which accelerate shards by themselves, and fails at; that of
    others holds classes that this model lacks.
    """
    listed = set(getattr(network, "_no_split_modules", None) or ())
    embeddings = network.get_input_embeddings()  # type: ignore[operator]
    # by what a module holds and not by its name: families call it as they like
    around = {type(module).__name__ for module in network.modules() if embeddings in module.modules()}
    there = {type(module).__name__ for module in network.modules()}
    if layers := sorted(listed & there - around):
        os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", ",".join(layers))
    else:  # the network as a whole is sharded then
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "NO_WRAP"


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
