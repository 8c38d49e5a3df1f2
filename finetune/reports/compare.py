"""Which methods are compared, and their figures as rows of a table. Knows metrics files; knows no models."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError
from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table
from finetune.reports.tables import scored_rows, with_interval


@dataclass
class CompareArguments:
    """Which methods are compared."""

    methods: list[str] = field(
        default_factory=lambda: ["full", "lora", "bottleneck", "prefix", "prompt"],
        metadata={"help": "Rows of METHODS to train one after the other, each in a process of its own."},
    )
    method_options: str | None = field(
        default=None,
        metadata={
            "help": 'Options of single methods, as JSON: \'{"lora": {"r": 8}}\'; others have the '
            "method's own defaults."
        },
    )
    # JSON, since a value may be a mapping of its own
    learning_rates: str | None = field(
        default=None,
        metadata={
            "help": "Learning rates of single methods, as JSON: '{\"lora\": 1e-3}'; others have the method's "
            "own."
        },
    )

    def of_method(self, method: str) -> dict[str, Any]:
        """What one method's run gets beside the common options.

        Raises:
            InputError: an option that is no JSON mapping by method.
        """
        further: dict[str, Any] = {"method": method}
        for flag, key in (("method_options", "method_kwargs"), ("learning_rates", "learning_rate")):
            try:
                given = json.loads(vars(self)[flag] or "{}")
            except json.JSONDecodeError as error:
                raise InputError(f"--{flag} is no JSON ({error}); wanted a mapping by method") from error
            # a typing error would leave a method at its defaults without a word
            strange = set(given) - set(self.methods)
            if strange:
                raise InputError(
                    f"--{flag} names {', '.join(sorted(strange))}, not among --methods "
                    f"{' '.join(self.methods)}"
                )
            if method in given:
                further[key] = given[method]
        return further


def comparison_row(
    method: str, run: dict[str, Any], assessment: dict[str, Any], measure: str = "accuracy"
) -> dict[str, Any]:
    """One line of the comparison: what `metrics.json` of the run says of cost, and the assessment of
    quality.

    Args:
        measure: the task's figure, with its interval; others that have one stand beside it.
    """
    bounds = assessment["intervals"]
    low, high = bounds[measure]
    classes = assessment.get("per_class") or {}
    return {
        "method": method,
        measure: assessment[measure],
        "low": low,
        "high": high,
        **{name: assessment[name] for name in bounds if name != measure},
        "rows": assessment["rows"],
        # those that the run was trained on, which its figures leave out
        "rows_left_out": assessment["rows_left_out"],
        # accuracy of always saying the commonest class of these rows
        "commonest": max((one["rows"] for one in classes.values()), default=0) / assessment["rows"] or None,
        "trainable": run["trainable"],
        # share and seconds are the run's own; quality is the assessment's
        "share": run["trainable"] / run["parameters"],
        "seconds": run["seconds"],
        "memory_mb": run["peak_memory_mb"],
    }


COSTS = ("method", "low", "high", "rows", "rows_left_out", "commonest", "trainable", "share", "seconds",
         "memory_mb")  # fmt: skip


def for_people(row: dict[str, Any], measure: str = "accuracy") -> dict[str, Any]:
    """The same line as a person reads it."""
    return {
        "method": row["method"],
        f"{measure} (95 % interval)": with_interval(row[measure], (row["low"], row["high"])),
        **{name: f"{value:.3f}" for name, value in row.items() if name not in (measure, *COSTS)},
        "trainable": f"{row['trainable']:,}",
        "share": f"{100 * row['share']:.2f} %",
        "seconds": f"{row['seconds']:.0f}",
        "peak memory": f"{row['memory_mb']:.0f} MB",
    }


def comparison_sections(rows: list[dict[str, Any]], measure: str = "accuracy") -> list[Section]:
    """The page of a comparison: quality with intervals, and what it cost."""
    dots = [(row["method"], row[measure], (row["low"], row["high"])) for row in rows]
    counted = ", ".join(dict.fromkeys(scored_rows(row) for row in rows))
    guess = rows[0]["commonest"] if measure == "accuracy" else None
    caption = f"Each method on the same evaluation rows ({counted}); intervals by bootstrap over rows"
    caption += "." if guess is None else f"; dashed: always the commonest class ({guess:.3f})."
    table = Table([for_people(row, measure) for row in rows], "", rows)
    return [
        Section(
            measure[:1].upper() + measure[1:],
            [Chart(charts.dots(dots, f"{measure}, 95 % interval", guess), caption)],
        ),
        Section("What each costs and gives", [table]),
    ]


def write_recipe(path: Path, options: dict[str, Any], finished: bool) -> None:
    """One method's options, for `scripts/train.py --config`.

    Raises:
        InputError: its run is finished and had other options: two experiments would stand in one table.
    """
    # of a run that isn't finished the recipe may be written anew
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if finished and path.is_file() else options
    differing = [name for name in options if before.get(name) != options[name]]
    if differing:
        # five at most: the whole would hide them
        said = "; ".join(
            f"{name}: {before.get(name)!r} there, {options[name]!r} now" for name in differing[:5]
        )
        raise InputError(
            f"{path} belongs to a finished run with other options ({said}). Set --output_dir to a new folder"
        )
    path.write_text(yaml.safe_dump(options), encoding="utf-8")


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """`metrics.json` of a folder, or None where there is none."""
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
