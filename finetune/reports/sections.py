"""A run's folder → the sections of its page, as plain blocks. Knows what the files hold; knows no HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune.metrics.calibration import expected_calibration_error, reliability
from finetune.reports import charts
from finetune.reports.alignment import alignment_sections, reward_headline
from finetune.reports.blocks import Chart, Section, Table, Words, cut_text, is_picture
from finetune.reports.privacy import privacy_rows, uncovered
from finetune.reports.run_folder import RunFolder
from finetune.reports.study import study_headline, study_sections
from finetune.reports.tables import scored_rows, with_interval

SHOWN = 12  # rows of the tables of texts: enough to see a pattern, few enough to be read
# what a run always has, and what says more of the machine than of the run
UNTOLD = {
    "output_dir",
    "logging_dir",
    "run_name",
    "hub_token",
    "push_to_hub_token",
    "local_rank",
    "task",
    "objective",
}

PAIRS_RIGHT = "rewards/accuracies"  # as TRL calls it


def sections_of(run: RunFolder) -> list[Section]:
    """What there is to say of a run, in the order in which one asks."""
    makers = (_figures, _privacy, _learning, _confusion, _trust, _rows, _data, _options, _environment)
    if run.kind == "study":
        return study_sections(run)
    # each maker is a generator, so that one that has nothing to say yields nothing
    made = [Section(title, list(blocks)) for maker in makers for title, blocks in [maker(run)]]
    # alignment's own story stands right behind the figures
    return [section for section in [*made[:1], *alignment_sections(run), *made[1:]] if section.blocks]


def headline(run: RunFolder) -> str:
    """One sentence: the figure that counts, with its interval."""
    if not run.is_finished:
        # lines of the whole training have no step
        done = [line for line in run.history if "step" in line]
        return f"Not finished: step {done[-1]['step']}." if done else "Not finished."
    if run.findings.get("heading"):
        return study_headline(run)
    # what a run of alignment is judged by stands in two groups of its figures, before and after
    if told := reward_headline(run):
        return told
    intervals = run.metrics.get("intervals", {})
    # the first with an interval is the task's own figure
    for name, bounds in intervals.items():
        if name != "loss" and isinstance(run.metrics.get(name), (int, float)):
            return f"{name.replace('_', ' ')} {with_interval(run.metrics[name], bounds)}"
    # a loss says nothing of preferences: how often the better answer has the higher reward does
    if (told_apart := run.metrics.get(PAIRS_RIGHT)) is not None:
        return f"held-out pairs told apart {told_apart:.3f}"
    number = next(
        (f"{k.replace('_', ' ')} {v:.4g}" for k, v in run.metrics.items() if isinstance(v, float)), ""
    )
    return number or "Finished."


def _figures(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        intervals = run.metrics.get("intervals", {})
        # floats with names of quality: times and memory stand in the last section
        plain = {k: v for k, v in run.metrics.items() if isinstance(v, float) and _is_figure(k)}
        rows = [
            {
                "figure": k,
                "value (95 % interval)": with_interval(v, intervals[k]) if k in intervals else f"{v:.4g}",
            }
            for k, v in plain.items()
        ]
        if rows:
            raw = [{"figure": k, "value": v, **_bounds(intervals.get(k))} for k, v in plain.items()]
            yield Table(rows, "On the evaluation rows of the run.", raw)
        # figures that both have can be compared
        if run.baselines and run.measure in run.metrics:
            measure = run.measure
            own = ("this run", run.metrics[measure], intervals.get(measure))
            others = [(str(one["name"]), float(one[measure]), one.get("interval")) for one in run.baselines]
            yield Chart(
                charts.dots([own, *others], f"{measure}, 95 % interval"),
                "Beside what needs no such model, learnt and scored on the same rows.",
            )
        for name, figures in run.assessments.items():
            yield _assessed(name, figures)

    return "Figures", blocks()


def _privacy(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        if run.privacy:
            yield Table(privacy_rows(run.privacy), "Differential privacy of the training rows.")
            yield Words(f"Not covered: {'; '.join(uncovered(run.privacy))}.", warns=True)

    return "Privacy", blocks()


def _assessed(name: str, figures: dict[str, Any]) -> Table:
    bounds = figures.get("intervals", {})
    rows = [
        {"figure": k, "value (95 % interval)": with_interval(figures[k], bounds[k])}
        for k in bounds
        if isinstance(figures.get(k), (int, float))
    ]
    return Table(rows, f"Assessed on {name}, {scored_rows(figures)}.")


def _is_figure(name: str) -> bool:
    # costs, in the names that transformers and this project give them
    return not name.endswith(("runtime", "_per_second", "seconds", "epochs", "_time", "_mb", "_kwh"))


def _bounds(interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def _learning(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        trained = [line for line in run.history if "loss" in line]
        measured = [line for line in run.history if "eval_loss" in line]
        losses = {
            name: ([line["step"] for line in lines], [line[key] for line in lines])
            for name, key, lines in (("training", "loss", trained), ("evaluation", "eval_loss", measured))
            if lines
        }
        if losses:
            yield Chart(
                charts.curves(losses, "step", "loss", marked=("evaluation",)), "Loss in nats an item."
            )
        # of the last evaluation: earlier lines may lack some
        names = [k for k in (measured[-1] if measured else {}) if k.startswith("eval_") and _is_figure(k)]
        best = [
            k
            for k in names
            if k.removeprefix("eval_") in run.metrics.get("intervals", {}) and k != "eval_loss"
        ]
        figures = {
            k.removeprefix("eval_"): ([line["step"] for line in measured], [line.get(k) for line in measured])
            # three lines at most can be told apart
            for k in best[:3]
        }
        # one point is no curve
        if figures and len(measured) > 1:
            yield Chart(charts.curves(figures, "step", " · ".join(figures), marked=tuple(figures)))
        further = {
            title: (
                [line["step"] for line in trained if key in line],
                [line[key] for line in trained if key in line],
            )
            for title, key in (("gradient norm", "grad_norm"), ("learning rate", "learning_rate"))
        }
        # a line of a single point can't be seen
        further = {name: points for name, points in further.items() if len(points[0]) > 1}
        if further:
            yield Chart(charts.panels(further, "step"))

    return "Learning", blocks()


def _confusion(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        rows = [one for one in run.predictions if isinstance(one.get("gold"), str)]
        labels = run.labels
        # with more classes the squares would be too small to be read
        if not rows or not 1 < len(labels) <= 40:
            return
        place = {name: index for index, name in enumerate(labels)}
        # predictions of another kind (several labels, unknown ones) have no place in the square
        if not all(one["gold"] in place and one.get("prediction") in place for one in rows):
            return
        counts = [[0] * len(labels) for _ in labels]
        for one in rows:
            counts[place[one["gold"]]][place[one["prediction"]]] += 1
        yield Chart(charts.confusion(counts, labels), "Rows of each class, and what they were taken for.")

    return "Confusion", blocks()


def _stated(run: RunFolder) -> tuple[list[float], list[bool]]:
    """Stated probability and whether it was right, of rows that have one class each."""
    rows = [
        one
        for one in run.predictions
        if isinstance(one.get("gold"), (str, int))
        and isinstance(one.get("score"), float)
        # a score that is a log-probability is no probability
        and 0 <= one["score"] <= 1
    ]
    # other tasks' scores say something else
    if run.kind not in ("classification", "pairs", "choice"):
        return [], []
    return [one["score"] for one in rows], [one["gold"] == one.get("prediction") for one in rows]


def _trust(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        stated, right = _stated(run)
        if len(stated) < 20:
            return
        error = expected_calibration_error(stated, right)
        yield Chart(
            charts.reliability_chart(reliability(stated, right)),
            f"Expected calibration error {error:.3f} over ten bins: below the line it is surer than it may "
            "be.",
        )

    return "Can its probabilities be believed?", blocks()


def _rows(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        scored = [one for one in run.predictions if isinstance(one.get("score"), float)]
        wrong = [one for one in scored if one.get("gold") != one.get("prediction")]
        if wrong and run.kind != "regression":
            # the surest of the wrong: most often a wrong gold label or a class that was misunderstood
            worst = sorted(wrong, key=lambda one: -one["score"])[:SHOWN]
            yield Table([_told(one) for one in worst], "Wrong, and surest of it.")
        if len(scored) > SHOWN and run.kind in ("classification", "pairs", "choice"):
            unsure = sorted(scored, key=lambda one: one["score"])[:SHOWN]
            yield Table([_told(one) for one in unsure], "Least sure.")
        if run.kind == "regression" and scored:
            # a number is never quite right: the furthest instead
            far = sorted(scored, key=lambda one: -abs(one["gold"] - one["prediction"]))[:SHOWN]
            yield Table([_told(one) for one in far], "Furthest off.")

    return "Rows to look at", blocks()


def shown_text(value: Any) -> str:
    """A row's text, cut to a line or two; a small picture whole."""
    return value if is_picture(value) else cut_text(value, 280)


