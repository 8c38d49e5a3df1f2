"""Every way of classifying at several numbers of labels → one page: what to take, curves, costs, tests.

Knows right and wrong answers and what they cost; knows no models and no ways by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics import bootstrap
from finetune.metrics.learning_curve import Forecast, interval_of_means, outlook
from finetune.metrics.measure import mean_of
from finetune.metrics.significance import Comparison, compare, holm
from finetune.reports.blocks import Chart, Section, Table, Words
from finetune.reports.charts import learning_curves
from finetune.reports.page import REPORT, sections_page
from finetune.reports.tables import with_interval

SAMPLES = 2000


@dataclass(frozen=True)
class LadderPoint:
    """One run: which rows it had right, and what it took.

    Attributes:
        way: its title.
        right: of each unseen row.
        said: number of the class that it said, -1 for none.
        grows: whether more labels can help it.
    """

    way: str
    labels: int
    seed: int
    right: Sequence[bool]
    said: Sequence[int]
    seconds: float
    row_ms: float
    memory_mb: float | None
    own_mb: float
    base_mb: float
    grows: bool = True


# one row of the unseen rows for each draw
@dataclass(frozen=True)
class Cell:
    """All draws of one way at one number of labels.

    Attributes:
        scores: right (1) or wrong (0), [draws, rows].
    """

    way: str
    labels: int
    points: Sequence[LadderPoint]
    scores: np.ndarray

    @cached_property
    def accuracy(self) -> float:
        return float(self.scores.mean())

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """95 % interval, rows and draws resampled."""
        return interval_of_means(self.scores, SAMPLES)

    def mean(self, name: str) -> float | None:
        """Of a cost over draws; None where one doesn't know it."""
        values = [getattr(point, name) for point in self.points]
        # one draw that doesn't know it would make the mean one of the others
        return None if None in values else float(np.mean(values))


