"""Figures → pictures (PNG). Knows numbers and matplotlib; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed or wanted

import matplotlib.pyplot as plt
import numpy as np

plt.rcParams.update({"figure.dpi": 130, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
INK, FAINT = "#1f4e79", "#9db4c8"


def draw_assessment(figures: dict[str, Any], path: Path) -> None:
    """Overall figures with their intervals beside the confusion matrix (F1 of each class where there
    are many).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1, 1.2))
    # a loss is on another scale
    names = [name for name in figures["intervals"] if name != "loss"]
    for place, name in enumerate(names):
        low, high = figures["intervals"][name]
        value = figures[name]
        left.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=INK, capsize=4)
        left.annotate(f"{value:.3f}", (value, place), textcoords="offset points", xytext=(0, 8), ha="center")
    left.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(-0.6, len(names) - 0.4),
        title=f"{figures['rows']} rows, 95 % intervals",
    )
    # more squares than that can't be read
    if len(figures["labels"]) <= 12:
        _confusion(right, np.asarray(figures["confusion"]), figures["labels"])
    else:
        _worst_classes(right, figures["per_class"])
    fig.tight_layout()
    fig.savefig(path)
    # pyplot keeps every figure until it is closed
    plt.close(fig)


def _confusion(axes: Any, matrix: np.ndarray, labels: Sequence[str]) -> None:
    # a class without rows
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        # on a dark square black can't be read
        axes.text(j, i, str(count), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    places = range(len(labels))
    axes.set(xticks=places, yticks=places, xlabel="predicted", ylabel="gold", title="confusion")
    axes.set_xticklabels(
        labels, rotation=45 if len(labels) > 4 else 0, ha="right" if len(labels) > 4 else "center"
    )
    axes.set_yticklabels(labels)
    axes.spines[:].set_visible(False)


def _worst_classes(axes: Any, per_class: dict[str, dict[str, float]], shown: int = 20) -> None:
    # the weakest, which one would mend first
    worst = sorted(per_class, key=lambda name: per_class[name]["f1"])[:shown]
    axes.barh(worst, [per_class[name]["f1"] for name in worst], color=INK)
    # the worst on top
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="F1", title=f"the {len(worst)} weakest of {len(per_class)} classes")
    axes.tick_params(axis="y", labelsize=6)


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path, figure: str = "accuracy") -> None:
    """One point a method: the figure against trainable parameters, seconds and peak memory.

    Args:
        rows: each with method, `figure`, low, high, trainable, seconds, memory_mb.
    """
    axes_of = (
        ("trainable", "trainable parameters", True),
        ("seconds", "training seconds", False),
        ("memory_mb", "peak memory, MB", False),
    )
    # one scale for all three: points of one method stand at one height
    fig, panels = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for panel, (key, label, logarithmic) in zip(panels, axes_of, strict=True):
        for index, row in enumerate(rows):
            value = row[figure]
            panel.errorbar(
                row[key],
                value,
                yerr=[[value - row["low"]], [row["high"] - value]],
                fmt="o",
                color=INK,
                ecolor=FAINT,
                capsize=2,
            )
            panel.annotate(
                row["method"],
                (row[key], value),
                textcoords="offset points",
                # up and down in turns, since methods of like cost lie beside each other
                xytext=(5, 4 if index % 2 else -10),
                fontsize=7,
            )
        panel.set(xlabel=label, xscale="log" if logarithmic else "linear")
        panel.margins(x=0.15)
        panel.grid(alpha=0.2)
    panels[0].set_ylabel(f"{figure}, 95 % interval")
    fig.tight_layout()
    fig.savefig(path)
    plt.close(fig)
