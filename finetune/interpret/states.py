"""A model and its input → the last states of its body, whatever its head does with them. Knows models;
knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from finetune.errors import InputError
from finetune.models.heads import body, core


def last_states(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The states that a head reads, [batch, time, width]; of an encoder-decoder its encoder's.

    Raises:
        InputError: a model whose body gives no state to each place.
    """
    model, found = core(network), []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        # some bodies give one vector for a whole text, and no name to it
        found.append(None if isinstance(output, Tensor) else output.get("last_hidden_state"))

    # the body, below any head: its output has a name in all families
    reader = model.get_encoder() if model.config.is_encoder_decoder else body(model)
    hook = reader.register_forward_hook(keep)
    try:
        # the whole network, not the body alone: adapters and virtual tokens take part
        network(**batch)
    finally:
        hook.remove()
    if not found or found[0] is None or found[0].dim() != 3:
        raise InputError(f"A model of the kind '{model.config.model_type}' gives no state to each place")
    return found[0]
