"""Layers that read a line from one end to the other: torch's kernels on packed rows, and LSTM cells that
torch has not.

Knows tensors; knows no vocabulary and no head.
"""

from __future__ import annotations

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

    # transformers asks every cache whether torch.compile may follow it
    is_compileable = False

    def __init__(self, layers: list[States], seen: int = 0) -> None:
        self.layers, self.seen = layers, seen

    def reorder_cache(self, index: Tensor) -> None:
        """Rows in the order that a beam search keeps."""
        # beams are rows of the batch
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
    # where tokens would stand if all padding were behind them
    right = torch.arange(mask.shape[1], device=mask.device) < mask.sum(dim=1, keepdim=True)
    # the usual case, in which nothing is moved
    if bool((right == mask.bool()).all()):
        return inputs, None
    # stable, so that tokens keep their order
    order = mask.bool().logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    # the inverse of a permutation
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
        width, gates = config.hidden_size, 3 if config.coupled_gates else 4
        self.coupled, self.hidden_size = config.coupled_gates, width
        self.weight_ih = nn.Parameter(torch.empty(gates * width, size))
        self.weight_hh = nn.Parameter(torch.empty(gates * width, width))
        self.bias = nn.Parameter(torch.zeros(gates * width))
        self.peephole = nn.Parameter(torch.empty(gates - 1, width)) if config.peephole else None

    def forward(self, line: Tensor, lengths: Tensor, states: States) -> tuple[Tensor, States]:
        """[batch, time, size] → [batch, time, width], and hidden state and cell at each row's end."""
        hidden, cell = states
        # for all steps at once: what doesn't depend on the state before needn't wait for it
        given = nn.functional.linear(line, self.weight_ih, self.bias).unbind(1)
        recurrent = self.weight_hh.t()
        outputs, cells = [], []
        for now in given:
            hidden, cell = self.step(now + hidden @ recurrent, cell)
            outputs.append(hidden)
            cells.append(cell)
        found, last = (
            torch.stack(outputs, dim=1),
            # each row's own last token, not the line's
            (lengths - 1)[:, None, None].expand(-1, 1, self.hidden_size),
        )
        return found, (found.gather(1, last)[:, 0], torch.stack(cells, dim=1).gather(1, last)[:, 0])

    def step(self, given: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Sums before the gates [batch, gates * width] and cells → hidden states and cells [batch, width]."""
        *gates, proposed, out = given.chunk(3 if self.coupled else 4, dim=-1)
        if self.peephole is not None:
            # the last row of `peephole` is the output gate's, which sees the new cell
            gates = [gate + weight * cell for gate, weight in zip(gates, self.peephole, strict=False)]
        forget = gates[-1].sigmoid()
        # coupled gates have no row for it
        take = 1 - forget if self.coupled else gates[0].sigmoid()
        cell = forget * cell + take * proposed.tanh()
        out = out if self.peephole is None else out + self.peephole[-1] * cell
        return out.sigmoid() * cell.tanh(), cell


class RecurrentLayer(nn.Module):
    """One layer of one or two directions, by torch's own kernels where there are some.

    Each direction has a kernel of its own, and the second reads each row's tokens from their end: padding
    then
    stands behind what counts in both, and rows need not be packed, which makes torch's kernels several times
    slower on a CPU.
    """

    def __init__(self, size: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.cell, self.width, self.merge = config.cell, config.hidden_size, config.merge
        self.kernels = nn.ModuleList(_kernel(size, config) for _ in range(1 + config.bidirectional))

    def fresh(self, inputs: Tensor) -> States:
        """States of nothing read yet."""
        shape = (inputs.shape[0], len(self.kernels), self.width)
        return tuple(inputs.new_zeros(shape) for _ in range(2 if self.cell == "lstm" else 1))

    def forward(
        self, inputs: Tensor, lengths: Tensor, states: States | None = None, cells: bool = False
    ) -> tuple[Tensor, States]:
        """Rows with their tokens in front → merged states of each token, and all directions' at each row's
        end.

        Args:
            inputs: [batch, time, size].
            lengths: tokens of each row, [batch].
            cells: whether an LSTM's cells at each row's end are asked for; they are zeros else, where rows
                are of several lengths.

        Returns:
            [batch, time, width], zeros at padding; states, [batch, directions, width] each.
        """
        states = self.fresh(inputs) if states is None else states
        time = torch.arange(inputs.shape[1], device=inputs.device)
        there = (time < lengths[:, None])[..., None]
        # tokens from their end, padding left where it is: its own inverse too
        back = torch.where(there[..., 0], lengths[:, None] - 1 - time, time)[..., None]
        found, ends = [], []
        for place, kernel in enumerate(self.kernels):
            line = inputs if place == 0 else inputs.gather(1, back.expand_as(inputs))
            outputs, end = self._read(kernel, line, lengths, (tuple(s[:, place] for s in states), cells))
            found.append(outputs if place == 0 else outputs.gather(1, back.expand_as(outputs)))
            ends.append(end)
        merged = merged_states(torch.stack(found, dim=2), self.merge) if len(found) == 2 else found[0]
        return merged * there, tuple(torch.stack(part, dim=1) for part in zip(*ends, strict=True))

    def _read(
        self, kernel: nn.Module, line: Tensor, lengths: Tensor, start: tuple[States, bool]
    ) -> tuple[Tensor, States]:
        """States of each token [batch, time, width] and those at each row's end, of one direction."""
        states, cells = start
        if isinstance(kernel, VariantLSTM):
            return kernel(line, lengths, states)
        # torch's kernels have an axis for layers in front, and want it in one piece
        given = tuple(state[None].contiguous() for state in states)
        uneven = int(lengths.min()) < line.shape[1]
        # torch gives hidden states of all steps and the cell of the last alone: an earlier cell needs packed
        # rows
        if uneven and (line.is_cuda or (cells and self.cell == "lstm")):
            return self._packed(kernel, line, lengths, given)
        outputs, ends = kernel(line, given if self.cell == "lstm" else given[0])
        if not uneven:
            # the axis for layers goes again
            return outputs, tuple(part[0] for part in (ends if self.cell == "lstm" else (ends,)))
        # a row that ends earlier has its last state among the outputs
        last = outputs.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, self.width))[:, 0]
        return outputs, (last, torch.zeros_like(last)) if self.cell == "lstm" else (last,)

    def _packed(
        self, kernel: nn.Module, line: Tensor, lengths: Tensor, given: States
    ) -> tuple[Tensor, States]:
        # torch wants lengths in main memory
        packed = pack_padded_sequence(line, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, ends = kernel(packed, given if self.cell == "lstm" else given[0])
        outputs, _ = pad_packed_sequence(found, batch_first=True, total_length=line.shape[1])
        return outputs, tuple(part[0] for part in (ends if self.cell == "lstm" else (ends,)))


def _kernel(size: int, config: RecurrentConfig) -> nn.Module:
    """What reads in one direction."""
    if config.peephole or config.coupled_gates:
        return VariantLSTM(size, config)
    further = {"nonlinearity": config.activation} if config.cell == "rnn" else {}
    return KERNELS[config.cell](size, config.hidden_size, batch_first=True, **further)


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
    # torch adds up two biases; in both it would count twice
    if config.cell == "lstm" and not name.startswith("bias_hh"):
        # gates in torch's order i, f, g, o; coupled ones have no i
        first = 0 if config.coupled_gates else config.hidden_size
        found[..., first : first + config.hidden_size] = config.forget_bias
    return found


def _squares(weight: Tensor, config: RecurrentConfig) -> Tensor:
    """One square a gate, [..., gates * width, width]."""
    width = config.hidden_size
    # gates stand one below the other: [gates × width, width]
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
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        states: list[States] | None = None,
        cells: bool = False,
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
            # the first layer's inputs have had theirs as vectors
            inputs = self.dropout(inputs) if place else inputs
            inputs, end = layer(inputs, lengths, None if states is None else states[place], cells)
            ends.append(end)
        if back is not None:
            inputs = inputs.gather(1, back[..., None].expand_as(inputs))
        return inputs, ends
