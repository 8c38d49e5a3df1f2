"""A study's answers → rows on disk, tables, tests between prompts, a plot. Knows arrays and files; asks no
model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.metrics import bootstrap, classification
from finetune.reports.tables import comma_separated, markdown, with_interval
from prompts.study.asking import CALIBRATIONS, Answers
from prompts.study.rows import Row
from prompts.study.significance import compare, intervals
from prompts.study.study import value_of
from prompts.templates.verbalizer import probabilities

matplotlib.use("Agg")  # no screen is needed or wanted

import matplotlib.pyplot as plt

TESTED = 24  # cells between which every pair is tested
SHOWN = 12  # lines of the report's longer tables


@dataclass(frozen=True)
class Findings:
    """What a study found out on unseen rows."""

    entry: str
    metric: str
    labels: tuple[str, ...]
    rows: list[Row]
    answers: list[Answers]
    chosen: tuple[Answers, str] | None
    training_value: float | None
    ensembles: dict[str, dict[str, np.ndarray]]  # model → name → scores [rows, labels]

    @property
    def gold(self) -> np.ndarray:
        return np.array([row.label for row in self.rows])


def write_report(found: Findings, folder: Path) -> None:
    """Write rows.parquet, three tables, report.md, spread.png and findings.json; the same bytes for the same
    findings."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = figures(found)
    pairs = verdicts(found)
    write_rows(found, folder / "rows.parquet")
    (folder / "figures.csv").write_text(comma_separated(lines), encoding="utf-8")
    (folder / "pairs.csv").write_text(comma_separated(pairs), encoding="utf-8")
    draw_spread(lines, found.metric, folder / "spread.png")
    (folder / "report.md").write_text(in_words(found, lines, pairs), encoding="utf-8")
    (folder / "findings.json").write_text(json.dumps(summary(found, lines), indent=1), encoding="utf-8")


def figures(found: Findings) -> list[dict[str, Any]]:
    """One line a cell and calibration, and one an ensemble."""
    drawn = bootstrap.draws(len(found.rows), 2000, 0)
    lines = []
    for answers in found.answers:
        for how in CALIBRATIONS:
            lines.append(
                {**asdict(answers.cell), "calibration": how, **_line(answers.scores(how), found, drawn)}
            )
    for model, made in found.ensembles.items():
        for name, scores in made.items():
            cell = {
                "model": model,
                "template": "ensemble",
                "verbalizer": name.split(", ")[0],
                "shots": "",
                "seed": "",
            }
            lines.append({**cell, "calibration": name.split(", ")[1], **_line(scores, found, drawn)})
    return lines


def _line(scores: np.ndarray, found: Findings, drawn: np.ndarray) -> dict[str, Any]:
    gold, predicted = found.gold, scores.argmax(axis=1)
    values = classification.class_figures(scores, gold, found.labels)
    sure = intervals(predicted, gold, len(found.labels), drawn)
    (low, high), (f1_low, f1_high) = sure["accuracy"], sure["macro_f1"]
    return {
        "accuracy": values["accuracy"], "low": low, "high": high,
        "macro_f1": values["macro_f1"], "f1_low": f1_low, "f1_high": f1_high,
        "matthews": values["matthews"],
        "most_said": float(np.bincount(predicted, minlength=len(found.labels)).max() / len(gold)),
    }  # fmt: skip


def verdicts(found: Findings) -> list[dict[str, Any]]:
    """McNemar's test and a paired bootstrap between any two of the first TESTED cells, raw and calibrated,
    and the chosen one."""
    gold = found.gold
    right = {
        f"{a.cell.model} {a.cell.name}, {how}": a.scores(how).argmax(1) == gold
        for how in ("raw", "batch")
        for a in found.answers[:TESTED]
    }
    if found.chosen:
        answers, how = found.chosen
        right = {
            f"{answers.cell.model} {answers.cell.name}, {how}": answers.scores(how).argmax(1) == gold
        } | right
    drawn = bootstrap.draws(len(gold), 1000, 0)
    lines = []
    for (first, one), (second, other) in combinations(right.items(), 2):
        result = compare(one, other, drawn)
        lines.append(
            {"first": first, "second": second, **asdict(result), "verdict": f"first is {result.in_words()}"}
        )
    return lines


