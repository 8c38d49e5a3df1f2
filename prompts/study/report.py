"""A study's findings → rows on disk, tables, a report, a picture. Knows findings and files; asks no model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.artefacts.checkpoints import write_atomically
from finetune.metrics import classification
from finetune.reports.tables import comma_separated, latex, markdown, with_interval
from prompts.study.archive import write_rows
from prompts.study.findings import Findings, spread_of, summary, templates_of
from prompts.study.outcomes import Outcome
from prompts.study.picture import draw_study
from prompts.study.weighed import ChoiceAnswers, said
from prompts.study.written import Written

SHOWN = 12  # lines of the report's longer tables
LONG = 300  # characters of a text that a table shows


def write_report(found: Findings, folder: Path) -> None:
    """Write rows.parquet, two tables, report.md, spread.png, findings.json; the same bytes for the same
    findings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(found, folder / "rows.parquet")
    lines = _same_keys(found.lines)
    write_atomically(folder / "figures.csv", comma_separated(lines))
    write_atomically(folder / "pairs.csv", comma_separated([_pair(found, *test) for test in found.tests]))
    # for papers: the two tables as the report shows them, and not all figures
    write_atomically(folder / "figures.tex", latex(_cell_rows(found)) + "\n")
    write_atomically(folder / "pairs.tex", latex(_pair_rows(found, found.tests)) + "\n")
    draw_study(found, folder / "spread.png")
    # findings.json last: a folder without it is no run (see `again.stored_findings`)
    write_atomically(folder / "report.md", in_words(found))
    write_atomically(folder / "findings.json", json.dumps(summary(found), indent=1, ensure_ascii=False))
    if found.kind == "text":
        write_atomically(
            folder / "texts.jsonl",
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in texts(found)),
        )


