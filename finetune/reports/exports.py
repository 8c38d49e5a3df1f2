"""What formats cost and how they answer, as lines of one table. Knows figures; knows no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetune.metrics.bootstrap import draws
from finetune.metrics.significance import compare
from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table
from finetune.reports.tables import scored_rows, with_interval

SAMPLES, ACCURACY = 2000, "accuracy (95 %)"


def export_lines(exports: Sequence[Any], samples: int = SAMPLES) -> list[dict[str, Any]]:
    """Figures of each export, against the first: `accuracy` with its interval, `changed` predictions, and the
    paired test of the `drop`.

    Args:
        exports: `formats.finished.Export`s; the first is the reference.
    """
    whole, lines = exports[0], []
    # the same resampled rows for all formats, so that their differences are paired
    drawn = draws(len(whole.right.counts), samples, 0)
    for one in exports:
        found = compare(whole.right, one.right, drawn)
        lines.append(
            {
                "format": one.name,
                "megabytes": one.megabytes,
                "milliseconds": one.milliseconds,
                "processor_milliseconds": one.processor,
                "memory_mb": one.memory,
                "accuracy": one.right.value,
                "interval": list(one.right.interval(drawn)),
                "nats": one.nats,
                # a format may be as often right on other rows: accuracy alone would hide it
                "changed": int((one.said != whole.said).sum()),
                "predictions": len(one.said),
                # none of the exported runs was trained on what is counted
                "rows": len(one.right.counts),
                "rows_left_out": one.left_out,
                "drop": found.difference,
                "drop_interval": [found.low, found.high],
                "p": found.p,
                "test": found.test,
                "file": None if one.file is None else str(one.file),
            }
        )
    return lines


def failed_line(name: str, reason: str) -> dict[str, Any]:
    """The line of a format that came to nothing."""
    return {"format": name, "failed": reason}


def as_table(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for people; a format that failed has its reason where its accuracy would stand."""
    first = lines[0]["format"]
    whole = [_cells(line, first) for line in lines if "failed" not in line]
    blank = dict.fromkeys(whole[0], "")
    return whole + [
        blank | {"format": line["format"], ACCURACY: f"failed: {line['failed']}"}
        for line in lines if "failed" in line
    ]  # fmt: skip


def _cells(line: dict[str, Any], first: str) -> dict[str, Any]:
    return {
        "format": line["format"],
        "MB": f"{line['megabytes']:.4g}",
        "ms a row": f"{line['milliseconds']:.3g}",
        "processor ms": f"{line['processor_milliseconds']:.3g}",
        "peak MB": f"{line['memory_mb']:.0f}",
        ACCURACY: with_interval(line["accuracy"], line["interval"]),
        "loss": f"{line['nats']:.3f}",
        "changed": f"{line['changed']} of {line['predictions']}",
        # the first is compared with nothing
        f"against {first}": _verdict(line) if line["format"] != first else "",
    }


def export_sections(lines: Sequence[dict[str, Any]]) -> list[Section]:
    """The same as a page: each format's accuracy with its interval, and what it costs."""
    measured = [line for line in lines if "failed" not in line]
    dots = [(line["format"], line["accuracy"], line["interval"]) for line in measured]
    caption = (
        f"On the same rows ({scored_rows(lines[0])}), each in its own runtime; the first is what the others "
        "are held against."
    )
    # cells of CSV hold one number each
    raw = [{k: v for k, v in line.items() if not isinstance(v, list)} for line in measured]
    return [
        Section("Accuracy", [Chart(charts.dots(dots, "accuracy, 95 % interval"), caption)]),
        Section("What it costs", [Table(as_table(lines), "", raw)]),
    ]


def _verdict(line: dict[str, Any]) -> str:
    """`-0.012, p = 0.03 (McNemar, exact)`."""
    # a drop is said as the change that it is, and none as no minus 0
    return f"{0 - line['drop']:+.4f}, p = {line['p']:.2g} ({line['test']})"


def beyond(
    lines: Sequence[dict[str, Any]], tolerance: float | None, say: Callable[[str], None] = print
) -> bool:
    """Whether a format drops more than it may; each that does is said."""
    if tolerance is None:
        return False
    # a bound that is met exactly is not missed by a rounding
    missed = [line for line in lines if "failed" not in line and line["drop"] > tolerance + 1e-12]
    for line in missed:
        low, high = line["drop_interval"]
        say(
            f"{line['format']} drops {line['drop']:.4f} of the accuracy (95 % {low:.4f} to {high:.4f}); "
            f"--tolerance is {tolerance:g}"
        )
    return bool(missed)