@dataclass(frozen=True)
class LadderPage:
    """All that a ladder's page tells.

    Attributes:
        gold: number of each unseen row's class.
        told: what was measured, for the last section.
        missing: runs that are not there, each with its reason.
        commands: what makes a way's model, by its title.
    """

    name: str
    points: Sequence[LadderPoint]
    gold: Sequence[int]
    labels: Sequence[str]
    more: int = 500
    told: dict[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    commands: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def cells(self) -> list[Cell]:
        """By way, in the order in which they came, then by labels."""
        groups: dict[tuple[str, int], list[LadderPoint]] = {}
        for point in self.points:
            groups.setdefault((point.way, point.labels), []).append(point)
        ways = list(dict.fromkeys(point.way for point in self.points))
        order = sorted(groups, key=lambda key: (ways.index(key[0]), key[1]))
        return [
            Cell(way, labels, groups[way, labels],
                 np.array([point.right for point in groups[way, labels]], dtype=float))
            for way, labels in order
        ]  # fmt: skip

    @cached_property
    def last(self) -> list[Cell]:
        """Each way at the most labels that it was tried with, the best first."""
        # the last of each way, since cells come by rising labels
        furthest = {cell.way: cell for cell in self.cells}
        return sorted(furthest.values(), key=lambda cell: -cell.accuracy)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Bootstrap samples of the unseen rows, shared by all tests."""
        return bootstrap.draws(len(self.gold), SAMPLES, 0)

    @cached_property
    def tests(self) -> list[tuple[str, Cell, Cell, Comparison]]:
        """(where, best, other, what the same rows say), all corrected together by Holm: the best against all
        others, at each number of labels and each way at its most."""
        pairs = [("all labels", self.last[0], other) for other in self.last[1:]]
        sizes = sorted({cell.labels for cell in self.cells if cell.points[0].grows})
        for size in sizes:
            # those that learn at this number, and those that can be had without more labels
            there = [c for c in self.cells if c.labels == size and c.points[0].grows]
            # which class is the commonest a few rows tell: the flat way stands beside all
            flat = self.cells[0].way
            there += [c for c in self.cells if not c.points[0].grows and (c.labels <= size or c.way == flat)]
            best = max(there, key=lambda cell: cell.accuracy)
            pairs += [(f"{size} labels", best, other) for other in there if other is not best]
        found = [
            # by row the mean over draws: rows are what is resampled, draws are not paired
            compare(*(mean_of(cell.scores.mean(axis=0)) for cell in (best, other)), self.drawn)
            for _, best, other in pairs
        ]
        return [(*pair, one) for pair, one in zip(pairs, holm(found), strict=True)]

    @cached_property
    def alike(self) -> list[Cell]:
        """The best at its most labels, and those that are not significantly worse."""
        near = [
            other for where, _, other, one in self.tests if where == "all labels" and not one.is_significant
        ]
        return [self.last[0], *near]

    @cached_property
    def taken(self) -> Cell:
        """Of those that are alike, the cheapest a row."""
        return min(self.alike, key=lambda cell: cell.mean("row_ms") or 0.0)

    def outlook(self, way: str) -> Forecast | None:
        """What further labels would likely bring a way."""
        cells = [cell for cell in self.cells if cell.way == way and cell.points[0].grows]
        return outlook({cell.labels: cell.scores for cell in cells}, self.more)


def write_ladder_page(page: LadderPage, folder: Path) -> Path:
    """`report.html` in a folder; one file that fetches nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT
    path.write_text(ladder_page(page), encoding="utf-8")
    return path


def ladder_page(page: LadderPage) -> str:
    """HTML: what to take, in words and figures."""
    taken = page.taken
    headline = f"{taken.way}: accuracy {with_interval(taken.accuracy, taken.bounds)}, {taken.labels} labels"
    sections = [
        Section("What to take", [*(Words(text) for text in advice(page)), *_command(page)]),
        Section("Learning curves", [_chart(page)]),
        Section("More labels", [*_outlooks(page)]),
        Section("Figures", [_figures(page)]),
        Section("Differences", [_differences(page)]),
        Section("How it was measured", _measured(page)),
    ]
    shown = [section for section in sections if section.blocks]
    return sections_page(f"Which way is worth it: {Path(page.name).name}", headline, shown)


def advice(page: LadderPage) -> list[str]:
    """What to take, how sure that is, and what more labels would bring, in words."""
    best, taken = page.last[0], page.taken
    said = [_choice(page, best, taken)]
    flat = [cell for cell in page.alike if cell.way == page.cells[0].way and not cell.points[0].grows]
    if flat and flat[0].labels and best is not flat[0] and flat[0] in page.alike:
        said = [
            f"Nothing is significantly better than {flat[0].way} ({flat[0].accuracy:.3f}) on "
            f"{len(page.gold)} "
            "unseen rows: label more rows, measure on more, or look at whether the classes follow from the "
            "texts."
        ]
    near = [cell.way for cell in page.alike if cell is not taken]
    if near:
        said.append(
            f"On {len(page.gold)} unseen rows the difference from the best ({best.way}) is not significant "
            f"for: {', '.join(cell.way for cell in page.alike if cell is not best)}. That doesn't say that "
            "they "
            "are equal; the intervals under Differences say how far apart they may be."
        )
    # ways that more labels change nothing about are no measure of how far others came
    most = max((cell.labels for cell in page.last if cell.points[0].grows), default=0)
    early = [
        f"{cell.way} ({cell.labels})" for cell in page.last if cell.points[0].grows and cell.labels < most
    ]
    if early:
        said.append(
            "Not tried with as many labels as others, and perhaps ahead with them: "
            f"{', '.join(early)}. A longer --budget, with the same command, goes on from here."
        )
    said += _by_size(page)
    said.append(_more(page, taken))
    if best is not taken:
        said.append(_more(page, best))
    if page.missing:
        count = "1 run is" if len(page.missing) == 1 else f"{len(page.missing)} runs are"
        said.append(f"{count} not in this page; the last section says which and why.")
    return [text for text in said if text]


def _command(page: LadderPage) -> list[Words]:
    command = page.commands.get(page.taken.way)
    return [Words(f"{page.taken.way}, of all labelled rows:", command)] if command else []


def _choice(page: LadderPage, best: Cell, taken: Cell) -> str:
    cost = f"{taken.mean('row_ms'):.1f} ms a row here"
    own = f"{taken.mean('own_mb'):.1f} MB" + (
        f" beside a model of {taken.mean('base_mb'):.0f} MB" if taken.mean("base_mb") else ""
    )
    text = (
        f"Take {taken.way}: accuracy {with_interval(taken.accuracy, taken.bounds)} with {taken.labels} labels"
    )
    text += f", {cost}, {own}."
    if best is taken:
        return text
    times = (best.mean("row_ms") or 0.0) / max(taken.mean("row_ms") or 0.0, 1e-3)
    one = next(c for where, _, other, c in page.tests if where == "all labels" and other is taken)
    return (
        f"{text} {best.way} is {one.difference:.3f} above it ({one.low:+.3f} to {one.high:+.3f}), which is "
        "not "
        f"significant, and takes {times:.0f} times as long a row."
    )


def _by_size(page: LadderPage) -> list[str]:
    """Of each number of labels: the best, and who is not significantly behind it."""
    found = []
    for where in dict.fromkeys(where for where, *_ in page.tests if where != "all labels"):
        tests = [(best, other, one) for place, best, other, one in page.tests if place == where]
        best = tests[0][0]
        near = [other.way for _, other, one in tests if not one.is_significant]
        beside = f"; not significantly behind: {', '.join(near)}" if near else "; all others are behind it"
        found.append(f"With {where}: {best.way} ({best.accuracy:.3f}){beside}.")
    return found


def _more(page: LadderPage, cell: Cell) -> str:
    if not cell.points[0].grows:
        return f"{cell.way}: more labels change nothing about it."
    outlook = page.outlook(cell.way)
    if outlook is None:
        return f"{cell.way}: too few numbers of labels were tried to say what more would bring (three do)."
    if cell.accuracy >= 1:
        return (
            f"{cell.way} is right on all {len(page.gold)} unseen rows, so that no gain could be seen on "
            "them; only more unseen rows can tell what more labels bring."
        )
    if outlook.is_likely:
        return (
            f"Another {outlook.more} labels would likely bring {cell.way} {outlook.gain:+.3f} accuracy "
            f"({outlook.low:+.3f} to {outlook.high:+.3f}), if its error goes on falling as it did."
        )
    seen = (
        f"from {outlook.since} to {outlook.labels} labels its accuracy changed by {outlook.rise:+.3f} "
        f"({outlook.rise_low:+.3f} to {outlook.rise_high:+.3f})"
    )
    if outlook.rise_high < 0:
        return (
            f"{cell.way} became worse with more labels: {seen}. Another {outlook.more} promise nothing; look "
            "at the labels that came last, and at how it is trained."
        )
    return (
        f"Nothing says that another {outlook.more} labels would bring {cell.way} more: {seen}, which can't "
        "be told from none. More unseen rows or draws would narrow that."
    )


def _chart(page: LadderPage) -> Chart:
    lines = {
        way: [(c.labels, c.accuracy, c.bounds) for c in page.cells if c.way == way]
        for way in dict.fromkeys(cell.way for cell in page.cells)
    }
    flat = {cell.way for cell in page.cells if not cell.points[0].grows}
    return Chart(
        learning_curves(lines, flat, "labelled rows", "accuracy on the unseen rows"),
        "Bars: 95 % intervals, unseen rows and draws of labelled ones resampled. Dashed across: ways that "
        "more "
        "labels change nothing about.",
    )


def _outlooks(page: LadderPage) -> list[Table]:
    rows = []
    for cell in page.last:
        one = page.outlook(cell.way) if cell.points[0].grows else None
        if one is not None:
            rows.append(
                {
                    "way": cell.way, "accuracy now": f"{cell.accuracy:.3f}", "labels now": one.labels,
                    "at its end": f"{one.rise:+.3f} from {one.since} labels on "
                    f"({one.rise_low:+.3f} to {one.rise_high:+.3f})",
                    f"with {one.more} more": f"{one.gain:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
                    if one.is_likely else "no gain that is likely", "exponent": f"{one.exponent:.2f}",
                }
            )  # fmt: skip
    caption = (
        "Error = a · labels^-exponent, fitted through the sizes that were tried, anew for each resampling "
        "of rows and draws. An extrapolation: it holds as long as the curve goes on as it did, and is left "
        "out where the curve no longer rises at its end."
    )
    return [Table(rows, caption)] if rows else []


def _figures(page: LadderPage) -> Table:
    gold = np.asarray(page.gold)
    rows = []
    for cell in page.cells:
        f1 = [
            float(bootstrap.macro_f1(
                bootstrap.class_counts(np.asarray(p.said), gold, len(page.labels)).sum(0, keepdims=True)
            )[0])
            for p in cell.points
        ]  # fmt: skip
        memory = cell.mean("memory_mb")
        rows.append(
            {
                "way": cell.way, "labels": cell.labels, "draws": len(cell.points),
                "accuracy": with_interval(cell.accuracy, cell.bounds), "macro-F1": f"{np.mean(f1):.3f}",
                "seconds to learn": f"{cell.mean('seconds'):.1f}", "ms a row": f"{cell.mean('row_ms'):.1f}",
                "memory, MB": "" if memory is None else f"{memory:.0f}",
                "own MB": f"{cell.mean('own_mb'):.1f}", "model's MB": f"{cell.mean('base_mb'):.0f}",
            }
        )  # fmt: skip
    return Table(
        rows,
        "Memory: the most that the whole process held. Own: what was learnt, on disk; the model that it "
        "stands on "
        "comes beside it.",
    )


def _differences(page: LadderPage) -> Table:
    rows = [
        {
            "where": where, "best": best.way, "other": f"{other.way}, {other.labels} labels",
            "difference": f"{one.difference:+.3f}", "interval": f"{one.low:+.3f} to {one.high:+.3f}",
            "p (Holm)": f"{one.adjusted:.2g}",
            "verdict": "significant" if one.is_significant else "not significant",
        }
        for where, best, other, one in page.tests
    ]  # fmt: skip
    return Table(
        rows,
        f"Paired tests on the same {len(page.gold)} rows (McNemar's where each row is right or wrong, else "
        "paired "
        f"t), {len(rows)} of them, corrected together (Holm 1979); intervals are as wide as the verdicts "
        "need.",
    ) if rows else Table([{"": "one way alone"}])  # fmt: skip


def _measured(page: LadderPage) -> list[Table | Chart | Words]:
    blocks: list[Table | Chart | Words] = [Table([page.told])] if page.told else []
    if page.missing:
        blocks.append(Table([{"not run": one} for one in page.missing]))
    return blocks
