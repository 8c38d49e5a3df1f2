"""Attention for packed rows: several texts in one line, none sees another. Knows transformers' attention; no
rows, no Trainer.

A dense mask over a line of n tokens costs n², most of it for pairs that may not see each other. Here each
text is attended to by
itself: by the variable-length kernel on a GPU that has it, as padded rows on any other accelerator, text by
text on a CPU.

Attention is not all that looks back: convolutions and recurrent states run on from text to text.
`keeps_apart` asks the model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.device import computed_in
from finetune.errors import InputError
from finetune.models.attention.cpu import OTHER_SCORES

logger = logging.getLogger(__name__)

NAME = "texts_apart"
SHORT = 640  # up to this many tokens plain matrix products beat the fused kernel's backward on a CPU


class Texts(NamedTuple):
    """How a line falls into texts, and how each is attended to.

    Attributes:
        edges: where texts begin, and the end of the last, [texts + 1], 32-bit.
        longest: tokens of the longest.
        window: tokens that each one sees, itself included; None for all before it.
    """

    edges: Tensor
    longest: int
    scale: float
    window: int | None = None


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each text of a packed line; lines that are not packed go to transformers' own
    function.

    Args:
        query: [1, heads, tokens, width]; key and value may have fewer heads (grouped-query attention).
        cu_seq_lens_q: where texts begin, and the end of the last, [texts + 1].
        max_length_q: tokens of the longest text, which the collator knows: read off a GPU's memory, it would
            stop the GPU.
        sliding_window: tokens that each one sees, itself included; None for all before it.

    Returns:
        [1, tokens, heads, width].

    Raises:
        InputError: a family whose scores are not the plain ones.
    """
    if cu_seq_lens_q is None:
        # generation and evaluation of single rows
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    strange = [name for name in OTHER_SCORES if kwargs.get(name) is not None]
    if strange:
        raise InputError(
            f"Packed rows know no attention with {strange[0]}. Set --attn_implementation eager and --packing "
            "false"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # rotary positions hand on float32 under autocast
    line = [part[0].to(computed_in(part)) for part in (query, key, value)]
    if query.device.type != "cpu":
        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        return _on_gpu(line, Texts(cu_seq_lens_q, longest, scale, sliding_window), dropout), None
    # On a CPU this costs nothing; on a GPU it would wait for all that was launched, which is why the branch
    # above asks for none.
    lengths = cu_seq_lens_q.diff().tolist()
    # The whole line in one step of autograd. Dropout needs the weights that autograd would keep, and long
    # texts are the fused kernel's: both go text by text.
    if not dropout and max(lengths) <= SHORT:
        return ShortTexts.apply(*line, lengths, scale, sliding_window).transpose(0, 1)[None], None
    texts = zip(*(part.split(lengths, dim=1) for part in line), strict=True)
    parts = [_one_text(*text, scale=scale, window=sliding_window, dropout=dropout) for text in texts]
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


class ShortTexts(torch.autograd.Function):
    """Causal attention of each text of a line by plain products: query [heads, tokens, width], key and value
    [key heads, ...].

    What autograd would do between the products, text by text and layer by layer, costs as much as they do.
    """

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: list[int],
        scale: float,
        window: int | None,
    ) -> Tensor:
        found, chances, start, groups = torch.empty_like(query), [], 0, query.shape[0] // key.shape[0]
        # The types are chosen already; autocast would look at each of these small products again.
        with torch.autocast("cpu", enabled=False):
            for time in lengths:
                here = slice(start, start + time)
                # Heads that share keys are laid one below the other in one product (`_grouped`), and so is
                # the mask.
                bias = _remembered(time, window, query.dtype, query.device).repeat(groups, 1)
                together = _grouped(query[:, here], groups)
                scores = torch.baddbmm(bias, together, key[:, here].transpose(1, 2), alpha=scale)
                chances.append(scores.softmax(-1))
                found[:, here] = (chances[-1] @ value[:, here]).view(query.shape[0], time, -1)
                start += time
        context.save_for_backward(query, key, value, *chances)
        context.lengths, context.scale = lengths, scale
        return found

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *chances = context.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        start, groups = 0, query.shape[0] // key.shape[0]
        for time, weights in zip(context.lengths, chances, strict=True):
            here = slice(start, start + time)
            grown, together = _grouped(gradient[:, here], groups), _grouped(query[:, here], groups)
            of_value[:, here] = weights.transpose(1, 2) @ grown
            # What autograd calls itself; the plain formula would make more tensors of this size.
            scores = torch.ops.aten._softmax_backward_data(
                grown @ value[:, here].transpose(1, 2), weights, -1, weights.dtype
            )
            of_query[:, here] = (scores @ key[:, here]).mul_(context.scale).view(query.shape[0], time, -1)
            of_key[:, here] = (scores.transpose(1, 2) @ together).mul_(context.scale)
            start += time
        return of_query, of_key, of_value, None, None, None


