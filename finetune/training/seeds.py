"""One run → several that differ by their seeds, and their figures → mean ± standard deviation. Knows options;
knows no model.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.artefacts.files import ARGUMENTS, METRICS, write_atomically
from finetune.artefacts.folder import resolved_options
from finetune.artefacts.runs import difference
from finetune.data.sources import FewShotArguments
from finetune.errors import InputError
from finetune.training.options import TrainingArguments


def repeats(
    data: FewShotArguments, training: TrainingArguments
) -> Iterator[tuple[FewShotArguments, TrainingArguments]]:
    """The options of each run: other training rows, another head and order, the same evaluation rows, a
    folder of its own.

    Raises:
        InputError: fewer than one run, or several in a folder that holds one.
    """
    if data.seeds < 1:
        raise InputError(f"Got --seeds {data.seeds}; wanted 1 or more")
    if data.seeds == 1:
        yield data, training
        return
    if (Path(training.output_dir) / ARGUMENTS).is_file():  # type: ignore[arg-type]
        raise InputError(
            f"{training.output_dir} holds a single run; set --output_dir to a new folder for {data.seeds} "
            "--seeds"
        )
    for number in range(data.seeds):
        # `sample_seed` itself stays: it draws the evaluation rows, which all runs share
        first = data.sample_seed if data.train_sample_seed is None else data.train_sample_seed
        folder = str(Path(training.output_dir) / f"seed-{number}")  # type: ignore[arg-type]
        yield (
            # 1, or each run would start a series of its own
            replace(data, seeds=1, train_sample_seed=first + number),
            replace(training, seed=training.seed + number, output_dir=folder),
        )


def finished(*groups: Any) -> dict[str, Any] | None:
    """The figures of a run that is done, None for any other: started again, a series goes on where it
    stopped.

    Args:
        groups: all options of the run; `output_dir` is its folder.

    Raises:
        InputError: the run that is done there had other options.
    """
    options = resolved_options(*groups)
    folder = Path(options["output_dir"])
    # written last in a run, so that it stands for a finished one
    if not (folder / METRICS).is_file():
        return None
    differing = difference(folder, options)
    if differing:
        raise InputError(
            f"{folder} holds a finished run of another series ({differing}). Set --output_dir to a new folder"
        )
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def spread(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each figure over runs, `deviation` (of a sample, n - 1) of each, and the runs themselves."""
    names = [
        name
        for name, value in runs[0].items()
        # True and False are ints to Python, and no figures
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    values = {
        name: [float(run[name]) for run in runs]
        for name in names
        # a figure that one run lacks has no mean over all of them
        if all(run.get(name) is not None for run in runs)
    }
    means = {name: statistics.fmean(each) for name, each in values.items()}
    # of a single run it is not defined
    deviations = {name: statistics.stdev(each) if len(each) > 1 else 0.0 for name, each in values.items()}
    return means | {"seeds": len(runs), "deviation": deviations, "runs": list(runs)}


def save_spread(runs: Sequence[dict[str, Any]], folder: str, best: str) -> str:
    """Writes metrics.json of a series; gives back its line for the screen."""
    figures = spread(runs)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(folder) / METRICS, json.dumps(figures, indent=1))
    return f"{best} {figures[best]:.4f} ± {figures['deviation'][best]:.4f} over {len(runs)} seeds"
