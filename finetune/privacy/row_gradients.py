"""Gradients of each row of a batch, clipped and summed. Knows modules and their weights; knows no rows and no
Trainer.

Two ways to the same sum. `One` takes a row at a time and is right for any model. `Together` takes a batch:
what goes into each trained module and the gradient of what comes out give its weights' gradient by row (the
product of the two for a linear layer, Goodfellow 2015; the module's own derivative, row by row, for others).
That needs modules whose input and output have the rows first, which a probe finds out: rows packed into one
line, positions shared by all rows and weights used outside their module go by `One`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

LARGEST = 2**28  # numbers that the gradients of a batch by row may have: 1 GB
Losses = Callable[[], Tensor]


class NotByRow(Exception):
    """A module's weights have no gradient by row here."""


class One:
    """One row at a time.

    Args:
        parameters: what is trained.
        clip_norm: longest gradient of a row (Abadi et al. 2016, algorithm 1).
    """

    together = False

    def __init__(self, parameters: Sequence[nn.Parameter], clip_norm: float) -> None:
        self.parameters, self.clip_norm = list(parameters), clip_norm

    def add(self, losses: Losses, sums: Sequence[Tensor]) -> Tensor:
        """Add the clipped gradient of one row to `sums`, of the parameters' shapes; its loss, [1].

        Args:
            losses: computes the row's loss, [1].
        """
        loss = losses()
        if not loss.requires_grad:  # a row with nothing to learn
            return loss.detach()
        # not backward(): `.grad` stays free for the noisy mean
        found = torch.autograd.grad(loss.sum(), self.parameters, allow_unused=True)
        there = [(total, _wide(part)) for total, part in zip(sums, found, strict=True) if part is not None]
        # over all parameters together: the clip bounds what one row moves in all
        norm = (
            torch.stack([part.norm() for _, part in there]).norm() if there else loss.detach().new_zeros(())
        )
        # clipped before it is summed: a sum that is clipped bounds no row
        scale = clipping(norm, self.clip_norm)
        for total, part in there:
            total.add_(part * scale)
        return loss.detach()


class Together:
    """A batch of rows at a time, by what their modules are given and what comes back.

    Args:
        network: whose trained parameters these are.
    """

    together = True

    def __init__(self, network: nn.Module, parameters: Sequence[nn.Parameter], clip_norm: float) -> None:
        self.parameters, self.clip_norm = list(parameters), clip_norm
        # by identity: tied weights are one parameter with several sites
        place = {id(parameter): number for number, parameter in enumerate(self.parameters)}
        self.sites: list[tuple[nn.Module, dict[str, int]]] = []
        for module in network.modules():
            # its own alone: hooks on parents would count their children's weights again
            own = {n: place[id(p)] for n, p in module.named_parameters(recurse=False) if id(p) in place}
            if own:
                self.sites.append((module, own))

    def add(self, losses: Losses, sums: Sequence[Tensor]) -> Tensor:
        """Add the clipped gradients of the rows to `sums`; their losses, [rows].

        Raises:
            NotByRow: a module mixes rows, or its weights are used outside of it.
        """
        # hooks are taken off before gradients are made
        with self._listening() as calls:
            each = losses()
        found = self._by_row(each, calls)
        # [rows] for each parameter
        squares = [part.flatten(1).square().sum(1) for part in found.values()]
        norms = torch.stack(squares).sum(0).sqrt() if squares else torch.zeros_like(each)
        scales = clipping(norms, self.clip_norm)
        for number, part in found.items():
            # Σ over rows of scale × gradient, without a scaled copy of all
            sums[number].add_(torch.tensordot(scales, part, dims=1))
        return each.detach()

    @contextmanager
    def _listening(self) -> Iterator[list[tuple[nn.Module, dict[str, int], tuple, Tensor]]]:
        """What each trained module is given and gives while the block runs."""
        calls: list[Any] = []

        def note(own: dict[str, int]) -> Callable:
            return lambda module, given, output: calls.append((module, own, given, output))

        handles = [module.register_forward_hook(note(own)) for module, own in self.sites]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _by_row(self, losses: Tensor, calls: list[Any]) -> dict[int, Tensor]:
        """Parameter's number → its gradient by row [rows, *shape], in float32 or wider."""
        outputs = [output for _, _, _, output in calls]
        if not all(isinstance(output, Tensor) and output.requires_grad for output in outputs):
            raise NotByRow("a module gives something else than one tensor")
        # rows don't know of each other, so that the sum's gradient at an output is each row's own
        slopes = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
        rows = len(losses)
        found: dict[int, Tensor] = {}
        for (module, own, given, _), slope in zip(calls, slopes, strict=True):
            # a module whose output the loss doesn't use
            if slope is None:
                continue
            for number, part in by_row(module, own, given, slope.detach(), rows):
                # a module called twice, or weights that two modules share
                found[number] = found[number] + part if number in found else part
        return found


def clipping(norms: Tensor, clip_norm: float) -> Tensor:
    """What a gradient of each norm is multiplied by to be at most `clip_norm` long; a gradient of nothing
    stays one."""
    return (clip_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)


