"""Sums, differences and thinner versions of adapters. Knows changes of weights; knows no rows.

A weighted sum of LoRA adapters is exact: factors are put side by side, so that the product is the sum of the
products, whatever ranks and scalings they had. What is approximate (a chosen rank, TIES, DARE) says by how
much.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.adapters.weights import Adapter, Factors, is_exact_lora, write_adapter
from finetune.artefacts.files import METRICS, write_atomically
from finetune.artefacts.passport import CONFIG, PASSPORT, WEIGHTS
from finetune.errors import InputError

logger = logging.getLogger(__name__)

# What an adapter brings along: tokenizer, labels, options.
WAYS = ("sum", "ties", "dare", "dare_ties")


@dataclass
class MergeArguments:
    """How adapters are put together."""

    weights: list[float] | None = field(
        default=None, metadata={"help": "One factor an adapter (default: 1 each); -1 takes an adapter away."}
    )
    how: str = field(
        default="sum",
        metadata={"help": "sum (exact), ties (Yadav et al. 2023), dare (Yu et al. 2024) or dare_ties."},
    )
    rank: int | None = field(
        default=None, metadata={"help": "Rank of the result, by SVD (default: exact, all ranks together)."}
    )
    density: float = field(default=0.5, metadata={"help": "Share of each change that ties and dare keep."})
    seed: int = field(default=0, metadata={"help": "Seed of what dare drops."})
    head: int | None = field(
        default=None,
        metadata={
            "help": "Which adapter's head the result takes, counted from 0; needed where several have one."
        },
    )


@dataclass(frozen=True)
class Merged:
    """The result, and what it lost: each module's relative error (Frobenius) against the change that was
    asked for."""

    adapter: Adapter
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)


def combine(adapters: Sequence[Adapter], options: MergeArguments) -> Merged:
    """One adapter out of several on the same base.

    Raises:
        InputError: adapters that don't belong together, changes that don't add up, heads without a choice,
            bad options.
    """
    weights = [1.0] * len(adapters) if options.weights is None else options.weights
    _check(adapters, weights, options)
    chosen = choose_head(adapters, options.head)
    # Of one kind, as `_check` has seen to.
    kinds = {adapter.kind for adapter in adapters}
    start = replace(chosen, passport=_passport(adapters, weights, chosen, options))
    if kinds == {"IA3"}:
        if options.how != "sum" or options.rank is not None:
            raise InputError("IA3 holds factors, not matrices: wanted --how sum and no --rank")
        return Merged(replace(start, scales=_sum_scales(adapters, weights), inward=_inward(adapters)), {})
    if kinds == {"BITFIT"}:
        if options.how != "sum" or options.rank is not None:
            raise InputError("BitFit holds shifts of biases, not matrices: wanted --how sum and no --rank")
        return Merged(replace(start, shifts=_sum_shifts(adapters, weights)), {})
    # One stream over all modules in the order of their names: a seed gives one result.
    generator = torch.Generator().manual_seed(options.seed)
    factors, errors = {}, {}
    for name in sorted({name for adapter in adapters for name in adapter.factors}):
        # A module that an adapter doesn't change counts as no change of it.
        present = [(a.factors[name], w) for a, w in zip(adapters, weights, strict=True) if name in a.factors]
        factors[name], errors[name] = _combine_module(present, options, generator)
    return Merged(replace(start, factors=factors), errors)


def _combine_module(
    present: list[tuple[Factors, float]], options: MergeArguments, generator: torch.Generator
) -> tuple[Factors, float]:
    if options.how == "sum":
        whole = weighted_sum([f for f, _ in present], [w for _, w in present])
        return (whole, 0.0) if options.rank is None else truncate(whole, options.rank)
    # TIES and DARE look at single entries, which a convolution's factors don't have as a matrix.
    if len({f.embedding for f, _ in present}) > 1 or present[0][0].down.dim() > 2 or present[0][0].embedding:
        raise InputError(f"--how {options.how} takes linear layers only; wanted --how sum")
    dense, factors = [f.dense() for f, _ in present], [w for _, w in present]
    if options.how.startswith("dare"):
        dense = [drop(change, options.density, generator) for change in dense]
    if options.how.endswith("ties"):
        # DARE has thinned already; TIES then only settles signs.
        kept = 1.0 if options.how == "dare_ties" else options.density
        change = ties(dense, factors, kept)
    else:
        change = sum((w * d for w, d in zip(factors, dense, strict=True)), torch.zeros_like(dense[0]))
    # As many ranks as the parents had together, unless that exceeds the matrix.
    return factorise(change, options.rank or min(sum(f.rank for f, _ in present), *change.shape))


def weighted_sum(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σ weight · up · down, exactly: the factors side by side, rank the sum of ranks."""
    # The weight goes into `up` alone; into both it would count squared.
    up = torch.cat([f.up * w for f, w in zip(factors, weights, strict=True)], dim=1)
    return Factors(torch.cat([f.down for f in factors]), up, factors[0].embedding)


