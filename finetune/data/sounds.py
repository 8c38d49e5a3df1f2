"""Cells that are sounds → waves at one rate, and vectors of them. Knows files and rates; knows no rows'
meaning and no model.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

from finetune.data.cells import file_bytes, file_fault, missing_file
from finetune.errors import InputError

# samples a second of any format there is; beyond, resampling would take filters of gigabytes
SLOWEST, FASTEST = 1, 768_000
STREAMED = 0x7FFFF000  # bytes of sound, from which on a head's number is a placeholder
WHOLE = 0.95  # of the samples that a compressed file tells of: less is a file that was cut off
MELS, SEGMENTS = 40, 8  # bands, and parts of a sound, of the vector that a linear model reads


def heard(cell: dict[str, Any], rate: int | None = None) -> tuple[np.ndarray, int, int]:
    """The wave of a cell, float32 in [-1, 1], [samples]; the rate it has, and how many channels it had.

    Plain WAV is read by scipy, all else by soundfile. Channels are averaged.

    Args:
        rate: in samples a second, to bring the wave to (by polyphase filters); None leaves it as it is.

    Raises:
        OSError, ValueError, RuntimeError: whatever a reader says of a file that is none.
        InputError: a format that wants soundfile, which is not installed.
    """
    content = file_bytes(cell)
    wave, own = _read(content, cell.get("path") or "A sound")
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    wave = wave if wave.ndim == 1 else wave.mean(axis=1)
    if rate is not None and own != rate and len(wave):
        # the filter goes up by one and down by the other, in lowest terms
        part = math.gcd(own, rate)
        wave, own = resample_poly(wave, rate // part, own // part), rate
    return wave.astype(np.float32), own, channels


def _read(content: bytes, name: str) -> tuple[np.ndarray, int]:
    fault: Exception | None = None
    # plain WAV wants no extra package
    if content[:4] == b"RIFF":
        _check_whole(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of parts that hold no sound
                rate, values = wavfile.read(io.BytesIO(content))
            return _shares(values), int(rate)
        except (ValueError, EOFError, struct.error) as error:  # broken, or a codec inside WAV
            fault = error
    try:
        import soundfile
    except ImportError as error:
        if fault is not None:
            raise ValueError(f"no plain WAV ({fault}); the extra 'audio' reads more") from error
        raise InputError(
            f"{name} is no plain WAV, and other sounds want the extra 'audio': "
            "pip install 'finetune-and-prompt[audio]'"
        ) from error
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        values, told = file.read(dtype="float32", always_2d=False), file.frames
    # an MP3's head may guess by a little
    if len(values) < WHOLE * told:
        raise ValueError(f"cut off: {len(values):,} of the {told:,} samples that its head tells of")
    return values, int(file.samplerate)


def _check_whole(content: bytes) -> None:
    """A WAV has as much sound as its head says; readers take what is there without a word.

    Raises:
        ValueError: it was cut off.
    """
    start = 12
    while start + 8 <= len(content):
        kind, size = struct.unpack("<4sI", content[start : start + 8])
        there = len(content) - start - 8
        if kind == b"data":
            # a recorder that wrote into a pipe didn't know the length, and says the largest that there is
            if there < size < STREAMED:
                raise ValueError(f"cut off: {there:,} of the {size:,} bytes of sound that its head tells of")
            return
        # parts begin at even places
        start += 8 + size + size % 2
    raise ValueError("cut off before any sound")


def _shares(values: np.ndarray) -> np.ndarray:
    """Samples of any type as shares of the loudest that there can be."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        # WAV's 8 bits have no sign: silence is 128
        return (values.astype(np.float32) - 128) / 128
    return values.astype(np.float32) / float(-int(np.iinfo(values.dtype).min))


def sound_fault(cell: dict[str, Any] | None) -> str | None:
    """What is wrong with a sound, None where there is something to be heard."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        return "no sound"
    try:
        wave, rate, _ = heard(cell)
    except OSError as error:
        # also a name that is too long to be one, or a folder's
        missing = cell["bytes"] is None and missing_file(cell["path"])
        return missing or file_fault(error)
    # a missing package is no fault of the sound
    except InputError:
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        return file_fault(error)
    if len(wave) == 0:
        return "0 samples"
    if not SLOWEST <= rate <= FASTEST:
        return f"{rate:,} samples a second; wanted {SLOWEST} to {FASTEST:,}"
    return None if np.isfinite(wave).all() else "samples that are no numbers"


def sound_kinds(cells: Sequence[dict[str, Any]]) -> tuple[Counter[int], Counter[int], list[float]]:
    """How many sounds have each rate, and each number of channels; the seconds of each."""
    rates: Counter[int] = Counter()
    channels: Counter[int] = Counter()
    seconds = []
    for cell in cells:
        wave, rate, many = heard(cell)
        rates[rate] += 1
        channels[many] += 1
        seconds.append(len(wave) / rate)
    return rates, channels, seconds


def mel_vectors(cells: Sequence[dict[str, Any]], rate: int) -> np.ndarray:
    """Mean and deviation of 40 log-mel bands in eight equal parts of each sound, [sounds, 640]."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    frame, hop = rate // 40, rate // 100  # 25 ms every 10 ms
    # the next power of two, for the Fourier transform
    size = 1 << (frame - 1).bit_length()
    bank = mel_filter_bank(size // 2 + 1, MELS, 20.0, rate / 2, rate)
    window = window_function(frame, "hann")
    made = []
    for cell in cells:
        wave, _, _ = heard(cell, rate)
        # at least one frame for each part
        wave = np.pad(wave, (0, max(0, frame + hop * SEGMENTS - len(wave))))
        power = spectrogram(
            wave, window, frame, hop, fft_length=size, mel_filters=bank, log_mel="log", mel_floor=1e-8
        )
        parts = np.array_split(power, SEGMENTS, axis=1)
        made.append(np.concatenate([each(part, axis=1) for part in parts for each in (np.mean, np.std)]))
    return np.stack(made)
