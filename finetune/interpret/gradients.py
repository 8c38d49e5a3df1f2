"""A model and one input → what its answer hangs on: integrated gradients and gradients through time. Knows
models and captum; knows no files and no pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.errors import InputError
from finetune.interpret.states import last_states
from finetune.models.heads import core


def answer(network: Any, batch: Mapping[str, Tensor], target: int | None = None) -> tuple[int, Tensor]:
    """The logit that an input's answer hangs on: of a class, or of a language model's next token.

    Args:
        target: the class or token (default: the one that the model gives).

    Returns:
        The target, and its logit [batch].
    """
    logits = network(**batch)["logits"]
    # [batch, time, vocabulary] of a language model: what comes next
    logits = logits[:, -1] if logits.dim() == 3 else logits
    if target is None:
        target = int(logits[0].argmax())
    if not 0 <= target < logits.shape[-1]:
        raise InputError(f"Class {target}; the model has {logits.shape[-1]} (--target)")
    return target, logits[:, target]


def integrated_gradients(
    network: Any, batch: Mapping[str, Tensor], target: int, baseline: Tensor, steps: int = 64
) -> tuple[Tensor, float]:
    """How much each place of an input adds to its logit (Sundararajan et al. 2017), by captum.

    Args:
        batch: one input, under `input_ids` or `pixel_values`.
        baseline: an input of the same shape that says nothing: pad tokens, a grey picture.
        steps: points of the integral between baseline and input.

    Returns:
        Attributions [time] (pixels: [height, width]), and what is missing to completeness: their sum less the
        difference of the two logits, as a share of that difference.

    Raises:
        InputError: captum isn't installed, or no gradient goes back to what the model reads.
    """
    name = "pixel_values" if "pixel_values" in batch else "input_ids"
    _check_vectors(network, batch, name)
    if importlib.util.find_spec("captum") is None:
        raise InputError("Integrated gradients come with captum: pip install 'finetune-and-prompt[show]'")
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    rest = {key: value for key, value in batch.items() if key != name}

    def logit(given: Tensor) -> Tensor:
        # captum asks for several points of the path at once
        repeated = {key: value.repeat(len(given), *[1] * (value.dim() - 1)) for key, value in rest.items()}
        return answer(network, {name: given, **repeated}, target)[1]

    way: Any = IntegratedGradients(logit)
    if name == "input_ids":
        # ids can't be scaled between baseline and input: the path is one of embeddings
        way = LayerIntegratedGradients(logit, network.get_input_embeddings())
    found, missing = way.attribute(
        batch[name], baselines=baseline, n_steps=steps, internal_batch_size=8, return_convergence_delta=True
    )
    with torch.no_grad():
        # what attributions must sum to
        apart = logit(batch[name]) - logit(baseline)
    # over channels, or over the width of the embeddings
    summed = found[0].sum(0) if name == "pixel_values" else found[0].sum(-1)
    return summed.detach().float().cpu(), float((missing / apart.abs().clamp_min(1e-12)).abs().max())


def _check_vectors(network: Any, batch: Mapping[str, Tensor], name: str) -> None:
    """What the model reads goes through vectors, to which gradients go back.

    Raises:
        InputError: it counts its tokens.
    """
    # pixels are numbers already
    if name == "pixel_values":
        return
    asked: list[bool] = []
    hook = network.get_input_embeddings().register_forward_hook(lambda *_: asked.append(True))
    try:
        with torch.no_grad():
            network(**batch)
    finally:
        hook.remove()
    if not asked:
        raise InputError(
            f"A model of the kind '{core(network).config.model_type}' counts its words, and no gradient goes "
            "back to a count. /v1/attribute of `finetune serve` leaves out word by word instead"
        )


def gradients_through_time(network: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Norm of the gradient that the last place's state sends back to each input, [time]: it fades with the
    distance in a plain recurrent network and doesn't in an LSTM that has learnt to keep (Hochreiter and
    Schmidhuber 1997; Pascanu et al. 2013, section 2).

    The gradient is of the state's own norm, so that no head and no label takes part.
    """
    kept: list[Tensor] = []

    def keep(_module: Any, _args: Any, out: Tensor) -> Tensor:
        # cut from the table, so that the gradient ends at the inputs themselves
        kept.append(out.detach().requires_grad_())
        return kept[-1]

    inner = core(network)
    frozen = {name: weight.requires_grad for name, weight in inner.named_parameters()}
    # The source's own table: BART's encoder has one of its own beside the shared one, whose hook never runs.
    source = inner.get_encoder() if inner.config.is_encoder_decoder else inner
    hook = source.get_input_embeddings().register_forward_hook(keep)
    try:
        inner.requires_grad_(False)  # the inputs' gradients alone are wanted
        with torch.enable_grad():
            last = last_states(network, batch)[:, -1].norm()
        (gradient,) = torch.autograd.grad(last, kept[0])
    finally:
        hook.remove()
        for name, weight in inner.named_parameters():
            weight.requires_grad_(frozen[name])
    return gradient[0].norm(dim=-1).float().cpu()