def _told(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": one.get("id", ""),
        "text": shown_text(one.get("text", "")),
        "gold": cut_text(one.get("gold", ""), 80),
        "prediction": cut_text(one.get("prediction", ""), 80),
        "score": f"{one['score']:.2f}",
    }


def _data(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        said = run.data
        columns = [{"becomes": name, "from": value} for name, value in said.get("columns", {}).items()]
        if said.get("not_used"):
            columns.append({"becomes": "not used", "from": ", ".join(said["not_used"])})
        if columns:
            yield Table(columns, "What each column became.")
        counts = [{"rows for": name, "rows": number} for name, number in said.get("rows", {}).items()]
        if counts:
            yield Table(counts)
        classes = said.get("classes", {})
        if classes:
            every = sum(classes.values()) or 1
            # of no rows at all, a share is nothing
            rows = [{"class": k, "rows": v, "share": f"{100 * v / every:.1f} %"} for k, v in classes.items()]
            yield Table(rows, "Training rows of each class.")
        if said.get("lengths"):
            limit = run.options.get("max_length")
            yield Chart(charts.histogram(said["lengths"], "tokens", limit), said.get("cut", ""))

    return "Data", blocks()


def _options(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        # defaults that switch nothing on would bury what was set
        told = {
            k: v for k, v in run.options.items() if k not in UNTOLD and v not in (None, [], {}, False, "")
        }
        if told:
            yield Table([{"option": k, "value": cut_text(v, 120)} for k, v in told.items()])

    return "Options", blocks()


def _environment(run: RunFolder) -> tuple[str, Iterator[Any]]:
    def blocks() -> Iterator[Any]:
        cost = {
            "training, seconds": run.metrics.get("seconds"),
            "of the processor": run.metrics.get("processor_seconds"),
            "peak memory, MB": run.metrics.get("peak_memory_mb"),
            "trainable weights": run.metrics.get("trainable"),
            "all weights": run.metrics.get("parameters"),
            "energy, kWh (codecarbon)": run.metrics.get("energy_kwh"),
        }
        # large numbers whole, small ones by their digits
        rows = [
            {"what": k, "how much": f"{v:,.4g}" if v < 100 else f"{v:,.0f}"} for k, v in cost.items() if v
        ]
        if rows:
            yield Table(rows, "What it cost.")
        # the command has a place of its own, where it can be copied
        told = {k: v for k, v in run.environment.items() if k != "command"}
        if told:
            yield Table([{"what": k, "value": cut_text(v, 200)} for k, v in told.items()], "Where it ran.")
        if run.environment.get("command"):
            yield Words("The command that repeats it:", str(run.environment["command"]))

    return "Cost and environment", blocks()
