"""Layers that read a line from one end to the other: torch's kernels on packed rows, and LSTM cells that
torch has not.

Knows tensors; knows no vocabulary and no head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import initialization as init

from finetune.models.recurrent_config import RecurrentConfig

KERNELS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
States = tuple[Tensor, ...]  # of one layer: hidden, and an LSTM's cell, [batch, directions, width] each


class RecurrentState:
    """What a line has left in each layer; generation hands it on from token to token.

    Args:
        layers: states of each layer, [batch, directions, width] each.
    """

    is_compileable = False

    def __init__(self, layers: list[States], seen: int = 0) -> None:
        self.layers, self.seen = layers, seen

    def reorder_cache(self, index: Tensor) -> None:
        """Rows in the order that a beam search keeps."""
        self.layers = [tuple(part.index_select(0, index) for part in layer) for layer in self.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that went in."""
        return self.seen


def lengths_of(mask: Tensor) -> Tensor:
    """Tokens of each row, at least one (a row of padding alone reads its first), [batch]."""
    return mask.sum(dim=1).clamp(min=1)


def to_front(inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows with their tokens in front of their padding, wherever that stood, and the places that undo it.

    Args:
        inputs: [batch, time, width].
        mask: [batch, time], 1 at tokens.
    """
    right = torch.arange(mask.shape[1], device=mask.device) < mask.sum(dim=1, keepdim=True)
    if bool((right == mask.bool()).all()):
        return inputs, None
    order = mask.bool().logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return inputs.gather(1, order[..., None].expand_as(inputs)), order.argsort(dim=1)


def merged_states(states: Tensor, merge: str) -> Tensor:
    """Two directions, [..., 2, width], as one: concatenated, summed, averaged or the larger of each pair."""
    if merge == "concat":
        return states.flatten(-2)
    if merge == "max":
        return states.amax(dim=-2)
    return states.sum(dim=-2) if merge == "sum" else states.mean(dim=-2)


class VariantLSTM(nn.Module):
    """LSTM layer with peepholes or coupled gates, which torch's kernels lack: a loop over time, all rows at
    once.

        i, f = σ(W x + R h + p ⊙ c + b)      without peepholes p = 0; coupled: i = 1 - f
        c' = f ⊙ c + i ⊙ tanh(W x + R h + b)
        o = σ(W x + R h + p ⊙ c' + b),  h' = o ⊙ tanh(c')

    Gers & Schmidhuber 2000; Greff et al. 2017, section 2 and appendix (CIFG). Gates stand in the order i, f,
    g, o, without i where it is coupled.
    """

    def __init__(self, size: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.coupled, self.directions = config.coupled_gates, 1 + config.bidirectional
        width, gates = config.hidden_size, 3 if config.coupled_gates else 4
        self.hidden_size = width
        self.weight_ih = nn.Parameter(torch.empty(self.directions, gates * width, size))
        self.weight_hh = nn.Parameter(torch.empty(self.directions, gates * width, width))
        self.bias = nn.Parameter(torch.zeros(self.directions, gates * width))
        self.peephole = (
            nn.Parameter(torch.empty(self.directions, gates - 1, width)) if config.peephole else None
        )

    def forward(self, inputs: Tensor, lengths: Tensor, states: States) -> tuple[Tensor, States]:
        """[batch, time, size] → [batch, time, directions, width], and the states at each row's end."""
        time = torch.arange(inputs.shape[1], device=inputs.device)
        # the second direction reads each row's own tokens from their end, and leaves its padding where it is
        back = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)
        found, ends = [], []
        for place in range(self.directions):
            line = inputs if place == 0 else inputs.gather(1, back[..., None].expand_as(inputs))
            outputs, cells = self._read(line, place, [state[:, place] for state in states])
            last = (lengths - 1)[:, None, None].expand(-1, 1, self.hidden_size)
            ends.append((outputs.gather(1, last)[:, 0], cells.gather(1, last)[:, 0]))
            found.append(outputs if place == 0 else outputs.gather(1, back[..., None].expand_as(outputs)))
        hidden, cell = (torch.stack(part, dim=1) for part in zip(*ends, strict=True))
        return torch.stack(found, dim=2), (hidden, cell)

    def _read(self, line: Tensor, place: int, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        hidden, cell = states
        given = nn.functional.linear(line, self.weight_ih[place], self.bias[place]).unbind(1)
        recurrent = self.weight_hh[place].t()
        outputs, cells = [], []
        for now in given:
            hidden, cell = self.step(now + hidden @ recurrent, cell, place)
            outputs.append(hidden)
            cells.append(cell)
        return torch.stack(outputs, dim=1), torch.stack(cells, dim=1)

    def step(self, given: Tensor, cell: Tensor, place: int = 0) -> tuple[Tensor, Tensor]:
        """Sums before the gates [batch, gates * width] and cells → hidden states and cells [batch, width]."""
        *gates, proposed, out = given.chunk(3 if self.coupled else 4, dim=-1)
        seen = None if self.peephole is None else self.peephole[place]
        if seen is not None:
            gates = [gate + weight * cell for gate, weight in zip(gates, seen, strict=False)]
        forget = gates[-1].sigmoid()
        take = 1 - forget if self.coupled else gates[0].sigmoid()
        cell = forget * cell + take * proposed.tanh()
        out = out if seen is None else out + seen[-1] * cell
        return out.sigmoid() * cell.tanh(), cell


class RecurrentLayer(nn.Module):
    """One layer of one or two directions, by torch's own kernel where there is one."""

    def __init__(self, size: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.cell, self.width = config.cell, config.hidden_size
        self.directions, self.merge = 1 + config.bidirectional, config.merge
        if config.peephole or config.coupled_gates:
            self.kernel: nn.Module = VariantLSTM(size, config)
        else:
            shape: dict[str, Any] = {"batch_first": True, "bidirectional": config.bidirectional}
            if config.cell == "rnn":
                shape["nonlinearity"] = config.activation
            self.kernel = KERNELS[config.cell](size, config.hidden_size, **shape)

    def fresh(self, inputs: Tensor) -> States:
        """States of nothing read yet."""
        count = 2 if self.cell == "lstm" else 1
        shape = (inputs.shape[0], self.directions, self.width)
        return tuple(inputs.new_zeros(shape) for _ in range(count))

    def forward(self, inputs: Tensor, lengths: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Rows with their tokens in front → merged states of each token, and both directions' at each row's
        end.

        Args:
            inputs: [batch, time, size].
            lengths: tokens of each row, [batch].

        Returns:
            [batch, time, width], zeros at padding; states, [batch, directions, width] each.
        """
        states = self.fresh(inputs) if states is None else states
        if isinstance(self.kernel, VariantLSTM):
            outputs, ends = self.kernel(inputs, lengths, states)
            there = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
            outputs = outputs * there[..., None, None]
        else:
            outputs, ends = self._packed(inputs, lengths, states)
        return (merged_states(outputs, self.merge) if self.directions == 2 else outputs[:, :, 0]), ends

    def _packed(self, inputs: Tensor, lengths: Tensor, states: States) -> tuple[Tensor, States]:
        # torch's kernels want one type throughout; autocast leaves states as they are
        start = tuple(state.transpose(0, 1).contiguous() for state in states)
        given: Any = start if self.cell == "lstm" else start[0]
        if int(lengths.min()) == inputs.shape[1]:
            outputs, ends = self.kernel(inputs, given)
        else:
            packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
            found, ends = self.kernel(packed, given)
            outputs, _ = pad_packed_sequence(found, batch_first=True, total_length=inputs.shape[1])
        parts = ends if self.cell == "lstm" else (ends,)
        return outputs.unflatten(-1, (self.directions, self.width)), tuple(p.transpose(0, 1) for p in parts)


def draw_kernel(kernel: nn.Module, config: RecurrentConfig) -> None:
    """Weights of a layer as the configuration says: uniform in ±1/√width (torch's), orthogonal (Saxe et al.
    2014) or the identity (Le et al. 2015); biases zero, an LSTM's forget gate open."""
    bound = config.hidden_size**-0.5
    for name, weight in kernel.named_parameters():
        if name.startswith("bias"):
            init.copy_(weight, _start(name, weight, config))
        elif name.startswith("weight_hh") and config.initialization != "uniform":
            init.copy_(weight, _squares(weight, config))
        else:
            init.uniform_(weight, -bound, bound)


def _start(name: str, bias: Tensor, config: RecurrentConfig) -> Tensor:
    """Zeros; of an LSTM's forget gate `forget_bias`, in one of torch's two biases."""
    found = torch.zeros_like(bias)
    if config.cell == "lstm" and not name.startswith("bias_hh"):
        first = 0 if config.coupled_gates else config.hidden_size
        found[..., first : first + config.hidden_size] = config.forget_bias
    return found


def _squares(weight: Tensor, config: RecurrentConfig) -> Tensor:
    """One square a gate, [..., gates * width, width]."""
    width = config.hidden_size
    found = torch.eye(width).repeat(weight.numel() // width**2, 1, 1)
    if config.initialization == "orthogonal":
        for square in found:
            torch.nn.init.orthogonal_(square)
    return found.view(weight.shape)


class RecurrentStack(nn.Module):
    """Layers one on the other, dropout between them.

    Args:
        size: of what the first one reads.
    """

    def __init__(self, size: int, config: RecurrentConfig) -> None:
        super().__init__()
        sizes = [size, *[config.width] * (config.num_hidden_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(one, config) for one in sizes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, states: list[States] | None = None
    ) -> tuple[Tensor, list[States]]:
        """[batch, time, size] and mask [batch, time] → [batch, time, width] and each layer's states at the
        end.

        Padding may stand on either side: rows are read as if there were none.
        """
        back = None
        if mask is None:
            lengths = torch.full((inputs.shape[0],), inputs.shape[1], device=inputs.device)
        else:
            lengths = lengths_of(mask)
            inputs, back = to_front(inputs, mask)
        ends = []
        for place, layer in enumerate(self.layers):
            inputs = self.dropout(inputs) if place else inputs
            inputs, end = layer(inputs, lengths, None if states is None else states[place])
            ends.append(end)
        if back is not None:
            inputs = inputs.gather(1, back[..., None].expand_as(inputs))
        return inputs, ends