def write_rows(found: Findings, path: Path) -> None:
    """One row a prompt and example: which, the hash of the rendered prompt, gold label, scores of the labels,
    what was said."""
    columns: dict[str, list[Any]] = {}
    for answers in found.answers:
        scores = answers.labels["unseen"]
        chances = probabilities(scores)
        for index, (row, request) in enumerate(zip(found.rows, answers.requests, strict=True)):
            text = request.context + "\ue0ff" + request.rest
            said = int(scores[index].argmax())
            values = {
                **asdict(answers.cell),
                "row": index,
                "prompt_hash": hashlib.sha256(text.encode()).hexdigest(),
                "gold": found.labels[row.label],
                "prediction": found.labels[said],
                "probability": float(chances[index, said]),
                "scores": scores[index].tolist(),
            }
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
    pq.write_table(pa.table(columns), path, compression="zstd")


def summary(found: Findings, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The chosen prompt and the spread, for programs."""
    raw = [line for line in lines if line["calibration"] == "raw" and line["template"] != "ensemble"]
    chosen = None
    if found.chosen:
        answers, how = found.chosen
        line = next(
            x
            for x in lines
            if all(x[k] == v for k, v in asdict(answers.cell).items()) and x["calibration"] == how
        )
        chosen = {**line, "training_value": found.training_value}
    return {
        "entry": found.entry,
        "metric": found.metric,
        "rows": len(found.rows),
        "chosen": chosen,
        "spread_raw": _spread(raw, found.metric),
    }


def _spread(lines: Sequence[dict[str, Any]], metric: str) -> dict[str, float]:
    values = np.array([line[metric] for line in lines])
    return {"best": float(values.max()), "median": float(np.median(values)), "worst": float(values.min())}


def in_words(found: Findings, lines: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """The report, in Markdown."""
    parts = [
        f"# {found.entry}: {len(found.rows)} rows, {', '.join(found.labels[:12])}",
        _chosen(found, lines),
        _spreads(found, lines),
    ]
    parts += [
        "## Every prompt, raw and calibrated",
        f"Figures: {found.metric}. In brackets: the change that a calibration makes.",
        _cells(found, lines),
    ]
    parts += ["## What each calibration does", _calibrations(found, lines)]
    parts += [
        "## All prompts together",
        markdown([_short(line) for line in lines if line["template"] == "ensemble"]),
    ]
    parts += ["## Is the difference more than chance?", _pairs(pairs)]
    parts += [
        "## Where the chosen prompt errs" if found.chosen else "## Where the first prompt errs",
        _confusion(found),
    ]
    parts += ["## Rows on which templates disagree most", _flips(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _chosen(found: Findings, lines: list[dict[str, Any]]) -> str:
    if not found.chosen:
        return ""
    line = summary(found, lines)["chosen"]
    answers, how = found.chosen
    where = f"**{answers.cell.name}** on {answers.cell.model}, calibration: {how}"
    return (
        f"Chosen on training rows ({found.metric} {found.training_value:.3f} there): {where}. "
        f"On unseen rows: accuracy {with_interval(line['accuracy'], (line['low'], line['high']))}, "
        f"macro-F1 {line['macro_f1']:.3f}."
    )


def _spreads(found: Findings, lines: list[dict[str, Any]]) -> str:
    table = []
    for model in dict.fromkeys(line["model"] for line in lines):
        for how in CALIBRATIONS:
            mine = [
                x
                for x in lines
                if x["model"] == model and x["calibration"] == how and x["template"] != "ensemble"
            ]
            table.append(
                {
                    "model": model,
                    "calibration": how,
                    "prompts": len(mine),
                    **{k: f"{v:.3f}" for k, v in _spread(mine, found.metric).items()},
                }
            )
    return f"## Spread over templates and words ({found.metric})\n\n" + markdown(table)


def _cells(found: Findings, lines: list[dict[str, Any]]) -> str:
    table = []
    for answers in found.answers:
        mine = {x["calibration"]: x for x in lines if all(x[k] == v for k, v in asdict(answers.cell).items())}
        raw = mine["raw"]
        row = {
            "model": answers.cell.model,
            "prompt": answers.cell.name,
            "accuracy, raw": with_interval(raw["accuracy"], (raw["low"], raw["high"])),
        }
        row |= {
            how: f"{mine[how][found.metric]:.3f} ({mine[how][found.metric] - raw[found.metric]:+.3f})"
            for how in CALIBRATIONS[1:]
        }
        table.append(row | {"most said, raw": f"{100 * raw['most_said']:.0f} %"})
    return markdown(table)


def _calibrations(found: Findings, lines: list[dict[str, Any]]) -> str:
    raw = np.array([value_of(a.scores("raw"), found.gold, found.labels, found.metric) for a in found.answers])
    table = []
    for how in CALIBRATIONS[1:]:
        change = (
            np.array([value_of(a.scores(how), found.gold, found.labels, found.metric) for a in found.answers])
            - raw
        )
        table.append({
            "calibration": how, "better": int((change > 1e-9).sum()), "the same": int((np.abs(change) <= 1e-9).sum()),
            "worse": int((change < -1e-9).sum()), "mean change": f"{change.mean():+.3f}",
            "best": f"{change.max():+.3f}", "worst": f"{change.min():+.3f}",
        })  # fmt: skip
    return f"Numbers of prompts whose {found.metric} on unseen rows rises, stays, falls.\n\n" + markdown(
        table
    )


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": line["model"], "how": f"{line['verbalizer']}, {line['calibration']}",
        "accuracy": with_interval(line["accuracy"], (line["low"], line["high"])), "macro-F1": f"{line['macro_f1']:.3f}",
    }  # fmt: skip


def _pairs(pairs: list[dict[str, Any]]) -> str:
    shown = [
        {
            "first": p["first"], "second": p["second"], "difference": with_interval(p["difference"], (p["low"], p["high"])),
            "alone right": f"{p['only_first']} : {p['only_second']}", "first is": p["verdict"].removeprefix("first is "),
        }
        for p in pairs[:SHOWN]
    ]  # fmt: skip
    chance = sum("not significant" in p["verdict"] for p in pairs)
    note = f"McNemar's exact test; 95 % intervals by paired bootstrap. {chance} of {len(pairs)} are not "
    "significant; see pairs.csv."
    return note + "\n\n" + markdown(shown) if pairs else ""


def _confusion(found: Findings) -> str:
    answers, how = found.chosen or (found.answers[0], "raw")
    predicted = answers.scores(how).argmax(axis=1)
    if len(found.labels) > 20:
        per_class = classification.per_class(predicted, found.gold, found.labels)
        worst = sorted(per_class, key=lambda name: per_class[name]["f1"])[:SHOWN]
        return markdown(
            [{"label": name, **{k: f"{v:.3f}" for k, v in per_class[name].items()}} for name in worst]
        )
    matrix = classification.confusion(predicted, found.gold, found.labels)
    return markdown(
        [
            {"gold ↓ said →": name, **dict(zip(found.labels, line, strict=True))}
            for name, line in zip(found.labels, matrix, strict=True)
        ]
    )


def _flips(found: Findings) -> str:
    said = np.stack([answers.labels["unseen"].argmax(axis=1) for answers in found.answers])
    if len(said) < 2:
        return ""
    votes = np.eye(len(found.labels))[said].sum(axis=0)
    agreed = votes.max(axis=1) / len(said)
    order = np.argsort(agreed, kind="stable")[:SHOWN]
    table = []
    for index in order[agreed[order] < 1]:
        row = found.rows[index]
        text = " / ".join(str(v) for v in row.columns.values())[:120]
        counts = ", ".join(
            f"{found.labels[k]} {int(votes[index, k])}"
            for k in np.argsort(-votes[index], kind="stable")[:4]
            if votes[index, k]
        )
        table.append({"row": str(index), "gold": found.labels[row.label], "said": counts, "text": text})
    return (
        f"{int((agreed < 1).sum())} of {len(agreed)} rows get another label from some prompt.\n\n"
        + markdown(table)
    )


def draw_spread(lines: list[dict[str, Any]], metric: str, path: Path) -> None:
    """One point a prompt, a column a calibration, a panel a model."""
    cells = [line for line in lines if line["template"] != "ensemble"]
    models = list(dict.fromkeys(line["model"] for line in cells))
    fig, panels = plt.subplots(1, len(models), figsize=(5 * len(models), 4), sharey=True, squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for place, how in enumerate(CALIBRATIONS):
            values = [line[metric] for line in cells if line["model"] == model and line["calibration"] == how]
            shift = (np.arange(len(values)) - (len(values) - 1) / 2) * 0.5 / max(len(values), 2)
            panel.plot(place + shift, values, "o", color="#1f4e79", alpha=0.6, markersize=4)
            panel.hlines(np.median(values), place - 0.3, place + 0.3, color="#c44e52")
        panel.set(xticks=range(len(CALIBRATIONS)), xticklabels=CALIBRATIONS, title=Path(model).name)
        panel.grid(axis="y", alpha=0.2)
    panels[0][0].set_ylabel(f"{metric}; a point a prompt, a line the median")
    fig.tight_layout()
    fig.savefig(path, metadata={"Software": None})
    plt.close(fig)
