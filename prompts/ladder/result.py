"""What one run of a ladder came to, as a file that it is not run again for. Knows numbers and files; knows
no models."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune.artefacts.files import write_atomically


@dataclass(frozen=True)
class LadderRun:
    """One way at one number of labels, drawn once.

    Attributes:
        labels: labelled rows that it used.
        said: class of each unseen row, by its number.
        seconds: to learn, loading not counted.
        row_ms: milliseconds to answer a row, in batches.
        memory_mb: most that the process held meanwhile; None where the system doesn't tell.
        own_mb, base_mb: on disk, of what was learnt alone, and of the model that it stands on.
        kept_rows: rows that it went through, by which later runs are foreseen.
    """

    way: str
    labels: int
    seed: int
    said: list[int]
    seconds: float
    row_ms: float
    memory_mb: float | None
    own_mb: float
    base_mb: float
    kept_rows: int

    @property
    def name(self) -> str:
        return run_name(self.way, self.labels, self.seed)

    def save(self, folder: Path) -> None:
        """Written whole or not at all."""
        # by name: a run that is done is found by it and not made again
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.name}.json", json.dumps(asdict(self)))


def run_name(way: str, labels: int, seed: int) -> str:
    """Of a run's file."""
    return f"{way}-{labels}-{seed}"


def read_runs(folder: Path) -> dict[str, LadderRun]:
    """Runs that are done, by name."""
    # sorted, so that the page doesn't follow the order of the file system
    found = [
        LadderRun(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))
    ]
    return {run.name: run for run in found}