def _same_keys(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # CSV and tables want the same columns in all lines
    keys = list(dict.fromkeys(key for line in lines for key in line))
    return [{key: line.get(key, "") for key in keys} for line in lines]


def texts(found: Findings) -> list[dict[str, Any]]:
    """What was written, beside what was wanted."""
    return [
        {
            "model": a.cell.model,
            "prompt": a.cell.name,
            "row": found.rows[place].place,
            "written": row[0] if len(row) == 1 else row,
            "wanted": wanted[0] if len(wanted) == 1 else wanted,
        }
        for a in found.answers
        for place, row, wanted in zip(a.rows(), a.texts["unseen"], a.wanted["unseen"], strict=True)
    ]


def in_words(found: Findings) -> str:
    """The report, in Markdown."""
    sections: list[tuple[str, Callable[[Findings], str]]] = [
        ("", _head),
        ("What didn't go as asked", _notes),
        (f"Spread over prompts ({found.metric})", _spreads),
        ("Every prompt", _cells),
        ("What each calibration does", _calibrations),
        ("All prompts together", _together),
        ("Is the difference more than chance?", _pairs),
        ("Where the chosen prompt errs" if found.chosen else "Where the first prompt errs", _errors),
        ("Rows on which prompts disagree most", _flips),
        ("Rows that a comparison needs", _needed),
        ("How the models were asked", _models),
        ("The prompts themselves", _templates),
    ]
    parts = []
    # a section that has nothing to say is left out with its title
    for title, write in sections:
        text = write(found)
        if text:
            parts += [f"## {title}", text] if title else [text]
    return "\n\n".join(parts) + "\n"


def _value(found: Findings, one: Outcome) -> str:
    line = found.line_of(one)
    name = found.metric
    return with_interval(line[name], (line[f"{name}_low"], line[f"{name}_high"]))


def _head(found: Findings) -> str:
    labels = f", {', '.join(found.labels[:12])}" if found.kind == "labels" else ""
    lines = [
        f"# {found.entry.name}: {len(found.rows)} rows{labels}",
        f"Measured on {found.measured_on}.",
    ]
    one, others = found.heading, [name for name in found.heading.measures if name != found.metric]
    line = found.line_of(one)
    # six: the others stand in the table
    further = "; ".join(f"{name} {line[name]:.3f}" for name in others[:6])
    if found.chosen:
        start = (
            f"Chosen on training rows ({found.metric} {one.training:.3f} there): **{one.cell.name}** "
            f"on {one.cell.model}, {one.how}."
        )
    else:
        start = (
            f"Nothing was chosen (no training rows, or one prompt): **{one.cell.name}** on "
            f"{one.cell.model}, {one.how}."
        )
    lines.append(
        f"{start} On unseen rows: {found.metric} {_value(found, one)}{'; ' + further if further else ''}."
    )
    if line.get("repeats", 1) > 1:
        lines.append(
            f"Mean of {line['repeats']} drawn answers a row; standard deviation of the figure over them "
            f"{line['spread']:.3f}."
        )
    known = found.baseline
    if known:
        words = f"Always saying {known['majority']}: {found.metric} {known.get(found.metric, 0.0):.3f}; "
        lines.append(f"{words}guessing evenly: accuracy {known['chance']:.3f}.")
    lines += [word for word in (found.judge, found.gain) if word]
    return "\n\n".join(lines)


def _notes(found: Findings) -> str:
    lines = found.notes.lines()
    table = [
        {
            "": "as asked" if one["ends_well"] else "**trouble**",
            "model": Path(one["model"]).name,
            "prompt": one["prompt"],
            "what": one["what"][:LONG],
            "rows": one["rows"],
            "first": one["first"],
        }
        # a report is read; all stand in findings.json
        for one in lines[: 2 * SHOWN]
    ]
    more = f"\n\n… and {len(lines) - len(table)} more, in findings.json" if len(lines) > len(table) else ""
    return markdown(table) + more if lines else ""


def _spreads(found: Findings) -> str:
    table = []
    for model in dict.fromkeys(one.cell.model for one in found.outcomes):
        for how in dict.fromkeys(one.how for one in found.outcomes):
            mine = [
                found.line_of(one) for one in found.outcomes if one.cell.model == model and one.how == how
            ]
            # of one prompt there is no spread
            if len(mine) > 1:
                values = {k: f"{v:.3f}" for k, v in spread_of(mine, found.metric).items()}
                table.append({"model": Path(model).name, "how": how, "prompts": len(mine), **values})
    return markdown(table)


def _cells(found: Findings) -> str:
    note = f"Figures: {found.metric}, with its 95 % interval; in brackets the change against the first.\n\n"
    return note + markdown(_cell_rows(found))


def _cell_rows(found: Findings) -> list[dict[str, Any]]:
    """One line a prompt, all by the same figure on the rows that it was asked."""
    table = []
    for answers in found.answers:
        # outcomes of one cell by identity: two cells may be equal in name
        mine = {one.how: one for one in found.outcomes if one.answers is answers}
        first = next(iter(mine))
        line = found.line_of(mine[first])
        row = {
            "model": Path(answers.cell.model).name,
            "prompt": answers.cell.name.removeprefix(f"{found.entry.name}/"),
        }
        row |= {"rows": line["rows"], f"{found.metric}, {first}": _value(found, mine[first])}
        # the other ways by their change against the first
        for how, one in list(mine.items())[1:]:
            other = found.line_of(one)
            row[how] = f"{other[found.metric]:.3f} ({other[found.metric] - line[found.metric]:+.3f})"
        if "most_said" in line and found.kind == "labels":
            row["most said"] = f"{100 * line['most_said']:.0f} %"
        if line.get("nothing_found"):
            row["nothing found"] = line["nothing_found"]
        table.append(row)
    return _same_keys(table)


def _calibrations(found: Findings) -> str:
    if found.kind != "labels":
        return ""
    by_how: dict[str, list[float]] = {}
    for answers in found.answers:
        mine = {one.how: found.line_of(one)[found.metric] for one in found.outcomes if one.answers is answers}
        first = next(iter(mine.values()))
        for how, value in list(mine.items())[1:]:
            # paired by prompt: what a calibration does to each
            by_how.setdefault(how, []).append(value - first)
    table = []
    for how, changes in by_how.items():
        change = np.array(changes)
        table.append(
            {
                # rounding is no change
                "calibration": how,
                "better": int((change > 1e-9).sum()),
                "the same": int((np.abs(change) <= 1e-9).sum()),
                "worse": int((change < -1e-9).sum()),
                "mean change": f"{change.mean():+.3f}",
                "best": f"{change.max():+.3f}",
                "worst": f"{change.min():+.3f}",
            }
        )
    note = f"Numbers of prompts whose {found.metric} on unseen rows rises, stays, falls.\n\n"
    return note + markdown(table) if table else ""


def _together(found: Findings) -> str:
    name = found.metric
    table = [
        {
            "model": Path(line["model"]).name,
            "how": f"{line['verbalizer']}, {line['calibration']}",
            name: with_interval(line[name], (line[f"{name}_low"], line[f"{name}_high"])),
        }
        for line in found.lines
        if line["template"] == "ensemble"
    ]
    return markdown(table)


def _pair(found: Findings, other: Outcome, test: Any) -> dict[str, Any]:
    return {
        "first": found.heading.name,
        "second": other.name,
        "metric": found.metric,
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "level": test.level,
        "only_first": test.only_first,
        "only_second": test.only_second,
        "rows": test.rows,
        "test": test.test,
        "p": test.p,
        "p_holm": test.adjusted,
        "verdict": f"first is {test.in_words()}",
    }


def _pair_rows(found: Findings, tests: Sequence[tuple[Outcome, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "against": f"{Path(other.cell.model).name} "
            f"{other.cell.name.removeprefix(found.entry.name + '/')}, {other.how}",
            "difference": f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})",
            "better on": f"{test.only_first} : {test.only_second}",
            "verdict": test.in_words(),
        }
        for other, test in tests
    ]


