"""Figures of alignment → pictures (PNG). Knows numbers and matplotlib; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.reports.plots import FAINT, INK, plt


def draw_calibration(bins: Sequence[dict[str, float]], path: Path) -> None:
    """A reward model's confidence against its accuracy; on the diagonal it is as sure as it should be."""
    fig, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0.5, 1], [0.5, 1], color=FAINT, lw=1)
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", color=INK)
    pairs = sum(int(b["pairs"]) for b in bins)
    axes.set(xlabel="P(its choice), mean of a bin", ylabel="share of right choices", title=f"{pairs} held-out pairs")
    fig.tight_layout()
    fig.savefig(path)
    plt.close(fig)


COLOURS = {"dpo": "#1f4e79", "ppo": "#c05a1c", "ppo-true": "#7a9a3a", "best-of-n": "#7d4f9e", "preferred-ft": "#888888"}


def draw_frontier(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean true reward against sequence KL to the reference, one colour a method (Rafailov et al. 2023, figure 2, left).

    Args:
        points: each with method, setting, kl (nats a sequence), reward, error (one standard error).
    """
    fig, axes = plt.subplots(figsize=(6, 4.2))
    for method in dict.fromkeys(point["method"] for point in points):
        mine = sorted((p for p in points if p["method"] == method), key=lambda p: p["kl"])
        axes.errorbar(
            [p["kl"] for p in mine], [p["reward"] for p in mine], yerr=[1.96 * p["error"] for p in mine],
            fmt="o-", lw=1, capsize=2, color=COLOURS.get(method, FAINT), label=method,
        )  # fmt: skip
        for p in mine:
            axes.annotate(str(p["setting"]), (p["kl"], p["reward"]), textcoords="offset points", xytext=(4, 4), fontsize=6)
    axes.set(xlabel="KL to the reference, nats a sequence", ylabel="mean true reward, 95 % interval")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    fig.tight_layout()
    fig.savefig(path)
    plt.close(fig)
