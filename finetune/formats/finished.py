"""What became of each format, kept on disk: a call that was cut off goes on with the next one. Knows files
and figures; knows no model.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.adapters.export import claim
from finetune.artefacts.files import write_atomically
from finetune.errors import InputError
from finetune.metrics.bootstrap import mean_figure
from finetune.metrics.measure import Measure

RECORDS, COMPARED = "finished", "compared.json"


@dataclass(frozen=True)
class Export:
    """One format's file and how it answered.

    Attributes:
        megabytes: of the weights' file or files.
        milliseconds: a row at batch 1, the median.
        processor: the same of all processors' time, which other processes on the machine don't lengthen.
        memory: most that its process held, runtime and all, in MB.
        said: the likeliest class of each labelled place.
        right: accuracy, of rows or of the labelled tokens of rows.
        nats: a labelled place, the mean.
        left_out: rows that were not asked, as a run was trained on them.
    """

    name: str
    file: Path | None
    megabytes: float
    milliseconds: float
    processor: float
    memory: float
    said: np.ndarray
    right: Measure
    nats: float
    left_out: int = 0


@dataclass(frozen=True)
class Failed:
    """A format that the model can't be had in, and why, in one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """Records of the formats that are done, in a folder of exports."""

    folder: Path

    @classmethod
    def begin(cls, folder: Path, compared: dict[str, Any]) -> Finished:
        """The records of a folder, which is made where there is none.

        Args:
            compared: what must be the same for figures to stand in one table.

        Raises:
            InputError: it holds exports of other weights or rows, or something else.
        """
        file = folder / RECORDS / COMPARED
        if not file.is_file():
            claim(folder)
            file.parent.mkdir()
            write_atomically(file, json.dumps(compared, indent=1))
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name, value in compared.items() if before.get(name) != value]
        if differing:
            raise InputError(
                f"{folder} holds exports with other {', '.join(differing)}, whose figures don't stand beside "
                "these; set --output_dir to a new one"
            )
        return cls(folder)

    def read(self, name: str, keep: bool) -> Export | None:
        """A format that is done; None where it isn't, or where its file is gone and wanted.

        Args:
            keep: whether its file is wanted, not its figures alone.
        """
        record = self._record(name)
        if not record.is_file():
            return None
        said = json.loads(record.read_text(encoding="utf-8"))
        file = None if said["file"] is None else self.folder / said["file"]
        if keep and (file is None or not file.exists()):
            return None
        right = Measure(np.array(said.pop("counts")), mean_figure, said.pop("is_mean"))
        return Export(**said | {"file": file, "said": np.array(said["said"]), "right": right})

    def write(self, export: Export) -> None:
        """Keep a format's figures."""
        said = dict(vars(export))
        right = said.pop("right")
        # below the folder, which may be carried elsewhere
        said["file"] = None if export.file is None else str(export.file.relative_to(self.folder))
        said |= {"said": export.said.tolist(), "counts": right.counts.tolist(), "is_mean": right.is_mean}
        # whole or not at all: a file is the sign that the format is done
        write_atomically(self._record(export.name), json.dumps(said))

    def remove_if_empty(self) -> None:
        """Take the folder away where nothing was finished."""
        if not [one for one in (self.folder / RECORDS).glob("*.json") if one.name != COMPARED]:
            shutil.rmtree(self.folder)

    def _record(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"