def _pairs(found: Findings) -> str:
    if not found.tests:
        return ""
    one, shown = found.heading, _pair_rows(found, found.tests[:SHOWN])
    # not significant: how often chance may be all there is
    chance = sum(not test.is_significant for _, test in found.tests)
    kinds = ", ".join(dict.fromkeys(test.test for _, test in found.tests))
    note = (
        f"**{one.cell.name}** ({one.how}) against each other one ({kinds}), p by Holm over "
        f"{len(found.tests)} tests; an interval "
        f"is as wide as its test, so that it holds 0 where the verdict is chance. {chance} of "
        f"{len(found.tests)} are not "
        "significant; see pairs.csv."
    )
    return note + "\n\n" + markdown(shown)


def _errors(found: Findings) -> str:
    one = found.heading
    if isinstance(one.answers, (Written, ChoiceAnswers)):
        return _wrong(found, one)
    gold = np.array([found.rows[i].label for i in one.places], dtype=int)
    predicted = said(one.answers.scores(one.how))
    # without an answer there is no cell
    answered = predicted >= 0
    # a square of more labels is too wide to be read
    if len(found.labels) > 20:
        per_class = classification.per_class(predicted[answered], gold[answered], found.labels)
        worst = sorted(per_class, key=lambda name: per_class[name]["f1"])[:SHOWN]
        return markdown(
            [{"label": name, **{k: f"{v:.3f}" for k, v in per_class[name].items()}} for name in worst]
        )
    matrix = classification.class_confusion(predicted[answered], gold[answered], found.labels)
    return markdown(
        [
            {"gold ↓ said →": name, **dict(zip(found.labels, line, strict=True))}
            for name, line in zip(found.labels, matrix, strict=True)
        ]
    )


def _wrong(found: Findings, one: Outcome) -> str:
    """The first rows with the lowest scores."""
    measure = one.measures[found.metric]
    if not measure.is_mean:
        # of a figure that is no mean the first that is one
        measure = next(iter(one.measures.values()))
    # stable: the same rows at each writing; right ones are left out
    order = [i for i in np.argsort(measure.each, kind="stable")[:SHOWN] if measure.each[i] < 1]
    table = []
    for i in order:
        if isinstance(one.answers, Written):
            wanted, kept = one.answers.wanted["unseen"][i][0], one.answers.texts["unseen"][i][0] or ""
        else:
            wanted, kept = one.answers.texts["unseen"][i][one.answers.gold["unseen"][i]], ""
        row = {
            "row": str(found.rows[one.places[i]].place),
            "wanted": wanted[:120],
            "taken as answer": one.said[i][:120],
        }
        table.append(row | ({"written": kept[-120:]} if kept else {}))
    return markdown(_same_keys(table))


def _flips(found: Findings) -> str:
    said_by = [
        # by row, since prompts may have been asked of different ones
        {int(row): text for row, text in zip(one.places, one.said, strict=True)}
        for one in found.outcomes
        # one way: calibrations would be counted as prompts
        if one.how == found.outcomes[0].how
    ]
    if len(said_by) < 2 or found.kind == "text":
        return ""
    votes = {row: Counter(said[row] for said in said_by if row in said) for row in range(len(found.rows))}
    # share of the commonest answer: the less, the more they disagree
    agreed = {row: max(count.values()) / sum(count.values()) for row, count in votes.items() if count}
    split = sorted((row for row in agreed if agreed[row] < 1), key=lambda row: agreed[row])
    table = []
    for row in split[:SHOWN]:
        text = " / ".join(str(v) for v in found.rows[row].columns.values())[:120]
        counts = ", ".join(f"{name or 'nothing'} {count}" for name, count in votes[row].most_common(4))
        table.append({"row": str(found.rows[row].place), "said": counts, "text": text})
    return f"{len(split)} of {len(agreed)} rows get another answer from some prompt.\n\n" + markdown(table)


# without --power nothing was asked
def _needed(found: Findings) -> str:
    if not found.needed:
        return ""
    table = [{"against": name, "rows": rows} for name, rows in list(found.needed.items())[:SHOWN]]
    note = (
        f"To find a difference of {found.power:g} in {found.metric} from the chosen prompt four times "
        "of five, at p < 0.05:\n\n"
    )
    return note + markdown(table)


def _models(found: Findings) -> str:
    return markdown([{"model": name, "how": how} for name, how in found.models.items()])


def _templates(found: Findings) -> str:
    parts = []
    for one in templates_of(found):
        # four tildes: templates may hold backticks
        fence = "~~~~"
        shown = (
            one["example"]
            # long ones by both ends: the question stands at the end
            if len(one["example"]) < 4 * LONG
            else one["example"][: 2 * LONG] + " … " + one["example"][-2 * LONG :]
        )
        text = f"{fence}\n{one['text']}\n{fence}\n\n" if one["text"] else ""
        parts.append(
            f"### {one['name']} ({one['hash']})\n\n{text}as it was asked (▁ is the slot"
            f"{'; ' + one['answers'] if one['answers'].strip() else ''}):\n\n{fence}\n{shown}\n{fence}"
        )
    return "\n\n".join(parts)
