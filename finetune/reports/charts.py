"""Figures → charts as SVG text for pages, light and dark. Knows numbers and matplotlib; knows no models and
no files.

Every chart is drawn in placeholder colours that become the page's own CSS variables, so that one drawing
serves both themes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import matplotlib
from cycler import cycler

matplotlib.use("Agg")  # no screen is needed or wanted

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# placeholder → CSS variable; odd values, so that none stands for anything else in a drawing
INK, FAINT, FIRST, SECOND, THIRD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
PAPER = "#101112"
THEME = {INK: "ink", FAINT: "faint", FIRST: "first", SECOND: "second", THIRD: "third", PAPER: "paper"}
STYLE = {
    # letters stay text, which can be searched, copied and read aloud
    "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK, "ytick.color": INK, "axes.titlecolor": INK, "axes.spines.top": False,
    # ids inside a drawing follow from this and not from chance: the same figures give the same file
    "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "charts",
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.prop_cycle": cycler(color=[FIRST, SECOND, THIRD, FAINT]),
}  # fmt: skip
LEAST = 0.7  # of a drawing's own width: its letters are no smaller than 6 points


def as_svg(figure: Figure, said: str) -> str:
    """The drawing as SVG with the page's colours; `said` is read aloud in place of it."""
    out = io.StringIO()
    with warnings.catch_warnings():  # the browser has the letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        # without a date, for the same reason
        figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    # the XML head and document type have no place inside HTML
    text = text[text.index("<svg") :]
    for colour, name in THEME.items():
        # matplotlib writes colours in small letters
        text = re.sub(re.escape(colour), f"var(--{name})", text, flags=re.IGNORECASE)
    # a width of its own would burst a telephone; the view box keeps the proportions, and the frame scrolls
    # where letters would become too small to read
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', _fluid, text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(said)}"', 1)


def _fluid(head: re.Match[str]) -> str:
    width = float(head[2])
    return f'{head[1]} style="width:100%;min-width:{LEAST * width:.0f}pt;max-width:{width:.0f}pt"'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def curves(
    lines: dict[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    marked: Sequence[str] = (),
) -> str:
    """Lines over steps: name → (x, y). `marked` names those whose points are few and shown."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.7))
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            axes.plot(x, y, label=name, linewidth=1.6, marker="o" if name in marked else None, markersize=4)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        # steps are whole numbers, and matplotlib would put parts of them around a single one
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25, color=FAINT)
        if len(lines) > 1:
            axes.legend()
        return as_svg(figure, f"{ylabel} over {xlabel}: {', '.join(lines)}")


def dots(
    rows: Sequence[tuple[str, float, Sequence[float] | None]], xlabel: str, chance: float | None = None
) -> str:
    """One line a name: value and its interval, from top to bottom; a dashed line where guessing lies."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.6 + 0.44 * len(rows)))
        axes = figure.subplots()
        # from top to bottom, while the axis counts from below
        for place, (name, value, bounds) in enumerate(reversed(rows)):
            # a bound may lie past its value by a rounding, and matplotlib refuses negative lengths
            error = None if bounds is None else [[max(value - bounds[0], 0)], [max(bounds[1] - value, 0)]]
            axes.errorbar(value, place, xerr=error, fmt="o", color=FIRST, ecolor=FAINT, capsize=3, zorder=4)
            end = value if bounds is None else max(value, bounds[1])
            axes.annotate(
                f"{value:.3f}", (end, place), xytext=(5, 0), textcoords="offset points", va="center", zorder=4
            )
            # above its line and not beside it: names of prompts are as long as a telephone is wide
            axes.text(
                0, place + 0.42, _cut(name), transform=axes.get_yaxis_transform(), va="center",
                # the dashed line must not go through letters
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0},
            )  # fmt: skip
        if chance is not None:
            axes.axvline(chance, color=SECOND, linestyle="--", linewidth=1)
        axes.set(yticks=[], xlabel=xlabel, ylim=(-0.5, len(rows) - 0.3))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", alpha=0.25, color=FAINT)
        return as_svg(figure, "; ".join(f"{name} {value:.3f}" for name, value, _ in rows))


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Counts, shaded by the share of each gold class."""
    counts = np.asarray(matrix)
    # a class that no row has would be divided by 0
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(2 + 0.45 * len(labels), 7)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(size + 1.2, size))
        axes = figure.subplots()
        for (i, j), count in np.ndenumerate(counts):
            # matplotlib's own colour maps know no themes: a see-through square of one colour does
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (j - 0.5, i - 0.5), 1, 1, color=FIRST, alpha=0.75 * share[i, j], lw=0
                )
            )
            axes.text(j, i, str(count), ha="center", va="center", fontsize=9 if len(labels) < 9 else 6)
        places = range(len(labels))
        axes.set(xticks=places, yticks=places, xlabel="predicted", ylabel="gold")
        # turned, so that the first class stands on top as in the table
        axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
        turned = {"rotation": 45, "ha": "right"} if len(labels) > 3 else {}
        axes.set_xticklabels([_cut(name, 18) for name in labels], **turned)
        axes.set_yticklabels([_cut(name, 18) for name in labels])
        axes.spines[:].set_visible(False)
        return as_svg(figure, f"Confusion of {len(labels)} classes")


def reliability_chart(bins: Sequence[dict[str, float]]) -> str:
    """Stated probability against the share that was right; on the dashed line the model means what it
    says.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 3))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
        # the largest bin is the measure for the others' dots
        most = max(one["rows"] for one in bins)
        axes.plot(
            [one["confidence"] for one in bins], [one["right"] for one in bins], color=FIRST, linewidth=1
        )
        for one in bins:
            # an area, and never so small that it can't be seen
            size = 20 + 120 * one["rows"] / most
            axes.scatter(one["confidence"], one["right"], s=size, color=FIRST, alpha=0.8, lw=0)
        axes.set(xlabel="stated probability", ylabel="share right", xlim=(0, 1.03), ylim=(0, 1.03))
        return as_svg(figure, "Reliability of stated probabilities")


