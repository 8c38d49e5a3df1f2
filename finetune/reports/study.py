"""A study of prompts → sections: each prompt with its interval and the line of guessing, tests between
prompts, texts.

Knows `figures.csv`, `pairs.csv` and `findings.json`; asks no model.
"""

from __future__ import annotations

from typing import Any

from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table, Words, cut_text
from finetune.reports.run_folder import RunFolder

SHOWN = 24  # prompts of the chart and lines of a table


def study_sections(run: RunFolder) -> list[Section]:
    """What a study found out, as its files say it."""
    made = [Section("Prompts", _spread(run)), Section("Differences", _differences(run)), *_templates(run)]
    return [section for section in made if section.blocks]


def _spread(run: RunFolder) -> list[Table | Chart | Words]:
    lines = run.table("figures.csv")
    metric = str(run.findings.get("metric", "accuracy"))
    # F1 has bounds of its own in the file
    low, high = ("f1_low", "f1_high") if metric == "macro_f1" else ("low", "high")
    # prompts that were refused have no figure
    known = [line for line in lines if _number(line.get(metric)) is not None]
    if not known:
        return []
    best = sorted(known, key=lambda line: -float(line[metric]))
    dots = [(_name(line), float(line[metric]), _bounds(line, low, high)) for line in best[:SHOWN]]
    labels = run.findings.get("labels") or []
    # guessing is right as often only where accuracy counts
    chance = 1 / len(labels) if labels and metric == "accuracy" else None
    blocks: list[Table | Chart | Words] = [
        Chart(
            charts.dots(dots, f"{metric}, 95 % interval", chance),
            f"The best {len(dots)} of {len(known)}" + (", dashed: guessing." if chance else "."),
        ),
        Table(
            [{k: cut_text(v, 40) for k, v in line.items()} for line in best[:SHOWN]],
            "All figures of the same.",
        ),
    ]
    return blocks


def _name(line: dict[str, str]) -> str:
    parts = [line.get(key, "") for key in ("model", "template", "verbalizer", "shots", "calibration")]
    return " · ".join(part for part in parts if part)


def _bounds(line: dict[str, str], low: str, high: str) -> list[float] | None:
    ends = [_number(line.get(low)), _number(line.get(high))]
    # both or none: half an interval would be drawn as a whole one
    return None if None in ends else [float(end) for end in ends if end is not None]


def _number(text: Any) -> float | None:
    try:
        return float(text)
    # an empty cell is None in CSV, or no number
    except (TypeError, ValueError):
        return None


def _differences(run: RunFolder) -> list[Table | Chart | Words]:
    pairs = run.table("pairs.csv")
    rows = [{k: cut_text(v, 60) for k, v in line.items()} for line in pairs[:SHOWN]]
    return [Table(rows, f"{len(rows)} of {len(pairs)} comparisons on the same rows.")] if rows else []


def _templates(run: RunFolder) -> list[Section]:
    found = run.findings.get("templates")
    texts = found.items() if isinstance(found, dict) else []
    blocks: list[Table | Chart | Words] = [Words(str(name), str(text)) for name, text in texts]
    return [Section("Texts", blocks)] if blocks else []