def truncate(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The nearest change of at most that rank (Eckart & Young 1936) and its relative error; never forms the
    full matrix."""
    left, right = (
        # QR first: the product of two thin matrices is settled in their small inner part.
        torch.linalg.qr(factors.up.double().flatten(1)),
        torch.linalg.qr(factors.down.double().flatten(1).T),
    )
    u, s, v = torch.linalg.svd(left.R @ right.R.T)
    # The root on either side, so that both factors are of like size.
    root = s[:rank].sqrt()
    up, down = left.Q @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ right.Q.T
    shapes = (factors.down.shape[1:], factors.up.shape[2:])
    cut = Factors(
        down.reshape(-1, *shapes[0]).float(), up.reshape(*up.shape, *shapes[1]).float(), factors.embedding
    )
    return cut, _tail(s, rank)


def factorise(change: Tensor, rank: int) -> tuple[Factors, float]:
    """A dense change [out, in] → its nearest product of that rank, and the relative error."""
    # In float64: the smallest values are what an error is made of.
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return Factors((root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float()), _tail(s, rank)


def _tail(values: Tensor, rank: int) -> float:
    total = values.square().sum()
    return float((values[rank:].square().sum() / total).sqrt()) if total > 0 else 0.0


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect signs, merge (Yadav et al. 2023, section 4): each change keeps its largest share, each
    entry the sign that weighs most, and the mean of the changes with that sign, weighted by |weight|. Tensors
    are trimmed one by one.
    """
    trimmed = torch.stack([w * trim(change, density) for change, w in zip(changes, weights, strict=True)])
    elected = trimmed.sum(0).sign()
    # A zero agrees with nobody: what was trimmed has no vote.
    agrees = (trimmed.sign() == elected) & (trimmed != 0)
    parts = torch.tensor([abs(w) for w in weights], dtype=trimmed.dtype).reshape(-1, *[1] * changes[0].dim())
    # Where nobody is left there is nothing to divide, and the sum is 0.
    return (trimmed * agrees).sum(0) / (parts * agrees).sum(0).clamp(min=1e-12)


def trim(change: Tensor, density: float) -> Tensor:
    """The entries of largest size, a share `density` of all; zero elsewhere."""
    # One entry at least, however small the share.
    keep = max(1, round(density * change.numel()))
    chosen = change.abs().flatten().topk(keep).indices
    result = torch.zeros_like(change).flatten()
    result[chosen] = change.flatten()[chosen]
    return result.reshape(change.shape)


def drop(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Drop entries at random and rescale the rest, so that the mean stays (DARE, Yu et al. 2024)."""
    kept = torch.rand(change.shape, generator=generator, dtype=change.dtype) < density
    return change * kept / density


def choose_head(adapters: Sequence[Adapter], head: int | None) -> Adapter:
    """The adapter whose head the result takes: the one that was named, or the only one that has any.

    Raises:
        InputError: several have heads and none was named.
    """
    if head is not None:
        if not 0 <= head < len(adapters):
            raise InputError(f"--head {head} names none of {len(adapters)} adapters; they count from 0")
        return adapters[head]
    # Heads don't add up: two classifiers may call one number by two names.
    having = [adapter for adapter in adapters if adapter.heads]
    if len(having) > 1:
        named = "; ".join(f"{adapter.folder}: {', '.join(adapter.head_modules)}" for adapter in having)
        raise InputError(
            f"Several adapters have a head ({named}), and heads don't add up. Choose one by --head, counted "
            "from 0"
        )
    return (having or adapters)[0]


def _check(adapters: Sequence[Adapter], weights: Sequence[float], options: MergeArguments) -> None:
    if not adapters:
        raise InputError("No adapters to merge; name one or more by --adapters")
    if len(weights) != len(adapters):
        raise InputError(
            f"{len(weights)} weights for {len(adapters)} adapters; wanted one each. Set --weights"
        )
    if options.how not in WAYS:
        raise InputError(f"Unknown way '{options.how}'; wanted one of: {', '.join(WAYS)}. Set --how")
    if not 0 < options.density <= 1:
        raise InputError(f"--density {options.density}; wanted a share above 0, at most 1")
    if options.rank is not None and options.rank < 1:
        raise InputError(f"--rank {options.rank}; wanted 1 or more")
    kinds = {adapter.kind for adapter in adapters}
    if len(kinds) > 1:
        raise InputError(
            f"Adapters of several kinds ({', '.join(sorted(kinds))}) have no common sum; wanted one kind"
        )
    if "BOTTLENECK" in kinds:
        raise InputError(
            "Bottleneck adapters are not linear: their sum is no bottleneck. Stack or fuse them instead"
        )
    for adapter in adapters:
        if adapter.kind == "LORA" and not is_exact_lora(adapter):
            why = (
                # m (W + BA) / |W + BA| scales the base's own rows: the change has full rank, and no factors.
                "is DoRA: it scales the base's own rows, so that its change is no product of two factors, "
                "and a sum with it no adapter. Write it into the base by --action into_base"
                if adapter.magnitudes
                else "has biases, which don't add up; wanted LoRA or rsLoRA without biases"
            )
            raise InputError(f"{adapter.folder} {why}")
    _check_bases(adapters)


def _check_bases(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        mine, theirs = first.passport.get("weights"), other.passport.get("weights")
        # By the names that both passports have.
        if mine and theirs and any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
            named = f"'{first.passport.get('base')}' and '{other.passport.get('base')}'"
            raise InputError(
                f"{first.folder} and {other.folder} belong on different bases ({named}); wanted one base"
            )


def _sum_scales(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """1 + Σ weight · (scale − 1): the sum of the changes that the factors make to a weight."""
    result: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, scale in adapter.scales.items():
            # What a factor changes is its distance from 1; factors themselves don't add up.
            result[name] = result.get(name, torch.ones_like(scale)) + weight * (scale - 1)
    return result


def _sum_shifts(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, shift in adapter.shifts.items():
            result[name] = result.get(name, torch.zeros_like(shift)) + weight * shift
    return result


def _inward(adapters: Sequence[Adapter]) -> frozenset[str]:
    inward = frozenset(name for adapter in adapters for name in adapter.inward)
    both = sorted(inward & {name for a in adapters for name in a.scales if name not in a.inward})
    if both:
        raise InputError(
            f"'{both[0]}' scales its input in one adapter and its output in another; these have no common sum"
        )
    return inward


def _passport(
    adapters: Sequence[Adapter], weights: Sequence[float], chosen: Adapter, options: MergeArguments
) -> dict[str, object]:
    """The passport of the adapter that gives the head, without figures that were measured before the
    merge."""
    if not chosen.passport:
        return {}
    parents = [{"folder": str(a.folder), "weight": w} for a, w in zip(adapters, weights, strict=True)]
    merge = {
        "parents": parents,
        "how": options.how,
        "rank": options.rank,
        "density": options.density,
        "seed": options.seed,
    }
    return chosen.passport | {"metrics": {}, "merge": merge}


def save_merged(merged: Merged, folder: str | Path) -> Path:
    """Write the result as a folder that everything loads which loads its parents: adapter, tokenizer, labels,
    passport.

    Raises:
        InputError: the folder holds something already.
    """
    path, source = Path(folder), merged.adapter.folder
    if path.exists() and any(path.iterdir()):
        raise InputError(f"The folder {path} is not empty; set --output_dir to a new one")
    path.mkdir(parents=True, exist_ok=True)
    # What the parents' loaders read beside weights, without what is written anew.
    for file in source.iterdir():
        if (
            file.is_file()
            and file.suffix in (".json", ".yaml", ".txt", ".model", ".jinja")
            and file.name not in (PASSPORT, CONFIG)
        ):
            shutil.copy2(file, path / file.name)
    write_adapter(merged.adapter, path)
    if merged.adapter.passport:
        write_atomically(path / PASSPORT, json.dumps(merged.adapter.passport, indent=1, ensure_ascii=False))
    write_atomically(path / METRICS, json.dumps({"merge_error": merged.worst}, indent=1))
    logger.info("Wrote %s: %s", path / WEIGHTS, f"largest relative error of a module {merged.worst:.2e}")
    return path