def by_row(
    module: nn.Module, own: dict[str, int], given: tuple, slope: Tensor, rows: int
) -> Iterator[tuple[int, Tensor]]:
    """(number of a parameter, its gradient by row [rows, *shape]) of one call of a module.

    Args:
        own: the module's trained parameters, by name.
        given: what the module was called with.
        slope: gradient of its output.

    Raises:
        NotByRow: rows don't stand first in what goes in or comes out.
    """
    # a single tensor is what the derivatives below are written for
    states = given[0] if given and isinstance(given[0], Tensor) else None
    if states is None or len(given) > 1 or len(states) != rows or len(slope) != rows:
        raise NotByRow(f"rows don't stand first in {type(module).__name__}")
    states = states.detach()
    if isinstance(module, (nn.Linear, Conv1D)):
        yield from _of_product(isinstance(module, Conv1D), own, _wide(states), _wide(slope))
    elif isinstance(module, nn.Embedding):
        yield from _of_table(module, own, states, _wide(slope))
    else:
        yield from _of_any(module, own, states, _wide(slope))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _of_product(
    turned: bool, own: dict[str, int], states: Tensor, slope: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Of y = x Wᵀ + b, or of a `turned` y = x W + b: states [rows, ..., in], slope [rows, ..., out]."""
    # all dimensions between rows and width become one of places: [rows, places, width]
    states, slope = (
        one.flatten(1, -2) if one.dim() > 2 else one.view(len(one), 1, -1) for one in (states, slope)
    )
    if "weight" in own:
        one, other = (states, slope) if turned else (slope, states)
        yield own["weight"], one.mT @ other
    # summed over places: the bias is added at each
    if "bias" in own:
        yield own["bias"], slope.sum(1)


def _of_table(
    module: nn.Embedding, own: dict[str, int], ids: Tensor, slope: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Of a table of vectors: ids [rows, ...], slope [rows, ..., width]."""
    rows, (count, width) = len(ids), module.weight.shape
    ids, slope = ids.flatten(1), slope.reshape(rows, -1, width)
    if module.padding_idx is not None:
        # torch gives the padding's vector no gradient, and neither may this
        slope = slope.masked_fill(ids.eq(module.padding_idx)[..., None], 0.0)
    # a whole table for each row: what `fits` is asked about first
    table = slope.new_zeros(rows, count, width)
    yield own["weight"], table.scatter_add_(1, ids[..., None].expand_as(slope), slope)


def _of_any(
    module: nn.Module, own: dict[str, int], states: Tensor, slope: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Of any module of one tensor, such as a norm: its own derivative, row by row."""
    trained = {name: _wide(dict(module.named_parameters(recurse=False))[name].detach()) for name in own}
    states = _wide(states) if states.is_floating_point() else states

    def of_row(row: Tensor, back: Tensor) -> dict[str, Tensor]:
        # `row[None]`: modules want a batch, here of one
        _, pull = vjp(lambda weights: functional_call(module, weights, (row[None],))[0], trained)
        return pull(back)[0]

    # in float32: the forward's 16 bits would round the gradient by row
    with torch.autocast(states.device.type, enabled=False):
        found = vmap(of_row)(states, slope)
    for name, number in own.items():
        yield number, found[name]


def fits(parameters: Sequence[nn.Parameter], rows: int) -> bool:
    """Whether the gradients of a batch by row may stand in memory."""
    return rows * sum(parameter.numel() for parameter in parameters) <= LARGEST


@contextmanager
def moved(parameters: Sequence[nn.Parameter], seed: int = 0) -> Iterator[None]:
    """The weights a little elsewhere while the block runs: an adapter that starts at nothing has no gradient
    in half of its weights, in which a fault could hide."""
    before = [parameter.detach().clone() for parameter in parameters]
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            # drawn on the CPU, the same on any device
            parameter.add_(torch.randn(parameter.shape, generator=chance).to(parameter) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)


def agree(together: Together, one: One, batch: Losses, rows: Sequence[Losses]) -> bool:
    """Whether a batch's clipped sum is that of its rows one by one.

    Args:
        batch: computes the losses of all rows at once.
        rows: each computes the loss of one.
    """
    # one sum for each way
    sums = [[torch.zeros_like(p, dtype=torch.float32) for p in one.parameters] for _ in range(2)]
    with moved(one.parameters):
        try:
            together.add(batch, sums[0])
        except (NotByRow, RuntimeError, TypeError) as reason:
            logger.info("rows go one by one: %s", reason)
            return False
        for row in rows:
            one.add(row, sums[1])
    apart = torch.stack([(a - b).norm() for a, b in zip(*sums, strict=True)]).norm()
    length = torch.stack([b.norm() for b in sums[1]]).norm()
    # as a share of the sum's own length; two orders of adding in float32 differ by less. Rows with nothing to
    # learn show nothing
    return bool(length > 0) and bool(apart <= 1e-4 * length)
