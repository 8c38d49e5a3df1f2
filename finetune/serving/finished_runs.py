"""Finished runs that read pictures, sounds or series, asked by name beside the pool. Knows base64 and
predictors; knows no routes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.adapters import load
from finetune.adapters.forecaster import Forecaster
from finetune.adapters.predictor import Predictor
from finetune.data.pictures import kinds, picture_fault
from finetune.data.sounds import heard, sound_fault
from finetune.errors import InputError

MOST_PIXELS = 2**24  # of one picture: a small file may hold a very large one
MOST_SECONDS = 600  # of one sound: at a few samples a second a small file lasts for days
SHARED = 1024  # values of a weight, from which on equal ones of several runs are held once


class FinishedRuns:
    """Names → predictors and forecasters. Weights that several runs have alike, as adapters on one base do,
    are held once.

    Args:
        entries: `name=folder`, as `--runs` has them.

    Raises:
        InputError: an entry without a folder, a folder that is no finished run, or one that reads texts.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._known: dict[str, Predictor | Forecaster] = {}
        held: dict[tuple[Any, ...], torch.Tensor] = {}
        for entry in entries:
            name, _, folder = entry.partition("=")
            if not name or not folder:
                raise InputError(f"--runs {entry}; wanted name=folder")
            found = load(Path(folder).expanduser())
            if not isinstance(found, (Predictor, Forecaster)) or found.row.reads == "text":
                raise InputError(
                    f"--runs {entry} reads neither pictures, sounds nor series; serve it by --adapters"
                )
            share_weights(found.network, held)
            self._known[name] = found

    def names(self) -> dict[str, str]:
        """What each run does: image, audio, series or forecast."""
        return {
            name: "forecast" if isinstance(found, Forecaster) else found.row.reads
            for name, found in self._known.items()
        }

    def taken(self, name: Any, reads: str) -> bool:
        """Whether a run of that name answers requests that a base reading so would be asked."""
        return isinstance(name, str) and self.names().get(name) == reads

    def classify(self, reads: str, contents: Sequence[Any], name: str | None) -> list[dict[str, Any]]:
        """Files in base64, or series as lists → label, its probability, and the probability of every label.

        Args:
            reads: what the inputs are: image, audio or series.

        Raises:
            InputError: no such run, one that reads something else, or an input that can't be read.
        """
        asked = self._asked(name)
        if isinstance(asked, Forecaster):
            raise InputError(f"'{name}' forecasts, and tells no classes apart; ask v1/forecast")
        if asked.row.reads != reads:
            raise InputError(f"'{name}' reads {asked.row.reads}, and the request holds {reads}")
        found = []
        for chances in asked.chances(file_contents(contents, reads)):
            best = max(chances, key=lambda label: chances[label])
            found.append({"label": best, "probability": chances[best], "probabilities": chances})
        return found

    def forecast(
        self, past: Mapping[str, Sequence[float]], times: Sequence[str] | None, name: str | None
    ) -> dict[str, list[float]]:
        """What comes next in each channel, by its name, in its own unit.

        Raises:
            InputError: no such run, one that forecasts nothing, or a past that it can't read.
        """
        asked = self._asked(name)
        if not isinstance(asked, Forecaster):
            raise InputError(f"'{name}' tells classes apart, and forecasts nothing; ask v1/classify")
        return asked(past, times)

    def _asked(self, name: str | None) -> Predictor | Forecaster:
        if name not in self._known:
            known = ", ".join(self._known) or "none (--runs, or a --base that reads such)"
            raise InputError(
                f"No run {name!r} that reads files or series; there are: {known}. Name it by 'adapter'"
            )
        return self._known[name]


@torch.no_grad()
def share_weights(network: torch.nn.Module, held: dict[tuple[Any, ...], torch.Tensor]) -> None:
    """Put earlier networks' weights in the place of equal ones, told by their content.

    Args:
        held: what there is by now; gains the network's own.
    """
    for weight in network.parameters():
        if weight.numel() < SHARED:
            continue
        # bytes, as NumPy has no bfloat16
        content = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
        key = (weight.shape, weight.dtype, hashlib.sha256(content).digest())
        weight.set_(held.setdefault(key, weight.detach()))


def file_contents(given: Sequence[Any], reads: str) -> list[Any]:
    """Files in base64 → their bytes; series as they are.

    Raises:
        InputError: one that can't be read, or is too large, with its place.
    """
    return [one if reads == "series" else _content(place, one, reads) for place, one in enumerate(given)]


def _content(place: int, given: str, reads: str) -> bytes:
    """The bytes of a file in base64, with or without the head of a `data:` address."""
    plain = given.partition(",")[2] if given.startswith("data:") else given
    try:
        content = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"Input {place} is no base64 ({error})") from error
    if reads == "audio":
        _check_sound(place, content)
        return content
    cell = {"bytes": content, "path": None}
    try:
        (size,) = kinds([cell])[1]
    except Exception as error:  # Pillow's word on a file that is no picture
        raise InputError(f"Input {place} is no picture that can be read ({type(error).__name__})") from error
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"Input {place} has {size[0]} x {size[1]} pixels; wanted {MOST_PIXELS:,} at most")
    reason = picture_fault(cell)
    if reason:
        raise InputError(f"Input {place} can't be read: {reason}")
    return content


def _check_sound(place: int, content: bytes) -> None:
    if content[:4] != b"RIFF":
        raise InputError(f"Input {place} is no WAV; wanted the bytes of one in base64")
    cell = {"bytes": content, "path": None}
    reason = sound_fault(cell)
    if reason:
        raise InputError(f"Input {place} can't be read: {reason}")
    wave, rate, _ = heard(cell)
    if len(wave) > MOST_SECONDS * rate:
        raise InputError(
            f"Input {place} lasts {len(wave) / rate:,.0f} seconds; wanted {MOST_SECONDS} at most"
        )
