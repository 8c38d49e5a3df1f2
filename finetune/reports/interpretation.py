"""Weights, positions, points and gradients → sections of a page, each drawing as SVG and as PNG. Knows arrays
and matplotlib; knows no models."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from finetune.reports.blocks import Chart, cut_text
from finetune.reports.charts import STYLE, as_svg

# from nothing to full of one blue: seen on white and on black, as the page may be either
# the same colour throughout, and nothing but its opacity grows
SHADES = LinearSegmentedColormap.from_list("shades", [(0.12, 0.44, 0.70, 0.0), (0.12, 0.44, 0.70, 1.0)])
SIGNED = LinearSegmentedColormap.from_list(
    # see-through in the middle: nothing for 0, one colour for each sign
    "signed",
    [(0.77, 0.34, 0.17, 1.0), (0.77, 0.34, 0.17, 0.0), (0.12, 0.44, 0.70, 0.0), (0.12, 0.44, 0.70, 1.0)],
)
COLOURS = ("#1f6fb2", "#c4572b", "#2f8f6b", "#8a5fb0", "#b58a1f", "#4fa3a5", "#b0527a", "#7a7a7a")
# fixed colours, since a file has no theme to follow
ON_PAPER = {
    **STYLE, "text.color": "black", "axes.labelcolor": "black", "axes.edgecolor": "0.6",
    "xtick.color": "black", "ytick.color": "black", "axes.titlecolor": "black",
    "axes.prop_cycle": cycler(color=COLOURS),
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One drawing for the page, and the same as a file."""

    name: str
    chart: Chart
    png: bytes


def drawn(name: str, size: tuple[float, float], caption: str, draw: Callable[[Figure], None]) -> Picture:
    """Twice the same: in the page's own colours, and on white paper."""
    with rc_context(STYLE):
        figure = Figure(figsize=size)  # cut to what is drawn, which costs less than a layout that is solved
        draw(figure)
        svg = as_svg(figure, caption)
    # a font that lacks a letter is no news: the page's browser has it
    with rc_context(ON_PAPER), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=size)
        draw(figure)
        out = io.BytesIO()
        # without the program's version, so that equal drawings are equal files
        figure.savefig(
            out, format="png", dpi=150, facecolor="white", bbox_inches="tight", metadata={"Software": None}
        )
    return Picture(name, Chart(svg, caption), out.getvalue())


