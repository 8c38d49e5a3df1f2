"""The repeated layers of a model, compiled for training. Knows torch's compiler and modules; knows no
rows and no Trainer.

Between its products a layer reads and writes all its states again and again (norms, rotations, gates,
sums): on a card that takes as long as the products, and most of a step's memory. Compiled, neighbours are one
pass.
A layer is compiled once, for lines of every length, and stands for all of its kind; a whole model would be
compiled anew for each length of line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch
import torch._inductor
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import AttentionInterface

from finetune.errors import InputError
from finetune.models.attention import packed


def check_compiler(asked: str, instead: str, place: torch.device, backend: str, mode: str | None) -> None:
    """torch.compile works here: asked with one number, as what it lacks is known without a model.

    Args:
        asked, instead: for the error: the option that compiles and why, and what to do without a compiler.
        place: where it shall compute.
        backend, mode: torch.compile's.

    Raises:
        InputError: a name that is none, or it fails, mostly for want of a C++ compiler.
    """
    # accelerate, which is told the name too, knows fewer of them than torch
    backends = {one.value.lower() for one in DynamoBackend} & {*torch._dynamo.list_backends(None)}
    modes = torch._inductor.list_mode_options()
    if backend not in backends:
        raise InputError(
            f"Got --torch_compile_backend {backend}; wanted one of {', '.join(sorted(backends))}"
        )
    if mode is not None and mode not in modes:
        raise InputError(f"Got --torch_compile_mode {mode}; wanted one of {', '.join(modes)}")
    try:
        torch.compile(torch.neg, backend=backend, mode=mode)(torch.zeros(1, device=place))
    except (RuntimeError, OSError, ImportError) as error:
        # the rest of its message is for those who mend PyTorch
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{asked}torch.compile fails here ({reason}). Install a C++ compiler (g++), or {instead}"
        ) from error


def compile_layers(network: Any, backend: str = "inductor", mode: str | None = None) -> int:
    """Have each repeated layer of a model compute by torch.compile where it is trained; evaluation and
    writing, whose caches and lengths differ from token to token, stay as they are.

    Args:
        network: on the device that it is trained on.
        backend, mode: torch.compile's.

    Returns:
        How many layers there are.

    Raises:
        InputError: there are none.
    """
    layers = list(repeated(network))
    if not layers:
        raise InputError(
            f"--torch_compile true compiles the layers that a model repeats, and {type(network).__name__} "
            "repeats none. Leave it out"
        )
    _prepare_attention(next(network.parameters()).device)
    # Lines differ in length, and one graph serves all where the first is not taken for a constant. Pictures
    # don't: what may be of any size takes minutes to reason about there (windows of windows in Swin).
    dynamic = True if network.main_input_name == "input_ids" else None
    for layer in layers:
        _compile(layer, backend, mode, dynamic)
    return len(layers)


def _prepare_attention(place: torch.device) -> None:
    """Packed attention inside of a layer's graph on a card; elsewhere, where it reads the texts' borders,
    between two graphs.
    """
    if place.type != "cuda":
        AttentionInterface.register(packed.NAME, torch.compiler.disable(packed.attend))
    # asked while a graph is made and never inside of it
    for asked in (packed.kernel_serves, packed.wants_grouping_said):
        torch.compiler.assume_constant_result(asked)


def repeated(network: nn.Module) -> Iterator[nn.Module]:
    """Members of lists of several modules of one class, the outermost lists alone."""
    for child in network.children():
        kinds = {type(one) for one in child} if isinstance(child, nn.ModuleList) else set()
        if len(kinds) == 1 and len(child) > 1:  # type: ignore[arg-type]
            yield from child  # type: ignore[misc]
        else:
            yield from repeated(child)


def _compile(layer: Any, backend: str, mode: str | None, dynamic: bool | None) -> None:
    plain = layer.forward
    fast = torch.compile(plain, dynamic=dynamic, backend=backend, mode=mode)
    learns = any(weight.requires_grad for weight in layer.parameters())

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        if learns and args and isinstance(args[0], Tensor) and not args[0].requires_grad:
            # else a first layer, whose input a frozen embedding gives, would be compiled for itself
            args = (args[0].detach().requires_grad_(args[0].is_floating_point()), *args[1:])
        return fast(*args, **kwargs)

    # on the instance, inside of what hooks, shards and recomputed activations put around a layer's call
    layer.forward = forward