def _grouped(line: Tensor, groups: int) -> Tensor:
    """[heads, time, width] → [key heads, heads that share one × time, width]."""
    heads, time, width = line.shape
    return line.reshape(heads // groups, groups * time, width)


def _one_text(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, dropout: float
) -> Tensor:
    """[heads, time, width], causal."""
    heads, time, width = query.shape
    groups = heads // key.shape[0]
    if time > SHORT:
        line = (query[None], key[None], value[None])
        # the kernel knows causal attention by itself, a window only as a mask
        mask = None if window is None else _unseen(time, window, query.dtype, query.device)
        return torch.nn.functional.scaled_dot_product_attention(
            *line,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=groups > 1,
        )[0]
    bias = _remembered(time, window, query.dtype, query.device)
    scores = torch.baddbmm(bias.repeat(groups, 1), _grouped(query, groups), key.transpose(1, 2), alpha=scale)
    weights = torch.nn.functional.dropout(scores.softmax(-1), dropout)
    return (weights @ value).view(heads, time, width)


def _unseen(time: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a token may not look, else 0: [time, time]."""
    whole = torch.full((time, time), float("-inf"), dtype=dtype, device=device)
    return whole.triu(1) if window is None else whole.triu(1) + whole.tril(-window)


_remembered = lru_cache(maxsize=32)(_unseen)  # every layer asks for the same texts' again


def _on_gpu(line: Sequence[Tensor], texts: Texts, dropout: float) -> Tensor:
    """query, key, value [heads, tokens, width] → [1, tokens, heads, width]; nothing is asked of the
    device.
    """
    query, key, _ = line
    # the varlen kernel has no dropout
    if dropout or not kernel_serves(
        query.device, query.dtype, query.shape[2], query.shape[0] // key.shape[0]
    ):
        return _in_rows(line, texts, dropout).transpose(0, 1)[None]
    return _by_kernel(line, texts)[None]


def _by_kernel(line: Sequence[Tensor], texts: Texts) -> Tensor:
    """[heads, tokens, width] → [tokens, heads, width]."""
    from torch.nn.attention.varlen import varlen_attn  # exists for a GPU alone

    # heads that share keys: torch 2.11's takes them as they come, later ones want it said
    grouped = {"enable_gqa": True} if wants_grouping_said() else {}
    # tokens to the left of each, itself not counted, and none to the right
    seen = (-1 if texts.window is None else texts.window - 1, 0)
    lines = (part.transpose(0, 1).contiguous() for part in line)
    sizes = (texts.edges, texts.edges, texts.longest, texts.longest)
    return varlen_attn(*lines, *sizes, scale=texts.scale, window_size=seen, **grouped)  # type: ignore


@cache
def _grouping_is_an_option() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def wants_grouping_said() -> bool:
    """Whether this torch's kernel has to be told that heads share keys."""
    return _grouping_is_an_option()


def kernel_serves(place: torch.device, dtype: torch.dtype, width: int, groups: int) -> bool:
    """Whether the variable-length kernel is taken for heads of this width, so many of which share keys."""
    return _has_kernel(place, dtype, width, groups)


@cache
def _has_kernel(place: torch.device, dtype: torch.dtype, width: int, groups: int) -> bool:
    """Whether the kernel runs forwards and backwards on this card and gives the right numbers: asked
    once, of three tokens.
    """
    if place.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    # one text of one token, one of two: the least in which borders can be got wrong
    texts = Texts(torch.tensor([0, 1, 3], dtype=torch.int32, device=place), 2, 0.5)
    # a run's own streams of chance go on as if nothing had been asked
    with torch.random.fork_rng([place]), torch.enable_grad(), torch.autocast(place.type, enabled=False):
        line = [
            torch.randn(n, 3, width, device=place, dtype=dtype, requires_grad=True) for n in (groups, 1, 1)
        ]
        try:
            found = _by_kernel(line, texts)
            found.sum().backward()
        except (RuntimeError, TypeError, ValueError, ImportError) as error:
            reason = str(error).split("\n")[0]
            logger.warning("Packed texts are attended to as padded rows on this card: %s", reason)
            return False
        wanted = _in_rows([part.detach() for part in line], texts, 0.0)
    # as exact as two kernels in 16 bits are
    return torch.allclose(found.transpose(0, 1), wanted, atol=0.05)


def _in_rows(line: Sequence[Tensor], texts: Texts, dropout: float) -> Tensor:
    """The texts as rows padded on the right, where causal attention never looks: [heads, tokens,
    width] → the same.
    """
    query, edges = line[0], texts.edges
    heads, tokens, _ = query.shape
    token = torch.arange(tokens, device=query.device, dtype=edges.dtype)
    # right: a token at a border is the next text's first
    text = torch.searchsorted(edges[1:], token, right=True)
    # Computed from the borders on the device: a Python loop over texts would have to read them from it.
    at = text * texts.longest + token - edges[text]
    count = len(edges) - 1

    def rows(part: Tensor) -> Tensor:
        part = part.repeat_interleave(heads // part.shape[0], dim=0)
        empty = part.new_zeros(heads, count * texts.longest, part.shape[2])
        return empty.index_copy(1, at, part).unflatten(1, (count, texts.longest)).transpose(0, 1)

    mask = None
    if texts.window is not None:
        mask = _remembered(texts.longest, texts.window, query.dtype, query.device)
    found = torch.nn.functional.scaled_dot_product_attention(
        *map(rows, line), attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=texts.scale
    )
    # padding is left behind: [heads, tokens, width] in the line's own order
    return found.transpose(0, 1).flatten(1, 2)[:, at]


def no_mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask of a packed line, which needs none; other lines get that of scaled_dot_product_attention."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, no_mask)


def pack(network: PreTrainedModel) -> bool:
    """Have a decoder attend to packed rows text by text, where that keeps them apart; else it is left as it
    was.

    Returns:
        Whether rows may be packed. The log says why not.
    """
    # put back below where packing doesn't work
    before = network.config._attn_implementation
    try:
        network.set_attn_implementation(NAME)
    except (ValueError, NotImplementedError) as error:
        logger.warning(
            "Rows are not packed: %s lets nobody choose its attention (%s)", type(network).__name__, error
        )
        return False
    if keeps_apart(network):
        return True
    network.set_attn_implementation(before)
    logger.warning(
        "Rows are not packed: in %s one text of a packed line would move another", type(network).__name__
    )
    return False


_apart: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()
# Two texts, and another first one of the same length, so that places agree. In eighths of the vocabulary: its
# first ids are special tokens, whose huge activations leave 16 bits little for the rest (a text of SmolLM2 in
# bfloat16 was 66 % off in a packed line, by rounding alone).
PROBE = ((3, 5, 2, 7, 4, 6), (5, 3, 4, 2, 6), (6, 6, 6, 6, 6, 6))


def keeps_apart(network: PreTrainedModel) -> bool:
    """Whether a text in a packed line gets the logits that it gets alone, whatever stands before it.

    Found out once for each attention by three lines of eleven tokens: no list of families is complete.
    """
    # by attention: the same model may be asked again under another
    known = _apart.setdefault(network, {})
    name = network.config._attn_implementation
    if name not in known:
        training = network.training
        network.eval()
        try:
            # autocast would round more than the bound below allows
            with torch.no_grad(), torch.autocast(network.device.type, enabled=False):
                known[name] = _is_apart(network)
        finally:
            network.train(training)
    return known[name]


def _is_apart(network: PreTrainedModel) -> bool:
    eighth = max(1, network.config.get_text_config().vocab_size // 8)
    first, second, other = (tuple(eighth * number for number in text) for text in PROBE)
    try:
        # what any family raises on arguments that it doesn't know
        alone = network(input_ids=torch.tensor([second], device=network.device), use_cache=False).logits[0]
        one, another = (_packed_logits(network, line, second) for line in (first, other))
    except (TypeError, ValueError, IndexError, RuntimeError, InputError) as error:
        logger.info("%s reads no packed line: %s", type(network).__name__, error)
        return False
    # Two lines of one shape are rounded alike, so that a leak of any size shows between them. Alone, shape
    # and rounding are others: that comparison finds places counted wrongly, which is no small thing.
    exact = alone.dtype == torch.float32
    return _distance(one, another) < (1e-4 if exact else 1e-2) and _distance(one, alone) < (
        1e-4 if exact else 0.1
    )


def _distance(one: Tensor, other: Tensor) -> float:
    """Of logits, as a share of their length: families differ by orders of magnitude."""
    return float((one.float() - other.float()).norm() / other.float().norm())


def _packed_logits(network: PreTrainedModel, first: tuple[int, ...], second: tuple[int, ...]) -> Tensor:
    """Logits of the second of two texts in one line, [its tokens, vocabulary]."""
    place, lengths = network.device, (len(first), len(second))
    edges = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=place)
    positions = torch.tensor([[*range(lengths[0]), *range(lengths[1])]], device=place)
    told = {
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    ids = torch.tensor([[*first, *second]], device=place)
    return network(input_ids=ids, position_ids=positions, use_cache=False, **told).logits[0, lengths[0] :]
