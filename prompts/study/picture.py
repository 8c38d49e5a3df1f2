"""A study's figures as a picture: a line a prompt with its name and interval, and what guessing gets. Knows
findings."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np

from prompts.study.findings import Findings
from prompts.study.measures import HUNDRED
from prompts.study.outcomes import Outcome

matplotlib.use("Agg")  # no screen is needed or wanted

import matplotlib.pyplot as plt

MOST = 24  # prompts of a picture
COLOURS = ("#1f4e79", "#c44e52", "#55a868", "#8172b2", "#937860", "#64b5cd")


def draw_study(found: Findings, path: Path) -> None:
    """A panel a model: each prompt by the heading figure, its 95 % interval, all ways beside one another."""
    # names are people's: dollar signs are no formula, and a letter that the font lacks is no fault
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        _draw(found, path)


def _draw(found: Findings, path: Path) -> None:
    models = list(dict.fromkeys(one.cell.model for one in found.outcomes))
    hows = list(dict.fromkeys(one.how for one in found.outcomes))
    # each model has its own best
    shown = {model: _best_first(found, model) for model in models}
    tall = max(len(names) for names in shown.values())
    # a common scale: models stand beside each other
    fig, panels = plt.subplots(
        1, len(models), figsize=(2.5 + 4.5 * len(models), 1.6 + 0.42 * tall), sharex=True, squeeze=False
    )
    for panel, model in zip(panels[0], models, strict=True):
        names = shown[model]
        for number, how in enumerate(hows):
            mine = [
                one
                for one in found.outcomes
                if one.cell.model == model and one.how == how and one.cell.name in names
            ]
            _points(
                found,
                panel,
                mine,
                names,
                # ways stand one below the other, within the prompt's own line
                shift=(number - (len(hows) - 1) / 2) * 0.7 / max(len(hows), 1),
                colour=COLOURS[number % 6],
                how=how,
            )
        if found.baseline and found.metric in ("accuracy", "matthews", "macro_f1"):
            # chance is known for accuracy; for other figures a constant answer's is the line
            chance = (
                found.baseline["chance"]
                if found.metric == "accuracy"
                else found.baseline.get(found.metric, 0.0)
            )
            panel.axvline(chance, color="grey", linestyle="--", linewidth=1, label="guessing")
        # BLEU and chrF have another scale, and Matthews goes below 0
        if found.metric not in HUNDRED and found.metric != "matthews":
            panel.set_xlim(0, 1.02)
        panel.set(yticks=range(len(names)), title=Path(model).name, xlabel=found.metric)
        panel.set_yticklabels([_short(name, found.entry.name) for name in names], fontsize=8)
        # the first on top
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.2)
    # once for all panels, which share ways and colours
    handles, labels = panels[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncol=min(len(labels), 4), fontsize=8, frameon=False)
    # the legend's height is fixed, so that its share of a short picture is larger
    fig.tight_layout(rect=(0, 0.08 + 0.3 / (1.6 + 0.42 * tall), 1, 1))
    # without the program's version: the same findings give the same bytes
    fig.savefig(path, metadata={"Software": None}, dpi=110)
    plt.close(fig)


# by the best of its ways
def _best_first(found: Findings, model: str) -> list[str]:
    """Names of a model's prompts, the best of them first."""
    best: dict[str, float] = {}
    for one in found.outcomes:
        if one.cell.model == model:
            best[one.cell.name] = max(best.get(one.cell.name, -np.inf), found.line_of(one)[found.metric])
    return sorted(best, key=lambda name: -best[name])[:MOST]


def _points(
    found: Findings,
    panel: plt.Axes,
    mine: list[Outcome],
    names: list[str],
    *,
    shift: float,
    colour: str,
    how: str,
) -> None:
    lines = [found.line_of(one) for one in mine]
    values = np.array([line[found.metric] for line in lines])
    low = np.array([line[f"{found.metric}_low"] for line in lines])
    high = np.array([line[f"{found.metric}_high"] for line in lines])
    places = np.array([names.index(one.cell.name) for one in mine]) + shift
    # a percentile interval need not hold its own figure, which a bar can't show
    reach = (
        np.stack([np.maximum(values - low, 0), np.maximum(high - values, 0)])
        if len(values)
        else np.zeros((2, 0))
    )
    panel.errorbar(
        values, places, xerr=reach, fmt="o", color=colour, markersize=3.5, linewidth=1, alpha=0.85, label=how
    )


def _short(name: str, entry: str) -> str:
    name = name.removeprefix(f"{entry}/")
    # both ends: names of prompts differ in both
    return name if len(name) <= 42 else name[:20] + "…" + name[-20:]
