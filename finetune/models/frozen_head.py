"""States → what tokens cost, without the logits of a whole batch ever standing in memory. Knows heads and how
models are called; knows no rows and no rollout.

A language model's logits are the largest thing in a step of training: 16 answers of 64 tokens over 50,000
words are 200 MB, and softmax, gradient and entropy make several of them. Where its output layer is frozen and
plain they are made for some tokens at a time, and made again going back (`finetune.loss.token_costs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from finetune.device import computed_in
from finetune.loss import ENTROPY, IGNORED, NATS, labelled_places, token_costs
from finetune.models.attention.packed import keeps_apart
from finetune.models.heads import as_rows, body, core, labelled_logits

_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def plain_head(network: Any) -> nn.Linear | None:
    """A causal model's output layer, where it is frozen, reads the body's last states as they are, and its
    product is what the model gives as logits. None where anything is scaled, capped or trained.

    What a family does is found out on two tokens, not by its name, and only once. Ask before training: inside
    a step a distributed model's weights may not stand together.

    Args:
        network: the transformers model itself.
    """
    head = network.get_output_embeddings()
    # exactly this class: quantised layers and adapters are kinds of Linear that compute something else
    if type(head) is not nn.Linear or head.weight.requires_grad:
        return None
    if head not in _plain:
        # by the layer and weakly: a network that is gone takes its answer with it
        _plain[head] = _is_plain(network, head)
    return head if _plain[head] else None


def _is_plain(network: Any, head: nn.Linear) -> bool:
    seen: list[Tensor] = []

    def watch(module: nn.Module, arguments: Any, output: Tensor) -> None:
        # a copy beside the tensor itself: writing into it afterwards shows in the one and not in the other
        seen.extend((arguments[0], output, output.clone()))

    device = network.device
    ids = torch.tensor([[1, 2]], device=device)
    # Adapters may stand in float32 on a base in bf16, which only autocast lets meet.
    kinds = {one.dtype for one in network.parameters() if one.is_floating_point()}
    meeting = torch.autocast(device.type, torch.bfloat16, enabled=len(kinds) > 1)
    # A continued run goes on with the streams of chance that it had.
    streams = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with _evaluated(network), meeting, streams:
        with head.register_forward_hook(watch):
            logits = network(input_ids=ids, use_cache=False).logits
        states = body(network)(input_ids=ids, use_cache=False).last_hidden_state
    if not seen:
        return False
    read, product, untouched = seen[:3]
    # Values may be alike by chance: a cap far above small logits changes less than a rounding. That it is the
    # very tensor that came out of the layer, and that nobody wrote into it since, can't be chance.
    given = logits is product and torch.equal(product, untouched)
    # The head may read a slice or a cast of the states, which is another tensor; only its values can tell.
    return given and torch.allclose(read.float(), states.float(), rtol=1e-3, atol=1e-6)


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Without dropout, which would make two calls differ."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:  # from the outside in, so that the last word is a module's own
            module.train(training)


def _costs(head: nn.Linear, states: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    """`token_costs` under a frozen layer, in the type that autocast has for its product."""
    dtype = computed_in(head.weight)
    bias = None if head.bias is None else head.bias.detach().to(dtype)
    return token_costs(states, tokens, head.weight.detach().to(dtype), bias, **options)


def token_log_probs(
    head: nn.Linear, states: Tensor, tokens: Tensor, temperature: float = 1.0, spread: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token after each state, and the distribution's entropy where `spread` (else 0),
    both [rows, time].

    Args:
        head: frozen; under bf16 autocast its products are made in bf16.
        states: [rows, time, width].
        tokens: [rows, time].
    """
    flat = states.reshape(-1, states.shape[-1])
    costs = _costs(head, flat, tokens.reshape(-1), temperature=temperature, entropies=spread)
    return -costs[:, NATS].view(tokens.shape), costs[:, ENTROPY].view(tokens.shape)


@contextmanager
def _measured(network: Any, tokens: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """What makes costs of a model's `logits`, which within are a plain head's states."""
    head = plain_head(network)
    with nullcontext() if head is None else _passing(head):
        yield lambda given: token_costs(given, tokens) if head is None else _costs(head, given, tokens)


@contextmanager
def _passing(layer: nn.Module) -> Iterator[None]:
    """A layer that hands on what it is given."""
    # on the instance, over the class's own method; deleting it brings that back
    layer.forward = lambda states: states  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


def packed_costs(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """What each labelled place costs, [labels, 4] (see `loss.token_costs`), of rows packed into one line (see
    `collate.packed_lines`).

    It is computed inside the model's own forward: mixed precision makes float32 copies of whatever comes out
    of that. A frozen head's logits, the largest thing in a step, are made a few places at a time.
    """
    network, places = core(model), labelled_places(labels, len(batch["logits_to_keep"]))
    with _measured(network, labels[places[:, 0], places[:, 1]]) as measure:

        def replace(module: Any, arguments: Any, outputs: Any) -> Any:
            # with a batch of one in front, as logits have
            outputs["logits"] = measure(outputs["logits"][0])[None]
            return outputs

        with network.register_forward_hook(replace):
            return model(**batch, use_cache=False)["logits"][0]


def causal_costs(model: Any, batch: dict[str, Any], labels: Tensor) -> Tensor:
    """What each token costs a causal language model on documents in one line, [labels that count, 4] (see
    `loss.token_costs`); none sees another.

    Attention made for packed lines reads `cu_seq_lens`; any other finds the same borders where `position_ids`
    restart. A model in which neither keeps documents apart reads them as rows.
    """
    # labels are padded by row, the line is not: padding falls out, in the order of the tokens
    time = torch.arange(labels.shape[1], device=labels.device)
    wanted = labels[time < batch["lengths"][:, None]].ne(IGNORED)
    network = core(model)
    with _measured(network, labels[labels.ne(IGNORED)]) as measure:
        if not keeps_apart(network):
            return labelled_logits(model, *as_rows(batch, wanted), measure)["logits"][0]
        return labelled_logits(model, _line(batch), wanted[None], measure)["logits"][0]


def _line(batch: dict[str, Any]) -> dict[str, Any]:
    """Inputs for attention that keeps the documents of a line apart."""
    borders, longest = batch["cu_seq_lens"], batch["longest"]
    return {
        "input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False,
        "cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


def cast_frozen(network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Frozen linear layers in the type that autocast would cast them to at every use: the same products, half
    the memory.

    Embeddings and norms stay as they are; an output layer that shares the embeddings' weight gets a copy of
    its own.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            # a new parameter: embeddings that share the old one keep it in their own type
            module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            if module.bias is not None and not module.bias.requires_grad:
                module.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