def heads_of_a_layer(
    name: str, maps: np.ndarray, keys: Sequence[str], queries: Sequence[str], caption: str
) -> Picture:
    """One square a head, [heads, queries, keys]; the darker, the more weight. Words stand beside few of
    them."""
    columns = min(len(maps), 4)
    # rounded up
    rows = -(-len(maps) // columns)
    side = 2.4 if max(len(keys), len(queries)) <= 24 else 2.0

    def draw(figure: Figure) -> None:
        figure.subplots_adjust(wspace=0.15, hspace=0.25)
        cells = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for head, axes in enumerate(cells):
            # the last row may have fewer heads than columns
            if head >= len(maps):
                axes.set_visible(False)
                continue
            # each head by its own largest weight; a head of zeros would divide by 0
            axes.imshow(
                maps[head], cmap=SHADES, vmin=0, vmax=max(float(maps[head].max()), 1e-9), aspect="auto"
            )
            axes.set_title(f"head {head}", fontsize=8)
            # words at the outer squares alone, or they would stand on their neighbours
            _words(
                axes, keys if head >= len(maps) - columns else None, queries if head % columns == 0 else None
            )

    return drawn(name, (side * columns + 0.8, side * rows + 0.7), caption, draw)


def one_map(
    name: str, weights: np.ndarray, keys: Sequence[str], queries: Sequence[str], caption: str
) -> Picture:
    """One large square with its words and, where there is room, its numbers."""
    size = min(2 + 0.33 * len(keys), 9), min(1.4 + 0.3 * len(queries), 9)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(weights, cmap=SHADES, vmin=0, vmax=max(float(weights.max()), 1e-9), aspect="auto")
        _words(axes, keys, queries)
        # beyond twelve by twelve numbers would run into each other
        if weights.size <= 144:
            for (i, j), value in np.ndenumerate(weights):
                axes.text(j, i, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=6)

    return drawn(name, size, caption, draw)


def over_picture(name: str, picture: np.ndarray, heat: np.ndarray, caption: str) -> Picture:
    """A map of patches [rows, columns] over the picture [height, width, 3] (0..1) that they cut up."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        extent = (0, picture.shape[1], picture.shape[0], 0)
        left.imshow(picture, extent=extent)
        # grey and pale, so that the heat is the only colour
        right.imshow(picture.mean(-1), cmap="gray", extent=extent, alpha=0.45)
        right.imshow(heat, cmap=SHADES, extent=extent, vmin=0, vmax=max(float(heat.max()), 1e-9), alpha=0.9)
        for axes in (left, right):
            axes.set_axis_off()

    return drawn(name, (5.2, 2.7), caption, draw)


def matrices(name: str, views: Sequence[tuple[str, np.ndarray]], caption: str) -> Picture:
    """Matrices of one kind side by side, each from its least to its greatest entry around zero."""

    def draw(figure: Figure) -> None:
        cells = figure.subplots(1, len(views), squeeze=False)[0]
        for axes, (title, matrix) in zip(cells, views, strict=True):
            # both signs by the same scale, so that 0 is in the middle
            most = max(float(np.abs(matrix).max()), 1e-9)
            axes.imshow(matrix, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto")
            axes.set_title(title, fontsize=8)

    return drawn(name, (2.6 * len(views), 2.8), caption, draw)


def scatter(
    name: str, points: np.ndarray, labels: Sequence[str] | None, words: Sequence[str], axes_said: str
) -> Picture:
    """Points [rows, 2], coloured by label; the words themselves where they are few."""
    kinds = sorted(set(labels)) if labels else []

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, kind in enumerate(kinds or [""]):
            # the colour of a label is its place among all of them
            chosen = [i for i in range(len(points)) if not kinds or (labels or [])[i] == kind]
            axes.scatter(
                *points[chosen].T, s=14, lw=0, alpha=0.8, color=COLOURS[place % len(COLOURS)], label=kind
            )
        # more words than that would cover the points
        if len(points) <= 30:
            for (x, y), word in zip(points, words, strict=True):
                axes.annotate(
                    cut_text(word, 24), (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
        # colours begin again beyond these, and a legend would mislead
        if 1 < len(kinds) <= len(COLOURS):
            axes.legend(fontsize=8)
        axes.set(xlabel="first", ylabel="second")

    return drawn(name, (6, 4.2), axes_said, draw)


def bars(name: str, values: np.ndarray, words: Sequence[str], ylabel: str, caption: str) -> Picture:
    """One bar a word, up where it speaks for the answer and down where it speaks against."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(range(len(values)), values, color=[COLOURS[0] if v >= 0 else COLOURS[1] for v in values])
        axes.set(ylabel=ylabel)
        axes.set_xticks(range(len(words)), [cut_text(word, 14) for word in words], fontsize=7, rotation=90)

    return drawn(name, (min(2 + 0.28 * len(words), 10), 2.8), caption, draw)


def fading(name: str, norms: np.ndarray, caption: str) -> Picture:
    """Norms over the distance to the last place, the last one first, on a scale of powers."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        # a logarithm has no 0; what vanished entirely stands at the bottom
        axes.plot(np.arange(len(norms)), np.maximum(norms[::-1], 1e-30), color=COLOURS[0], linewidth=1.6)
        axes.set(xlabel="places before the last one", ylabel="norm of the gradient", yscale="log")
        # few enough to be read apart: over many powers of ten each alone, over one or two some between them
        powers = np.log10(max(norms.max(), 1e-30) / max(norms.min(), 1e-30))
        between = (1.0,) if powers > 3 else (1.0, 3.0) if powers > 1.5 else (1.0, 2.0, 4.0, 7.0)
        # less than a power is read off as it is
        axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=9) if powers > 0.5 else MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # the page's text knows no powers set as formulas
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)

    return drawn(name, (5.2, 2.6), caption, draw)


def _words(axes: object, keys: Sequence[str] | None, queries: Sequence[str] | None) -> None:
    """Words along the sides, every so many of them where they are more than fit."""
    for words, put in ((keys, "x"), (queries, "y")):
        shown = words or []
        # every so manieth, with forty at most
        every = -(-len(shown) // 40) or 1
        places = range(0, len(shown), every)
        texts = [cut_text(shown[place], 14) for place in places]
        getattr(axes, f"set_{put}ticks")(
            list(places), texts, fontsize=7, **({"rotation": 90} if put == "x" else {})
        )
