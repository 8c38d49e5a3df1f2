"""Pictures, sounds and series, one by one → what a model reads of each. Knows processors and rows of TASKS;
knows no adapters and no server.

Each input is brought into the model's form by itself, so that no answer depends on what else is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from finetune.adapters.file_inputs import picture_cell, series_cell, sound_cell
from finetune.data.pictures import kinds, mode_of
from finetune.data.sounds import sound_kinds
from finetune.errors import InputError
from finetune.models.audio import longest_heard
from finetune.models.images import channels
from finetune.models.processors import TEXT
from finetune.tasks.series import names
from finetune.tasks.table import TASKS

CELLS = {"image": picture_cell, "audio": sound_cell, "series": series_cell}
# what a message calls them
INPUTS = {"image": "pictures", "audio": "sounds", "series": "series"}
CUT = 60  # letters of an input that a message quotes


@dataclass(frozen=True)
class ReadInput:
    """An input that was looked at and is whole.

    Attributes:
        content: its file as a cell; of a series the values, [channels, time].
    """

    content: Any


def reads_of(config: PreTrainedConfig) -> str:
    """What a model of this configuration reads: texts, unless it is one of those for pictures, sounds or
    series."""
    kind = type(config)
    # Texts first: a family that reads several kinds has been one of texts here all along.
    if kind in TASKS["classification"].model._model_mapping:
        return TEXT
    return next((reads for reads in CELLS if kind in TASKS[reads].model._model_mapping), TEXT)


class InputReader:
    """What brings inputs of one kind into a model's form.

    Args:
        reads: image, audio or series.
        processor: of the model, or of a run on it: each run of series has its own scale.
    """

    def __init__(self, reads: str, processor: Any) -> None:
        self.reads, self.processor, self.row = reads, processor, TASKS[reads]
        self._collate = self.row.collate(processor)

    def read(self, inputs: Sequence[Any]) -> list[ReadInput]:
        """Inputs as `finetune.adapters.load` takes them, looked at; what was looked at stays as it is.

        Raises:
            InputError: one that can't be read, with its place.
        """
        return [self._read(place, one) for place, one in enumerate(inputs)]

    def _read(self, place: int, given: Any) -> ReadInput:
        if isinstance(given, ReadInput):
            return given
        try:
            return ReadInput(CELLS[self.reads](given))
        except InputError as error:
            raise InputError(f"Input {place}: {error}") from error
        except (TypeError, ValueError) as error:  # of NumPy, on what is no array of numbers
            raise InputError(f"Input {place} is {given!s:.{CUT}}; wanted an array of numbers") from error

    def check(self, place: int, given: Any) -> None:
        """An input was read, and is one for this processor.

        Raises:
            InputError: it isn't, or has other channels than the training had.
        """
        # A text is never taken for a path here: it may come from anybody.
        if not isinstance(given, ReadInput):
            raise InputError(f"Text {place} can't be read: this base reads {INPUTS[self.reads]}")
        if self.reads != "series":
            return
        here, there = len(given.content), len(self.processor.channels or ())
        if names(here) != self.processor.channels:
            raise InputError(
                f"Input {place} has {here} channel{'s' * (here > 1)}; its adapter was trained on {there}, in "
                "the order of the training's rows"
            )

    def length(self, given: ReadInput) -> int:
        """How much is read: 1 for a picture, hundredths of a second, or steps."""
        if self.reads == "image":
            return 1
        if self.reads == "series":
            return given.content.shape[1]
        return max(1, round(100 * sound_kinds([given.content])[2][0]))

    def note(self, given: ReadInput) -> str | None:
        """What is made of an input that isn't as the model wants it; None where nothing is."""
        if self.reads == "image":
            modes, _, several = kinds([given.content])
            (mode,), wanted = modes, mode_of(channels(self.processor))
            notes = [f"Pictures of mode {mode} are read as {wanted}"] if mode != wanted else []
            # as in training, which says so in its log
            notes += ["Of several pictures in a file the first is read"] if several else []
            return "; ".join(notes) or None
        if self.reads == "series":
            most = self.processor.context_length
            return f"Series are cut at {most} steps" if given.content.shape[1] > most else None
        ((rate,), (several,), (seconds,)), said = sound_kinds([given.content]), []
        if rate != self.processor.sampling_rate:
            said.append(f"sounds of {rate} Hz are resampled to {self.processor.sampling_rate}")
        if several > 1:
            said.append(f"{several} channels are averaged")
        heard = longest_heard(self.processor)
        if heard is not None and seconds > heard:
            said.append(f"sounds are cut at {heard:.2f} seconds")
        told = "; ".join(said)
        return told[:1].upper() + told[1:] or None

    def tensors(self, given: ReadInput) -> dict[str, Tensor]:
        """What the model reads of one input, each [1, ...]."""
        if self.reads != "series":
            return self._collate([{self.reads: given.content}])
        # [channels, time] → [time, channels], as models read it
        values = self.processor.standard(torch.from_numpy(given.content.T.copy()))
        return self._collate([{"past_values": values[: self.processor.context_length].tolist()}])
