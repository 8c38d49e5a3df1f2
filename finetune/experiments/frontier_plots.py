"""Figures of alignment → pictures (PNG). Knows numbers and matplotlib; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.reports.plots import FAINT, INK, plt


def draw_calibration(bins: Sequence[dict[str, float]], path: Path) -> None:
    """A reward model's confidence against its accuracy; on the diagonal it is as sure as it should be."""
    fig, axes = plt.subplots(figsize=(4, 4))
    # a choice between two is right by chance half of the time
    axes.plot([0.5, 1], [0.5, 1], color=FAINT, lw=1)
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", color=INK)
    # a bin's number counts, since few pairs say little
    pairs = sum(int(b["pairs"]) for b in bins)
    axes.set(
        xlabel="P(its choice), mean of a bin",
        ylabel="share of right choices",
        title=f"{pairs} held-out pairs",
    )
    fig.tight_layout()
    fig.savefig(path)
    plt.close(fig)


COLOURS = {
    "dpo": "#1f4e79", "ppo": "#c05a1c", "ppo-true": "#7a9a3a", "best-of-n": "#7d4f9e",
    "preferred-ft": "#666666", "start": "#000000",
}  # fmt: skip
NAMES = {
    "dpo": "DPO, β", "ppo": "PPO, learnt reward, coefficient", "ppo-true": "PPO, true reward, coefficient",
    "best-of-n": "best of n",
    "preferred-ft": "preferred-FT", "start": "start",
}  # fmt: skip


def draw_frontier(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean true reward against sequence KL to the reference (Rafailov et al. 2023, figure 2, left).

    A colour a method, a line a run from the start to its end, which bears the run's setting; best-of-n has no
    way, and one line.

    Args:
        points: each with method, setting, steps, kl (nats a sequence), reward, error (one standard error).
    """
    fig, axes = plt.subplots(figsize=(7, 4.6))
    start = [point for point in points if point["method"] == "start"]
    # in the order of NAMES, so that colours and legend are the same in every picture
    for method in [name for name in NAMES if any(point["method"] == name for point in points)]:
        mine, colour = [point for point in points if point["method"] == method], COLOURS[method]
        settings = sorted({point["setting"] for point in mine})
        # along the way of a run, by its steps
        runs = [sorted((p for p in mine if p["setting"] == s), key=lambda p: p["steps"]) for s in settings]
        # best-of-n's settings follow one another, and are no runs of several steps
        ways = [[p for run in runs for p in run]] if method == "best-of-n" else runs
        for way in ways:
            # every way begins at the same start
            whole = [*start, *way] if method != "start" else way
            axes.plot(
                [p["kl"] for p in whole],
                [p["reward"] for p in whole],
                ".-",
                color=colour,
                lw=0.8,
                ms=4,
                alpha=0.7,
            )
        ends = [run[-1] for run in runs]
        # ends alone: intervals at every point would cover the lines
        axes.errorbar(
            # 95 % of a normal distribution
            [p["kl"] for p in ends], [p["reward"] for p in ends], yerr=[1.96 * p["error"] for p in ends],
            fmt="o", ms=5, elinewidth=0.8, capsize=2, color=colour, label=NAMES[method],
        )  # fmt: skip
        # these two have no setting to tell
        for p in ends if method not in ("start", "preferred-ft") else []:
            place = (p["kl"], p["reward"])
            axes.annotate(
                f"{p['setting']:g}",
                place,
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=7,
                color=colour,
            )
    axes.set(
        xlabel="KL to the reference, nats a sequence", ylabel="mean true reward, ends with 95 % intervals"
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.2)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)
