"""A study of prompts → sections: each prompt with its interval and the line of guessing, tests between
prompts, what went wrong, texts.

Knows `figures.csv`, `pairs.csv` and `findings.json`; asks no model.
"""

from __future__ import annotations

from typing import Any

from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table, Words, cut_text
from finetune.reports.run_folder import RunFolder, short_name
from finetune.reports.tables import with_interval

SHOWN = 24  # prompts of the chart and lines of a table
ANSWERED = 4  # rows whose written answers are shown
Blocks = list[Table | Chart | Words]


def study_sections(run: RunFolder) -> list[Section]:
    """What a study found out, as its files say it."""
    makers = {
        "Prompts": _prompts,
        "Differences": _differences,
        "What didn't go as asked": _notes,
        "Answers": _answers,
        "How the models were asked": _models,
        "Texts": _texts,
    }
    made = [Section(title, blocks(run)) for title, blocks in makers.items()]
    return [section for section in made if section.blocks]


def study_headline(run: RunFolder) -> str:
    """The heading prompt's figure with its interval; "" where the files don't say it."""
    metric, line = str(run.findings.get("metric", "")), run.findings.get("heading") or {}
    figure = _figure(line, metric)
    return f"{metric.replace('_', ' ')} {figure}, {_prompt(run, line)} of {_model(line)}" if figure else ""


def _prompts(run: RunFolder) -> Blocks:
    metric = str(run.findings.get("metric", "accuracy"))
    # prompts that were refused have no figure
    known = [line for line in run.table("figures.csv") if _number(line.get(metric)) is not None]
    if not known:
        return []
    best = sorted(known, key=lambda line: -float(line[metric]))
    # the first way alone: a dot for each prompt, and not for each of its calibrations
    first = known[0].get("calibration")
    mine = [line for line in best if line.get("calibration") == first and line.get("template") != "ensemble"]
    table = [
        {
            "prompt": f"{_model(line)} · {_prompt(run, line)}, {line.get('calibration', '')}",
            "rows": line.get("rows", ""),
            metric: _figure(line, metric),
            # answers that a filter or an ending took nothing from count as wrong
            **({"nothing found": line.get("nothing_found", "")} if any(map(_unmatched, best)) else {}),
        }
        for line in best[:SHOWN]
    ]
    # no page tells where somebody keeps their models
    raw = [line | {"model": _model(line)} for line in best[:SHOWN]]
    words = f"All ways, the best {len(table)} of {len(best)}; every figure is in figures.csv."
    # a drawing for each model: names of both would be too long to be told apart
    drawn = [
        _chart(run, metric, str(first), [line for line in mine if line.get("model") == model])
        for model in dict.fromkeys(line.get("model") for line in mine)
    ]
    return [*_head(run), *drawn, Table(table, words, raw)]


def _chart(run: RunFolder, metric: str, way: str, lines: list[dict[str, Any]]) -> Chart:
    dots = [
        (_both_ends(_prompt(run, line)), float(line[metric]), _bounds(line, metric)) for line in lines[:SHOWN]
    ]
    guess = _guess(run, metric)
    words = (
        f"{_model(lines[0])}: {metric} ({way}) with its 95 % interval, the best {len(dots)} of {len(lines)}"
    )
    return Chart(
        charts.dots(dots, f"{metric}, 95 % interval", guess),
        words + ("; dashed: without reading." if guess is not None else "."),
    )


def _both_ends(name: str, most: int = 40) -> str:
    # names of prompts differ in both ends, and the chart would cut the last
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _head(run: RunFolder) -> Blocks:
    known = run.findings.get("baseline") or {}
    drawn, said = run.findings.get("population") or {}, str(run.findings.get("measured_on", ""))
    # no page tells where somebody keeps their rows
    name = str(drawn.get("name", ""))
    lines = [f"Measured on {said.replace(name, short_name(name)) if name else said}."] if said else []
    metric = str(run.findings.get("metric"))
    if metric in known:
        lines.append(f"Always saying {known['majority']}: {metric} {known[metric]:.3f}.")
    chosen = run.findings.get("chosen")
    lines.append("Chosen on training rows." if chosen else "Nothing was chosen on training rows.")
    lines += [str(run.findings[key]).replace("**", "") for key in ("judge", "gain") if run.findings.get(key)]
    return [Words(" ".join(lines))]


def _guess(run: RunFolder, metric: str) -> float | None:
    """What one gets without reading: by chance where accuracy counts, else by one answer for all."""
    known = run.findings.get("baseline") or {}
    return _number(known.get("chance" if metric == "accuracy" else metric))