def histogram(values: Sequence[float], xlabel: str, limit: float | None = None) -> str:
    """How often each size occurs; a dashed line at a limit."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.2))
        axes = figure.subplots()
        # no more bars than sizes there are
        axes.hist(values, bins=min(40, max(len(set(values)), 1)), color=FIRST, alpha=0.8)
        if limit is not None:
            axes.axvline(limit, color=SECOND, linestyle="--", linewidth=1)
        axes.set(xlabel=xlabel, ylabel="rows")
        return as_svg(figure, f"Distribution of {xlabel}")


def panels(series: dict[str, tuple[Sequence[float], Sequence[float]]], xlabel: str) -> str:
    """One small chart a name, side by side, each with a scale of its own."""
    columns = min(len(series), 3)
    # rounded up
    rows = -(-len(series) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns, 1.9 * rows), layout="constrained")
        # one chart alone comes without an array around it
        cells = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
        for axes, (name, (x, y)) in zip(cells, series.items(), strict=False):
            axes.plot(x, y, linewidth=1.4)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel(xlabel, fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
            axes.grid(alpha=0.25, color=FAINT)
        # cells that are left over in the last row
        for axes in cells[len(series) :]:
            axes.set_visible(False)
        return as_svg(figure, f"{', '.join(series)} over {xlabel}")


def _cut(text: Any, most: int = 40) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def learning_curves(
    lines: dict[str, Sequence[tuple[int, float, tuple[float, float]]]],
    flat: Collection[str],
    xlabel: str,
    ylabel: str,
) -> str:
    """Figures over growing numbers, on a logarithmic scale; the legend says each line's last value.

    Args:
        lines: name → (number, value, its interval), ascending.
        flat: names that are drawn straight across, at their one value.
    """
    # colours of each dash before the next dash: neighbours differ in colour
    styles = [(colour, dash) for dash in ("-", "--", ":") for colour in (FIRST, SECOND, THIRD, INK)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.4))
        axes = figure.subplots()
        sizes = sorted({n for name, line in lines.items() if name not in flat for n, *_ in line})
        for place, (name, line) in enumerate(lines.items()):
            colour, dash = styles[place % len(styles)]
            said = f"{_cut(name)} {line[-1][1]:.2f}"
            if name in flat:
                axes.axhline(line[-1][1], color=colour, linestyle="--", linewidth=1, label=said)
                continue
            x, y = [n for n, *_ in line], [v for _, v, _ in line]
            # matplotlib takes the two lengths of all bars as two rows: [2, points]
            bars = np.array([[max(v - low, 0), max(high - v, 0)] for _, v, (low, high) in line]).T
            # a share and no length, since the axis is logarithmic
            shift = 1 + 0.02 * (place - len(lines) / 2)  # bars beside each other, not on each other
            axes.errorbar(
                np.array(x) * shift, y, yerr=bars, color=colour, linestyle=dash, linewidth=1.4,
                marker="o", markersize=3.5, elinewidth=0.7, capsize=2, label=said,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        # ways without a curve alone have no sizes
        if sizes:
            # the numbers that were tried, in place of powers of ten
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.15)
        axes.minorticks_off()
        axes.grid(alpha=0.2, color=FAINT)
        # below and not at the lines' ends, which a telephone would cut off
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=1 if len(lines) < 4 else 2, fontsize=8)
        said = "; ".join(f"{name} {line[-1][1]:.3f}" for name, line in lines.items())
        return as_svg(figure, f"{ylabel} over {xlabel}: {said}")
