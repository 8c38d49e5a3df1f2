"""Figures → text tables (Markdown, CSV). Knows numbers; knows no models."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys → a Markdown table; numbers to the right, whatever would end a cell or
    its line escaped.
    """
    if not rows:
        return ""
    keys = list(rows[0])
    heads = [_cell(key) for key in keys]
    cells = [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    # a figure with its interval is a text that begins with a digit
    right = [
        all(isinstance(row[key], (int, float)) or str(row[key])[:1].isdigit() for row in rows) for key in keys
    ]

    def line(parts: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True)
            )
            + " |"
        )

    rule = (
        "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    )
    return "\n".join([line(heads), rule, *map(line, cells)])


def _cell(value: Any) -> str:
    # white space of all kinds is one space, for a line's end would end the row
    return _plain(value).replace("|", "\\|")


# A spreadsheet computes a text that begins so, and a label or a prompt may say anything.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def comma_separated(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys → CSV text with a header. What a spreadsheet would take for a formula has an
    apostrophe before it; numbers stay numbers.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _no_formula(value: Any) -> Any:
    """A text that no spreadsheet computes; anything else as it came."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)  # a number that was written down, as -0.25
    except ValueError:
        return f"'{value}"
    return value


def with_interval(value: float, interval: Sequence[float]) -> str:
    """`0.912 (0.894–0.929)`."""
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def scored_rows(figures: dict[str, Any]) -> str:
    """How many rows an assessment scored, and what became of those that were trained on: `295 rows; 2660 that
    it was trained on are left out`."""
    said = f"{figures.get('rows', '?')} rows"
    if figures.get("rows_left_out"):
        said += f"; {figures['rows_left_out']} that it was trained on are left out"
    # kept by the user's word, which whoever reads the figure must know
    if figures.get("rows_trained_on"):
        said += f", {figures['rows_trained_on']} of which it was trained on"
    return said


def assessment_table(figures: dict[str, Any]) -> str:
    """Overall figures, with their intervals where there are any, then those of each class."""
    bounds = figures["intervals"]
    shown = {name: with_interval(figures[name], bounds[name]) for name in bounds}
    # means over all rows; times are no figures
    plain = (
        n
        for n, v in figures.items()
        if isinstance(v, float) and n not in bounds and not n.endswith(("runtime", "_second"))
    )
    shown |= {name: f"{figures[name]:.3f}" for name in plain}
    parts = [
        scored_rows(figures),
        markdown([{"figure": name, "value (95 % interval)": text} for name, text in shown.items()]),
    ]
    classes = [
        {"class": name, **{k: f"{v:.3f}" for k, v in one.items() if k != "rows"}, "rows": int(one["rows"])}
        for name, one in figures.get("per_class", {}).items()
    ]
    return "\n\n".join([*parts, markdown(classes)] if classes else parts)


# a backslash, a tilde and a caret have commands of their own
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}


def latex(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys → a `tabular` with booktabs' rules, every special sign escaped."""
    if not rows:
        return ""

    def line(cells: Sequence[Any]) -> str:
        # sign by sign, so that what one replacement writes isn't replaced again
        return " & ".join("".join(LATEX.get(sign, sign) for sign in _plain(cell)) for cell in cells) + r" \\"

    keys = list(rows[0])
    body = [line([row[key] for key in keys]) for row in rows]
    head = [r"\begin{tabular}{" + "l" * len(keys) + "}", r"\toprule", line(keys), r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"])


def _plain(value: Any) -> str:
    return " ".join(str(value).split())