def _prompt(run: RunFolder, line: dict[str, Any]) -> str:
    entry = f"{run.findings.get('entry', '')}/"
    shots = str(line.get("shots") or "0")
    behind = f", {shots} shots, seed {line.get('seed')}" if shots != "0" else ""
    return f"{str(line.get('template', '')).removeprefix(entry)}/{line.get('verbalizer', '')}{behind}"


def _model(line: dict[str, Any]) -> str:
    return short_name(line.get("model", ""))


def _figure(line: dict[str, Any], metric: str) -> str:
    value, bounds = _number(line.get(metric)), _bounds(line, metric)
    if value is None:
        return ""
    return with_interval(value, bounds) if bounds else f"{value:.3f}"


def _bounds(line: dict[str, Any], metric: str) -> list[float] | None:
    ends = [_number(line.get(f"{metric}_{end}")) for end in ("low", "high")]
    # both or none: half an interval would be drawn as a whole one
    return None if None in ends else [float(end) for end in ends if end is not None]


def _unmatched(line: dict[str, Any]) -> float:
    return _number(line.get("nothing_found")) or 0.0


def _number(text: Any) -> float | None:
    try:
        return float(text)
    # an empty cell is None in CSV, or no number
    except (TypeError, ValueError):
        return None


def _differences(run: RunFolder) -> Blocks:
    pairs = run.table("pairs.csv")
    rows = [
        {
            "against": cut_text(_against(run, line["second"]), 60),
            "difference": _difference(line),
            "better on": f"{line['only_first']} : {line['only_second']}",
            "the first is": line["verdict"].removeprefix("first is "),
        }
        for line in pairs[:SHOWN]
    ]
    if not rows:
        return []
    words = (
        f"{_against(run, pairs[0]['first'])} against others on the same rows, {len(rows)} of {len(pairs)}."
    )
    raw = [line | {key: _against(run, line[key]) for key in ("first", "second")} for line in pairs[:SHOWN]]
    return [Table(rows, words, raw)]


def _difference(line: dict[str, str]) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*(float(line[key]) for key in ("difference", "low", "high")))


def _against(run: RunFolder, name: str) -> str:
    """`model entry/template/words, way` without the entry and the model's path."""
    model, _, rest = name.partition(" ")
    return f"{short_name(model)} {rest.removeprefix(str(run.findings.get('entry', '')) + '/')}"


def _notes(run: RunFolder) -> Blocks:
    lines = run.findings.get("notes") or []
    rows = [
        {
            "": "as asked" if line["ends_well"] else "trouble",
            "model": short_name(line["model"]),
            "prompt": line["prompt"],
            "what": cut_text(line["what"], 200),
            "rows": line["rows"],
            "first": line["first"],
        }
        for line in lines[:SHOWN]
    ]
    return [Table(rows, f"{len(rows)} of {len(lines)}; all stand in findings.json.")] if rows else []


def _models(run: RunFolder) -> Blocks:
    rows = [
        {"model": short_name(name), "how": how} for name, how in (run.findings.get("models") or {}).items()
    ]
    return [Table(rows)] if rows else []


def _answers(run: RunFolder) -> Blocks:
    """What was written, of the first rows by every prompt."""
    lines = run.lines("texts.jsonl")
    shown = list(dict.fromkeys(line["row"] for line in lines))[:ANSWERED]
    rows = [
        {
            "row": line["row"],
            "by": f"{short_name(line['model'])} · {line['prompt'].removeprefix(run.findings['entry'] + '/')}",
            "written": cut_text(_one(line["written"]), 160),
            "wanted": cut_text(_one(line["wanted"]), 160),
        }
        for row in shown
        for line in lines
        if line["row"] == row
    ]
    words = f"The first {len(shown)} rows, before any filter; all stand in texts.jsonl."
    return [Table(rows[:SHOWN], words)] if rows else []


def _one(said: Any) -> str:
    # several drawn answers, or several references
    return " | ".join(map(str, said)) if isinstance(said, list) else str(said)


def _texts(run: RunFolder) -> Blocks:
    blocks: Blocks = []
    for one in run.findings.get("templates") or []:
        if one["text"]:
            blocks.append(Words(f"{one['name']} ({one['hash']})", one["text"]))
        # long ones by both ends: the question stands at the end
        asked = (
            one["example"]
            if len(one["example"]) < 1200
            else f"{one['example'][:600]} … {one['example'][-600:]}"
        )
        # written answers are none that could be named
        named = f"; {one['answers']}" if one["answers"].strip() else ""
        blocks.append(Words(f"as it was asked (▁ is the slot{named})", asked))
    return blocks
