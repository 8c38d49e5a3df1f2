"""A secret that watermarks texts, and how well tokens fit it. Knows transformers' watermarks; knows no model.

Two schemes: `greenlist` raises the logits of a part of the vocabulary that the token before chooses
(Kirchenbauer et al. 2023), `synthid` lets tokens win a tournament that the four tokens before choose
(Dathathri et al. 2024).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

from finetune.errors import InputError

GREENLIST, SYNTHID = "greenlist", "synthid"
RATIO, DEPTH, NGRAM = 0.25, 10, 5
AT_ONCE = 128  # windows whose whole vocabulary is looked at together


@dataclass(frozen=True)
class Watermark:
    """One secret.

    Attributes:
        scheme: greenlist or synthid.
        key: the secret number.
        bias: greenlist: what the logits of chosen tokens gain.
        vocabulary: number of logits of the model that wrote the texts.
        tokenizer: hash of its tokenizer.
    """

    scheme: str
    key: int
    bias: float
    vocabulary: int
    tokenizer: str

    def config(self) -> Any:
        """As `generate(watermarking_config=...)` takes it."""
        if self.scheme == GREENLIST:
            return WatermarkingConfig(greenlist_ratio=RATIO, bias=self.bias, hashing_key=self.key)
        # SynthID wants a key for each layer of its tournament: all from one number
        keys = np.random.default_rng(self.key).integers(1, 2**20, DEPTH).tolist()
        return SynthIDTextWatermarkingConfig(ngram_len=NGRAM, keys=keys)

    @property
    def width(self) -> int:
        """Number of tokens that choose the next one's part."""
        return 1 if self.scheme == GREENLIST else NGRAM - 1

    def fits(self, grams: torch.Tensor) -> tuple[int, int, float]:
        """How many of the coins that the secret throws for each token in its window fall on its side.

        Args:
            grams: distinct windows, each with the token after it, [grams, width + 1].

        Returns:
            Coins on its side, all coins, and the chance of each where nothing knows the secret.
        """
        # on the CPU, as a greenlist follows from a generator of the device that wrote it
        processor = self.config().construct_processor(self.vocabulary, "cpu")
        # DEPTH coins for each token, each fair
        if self.scheme == SYNTHID:
            coins = processor.compute_g_values(grams)
            return int(coins.sum()), coins.numel(), 0.5
        hits = 0
        for part in grams.split(AT_ONCE):
            # zeros in: what is above 0 has been raised
            raised = processor(part[:, :-1], torch.zeros(len(part), self.vocabulary))
            hits += int((raised.gather(1, part[:, -1:]) > 0).sum())
        return hits, len(grams), int(self.vocabulary * RATIO) / self.vocabulary

    def as_secret(self, **further: Any) -> dict[str, Any]:
        """What `trace mark` writes down; whoever has it can find the mark, and remove it."""
        return {"how": self.scheme, **asdict(self), **further}


def read_secret(folder: str | Path, name: str) -> dict[str, Any]:
    """What `trace mark` wrote down.

    Raises:
        InputError: no such file, or no secret in it.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise InputError(f"{folder} holds no {name}; wanted the folder that `trace mark` wrote. Set --trace")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is damaged: {error}") from error
    how = found.get("how") if isinstance(found, dict) else None
    marked = [*Watermark.__dataclass_fields__, "column", "writer"]
    wanted = {"canaries": ["canaries"], GREENLIST: marked, SYNTHID: marked}.get(str(how))
    if wanted is None:
        raise InputError(f"{file} holds no secret of `trace mark`. Set --trace")
    lost = [name for name in wanted if not found.get(name)]
    if lost:
        raise InputError(f"{file} is damaged: '{lost[0]}' is missing. Bring back what `trace mark` wrote")
    return found


def watermark_of(secret: dict[str, Any]) -> Watermark:
    """The watermark in a secret."""
    return Watermark(**{name: secret[name] for name in Watermark.__dataclass_fields__})


def new_grams(
    ids: Sequence[int], predicted: Sequence[int], width: int, seen: set[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Windows of a text with the token that a model predicts after each, as far as they say something new.

    Each window and token counts once over all texts (`seen` grows), and none that the text held before that
    place: a model that repeats its context would repeat the mark in it (Sander et al. 2024, section 4.2).

    Args:
        ids: tokens of the text.
        predicted: the token that the model finds likeliest after each of them.
    """
    found, held = [], set()
    for place in range(width - 1, len(ids)):
        if place >= width:
            # added only when it lies behind: the gram at this place is not among them yet
            held.add(tuple(ids[place - width : place + 1]))
        gram = (*ids[place - width + 1 : place + 1], predicted[place])
        if gram not in seen and gram not in held:
            seen.add(gram)
            found.append(gram)
    return found


def radioactivity(watermark: Watermark, grams: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Whether predictions know the secret: one-sided binomial test over distinct windows and tokens.

    Returns:
        `p`, `hits`, `coins`, and the `share` beside the `chance`.

    Raises:
        InputError: nothing to look at.
    """
    if not grams:
        raise InputError("The texts are too short: no window with a token after it. Mark longer ones")
    hits, coins, chance = watermark.fits(torch.tensor(list(grams)))
    # sf is P(> x): less one for at least so many
    p = float(binom.sf(hits - 1, coins, chance))
    return {"p": p, "hits": hits, "coins": coins, "share": hits / coins, "chance": chance}
