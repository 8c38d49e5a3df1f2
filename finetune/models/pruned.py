"""A model with fewer of its layers. Knows how families hold layers; knows no rows and no tuning method."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune.errors import InputError

KEPT = "kept_layers"  # entry of a pruned model's configuration: which layers of the whole model it has


def chosen_layers(wanted: Sequence[int], there: int) -> list[int]:
    """Numbers of the layers to keep: one number is how many, evenly spread from the first to the last (as
    Sanh et al. 2019 start a student of every second layer); several are the layers themselves.

    Raises:
        InputError: more than there are, none, one twice or out of order.
    """
    if len(wanted) == 1:
        many = wanted[0]
        if not 1 <= many <= there:
            raise InputError(f"Got --keep_layers {many}; wanted 1 to {there}, the layers of this model")
        if many == 1:
            return [0]
        # the first and the last are always among them
        return [round(place * (there - 1) / (many - 1)) for place in range(many)]
    # rising: the order of layers is the model's, and is not to be changed in passing
    if list(wanted) != sorted(set(wanted)) or not 0 <= wanted[0] <= wanted[-1] < there:
        said = " ".join(map(str, wanted))
        raise InputError(f"Got --keep_layers {said}; wanted numbers from 0 to {there - 1}, rising")
    return list(wanted)


def layer_stack(network: Any) -> str:
    """Name of the one list that holds all layers of a model.

    Raises:
        InputError: it has none, or several.
    """
    config = network.config.get_text_config()
    # some families have it under a name of their own, which the configuration translates
    many = config.to_dict().get("num_hidden_layers", getattr(config, "num_hidden_layers", None))
    found = [
        name
        # norms and heads aren't lists; a list of the right length is the stack
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == many
    ]
    # two stacks, or a language model inside another one, can't be told apart by one number
    if config.is_encoder_decoder or len(found) != 1 or config is not network.config:
        raise InputError(
            f"--keep_layers can't prune {type(network).__name__} ('{config.model_type}'): wanted one "
            "stack of layers, as BERT's and decoders' are. Leave it out, or set --model_name_or_path"
        )
    return found[0]


def with_fewer_layers(network: Any, wanted: Sequence[int]) -> Any:
    """A model of the same kind with some of the layers and the same weights in them; its configuration says
    how many it has, and in `kept_layers` which.

    Raises:
        InputError: numbers that it doesn't have, a family whose layers aren't one stack, or whose
            configuration says more of each layer than can be cut.
    """
    stack = layer_stack(network)
    there = len(network.get_submodule(stack))
    # a folder of a pruned model is loaded with the options that it was made by
    if list(wanted) in ([there], network.config.to_dict().get(KEPT)):
        return network  # saved without the others already
    kept = chosen_layers(wanted, there)
    config = copy.deepcopy(network.config)
    # entries by layer (kinds of attention), which would be read by the new numbers
    lists = {
        name: [value[layer] for layer in kept]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == there and "layer" in name
    }
    config.update({"num_hidden_layers": len(kept), KEPT: kept, **lists})
    try:
        smaller = (
            # made anew and not cut out of the old: layers know their own number
            type(network)
            ._from_config(
                config, dtype=network.dtype, attn_implementation=network.config._attn_implementation
            )
            .eval()
        )
        # strictly: a weight that finds no place is an error and not a fresh one
        smaller.load_state_dict(_renumbered(network.state_dict(), stack, kept))
        smaller.tie_weights()
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"--keep_layers can't prune {type(network).__name__} ('{config.model_type}'): {first}"
        ) from error
    # settings of generation are no part of the configuration that it was made from
    if network.can_generate():
        smaller.generation_config = network.generation_config
    return smaller.train(network.training)


def _renumbered(state: dict[str, torch.Tensor], stack: str, kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """Weights under the names that they have among fewer layers; those of the others are left out."""
    own = re.compile(rf"{re.escape(stack)}\.(\d+)\.(.+)")
    place = {layer: number for number, layer in enumerate(kept)}
    found = {}
    for name, tensor in state.items():
        match = own.fullmatch(name)
        if match is None:
            found[name] = tensor
        elif int(match[1]) in place:
            found[f"{stack}.{place[int(match[1])]}.{match[2]}"] = tensor
    return found
