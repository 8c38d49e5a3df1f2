"""Numbers of a series ↔ the scale that a model reads: each channel by the mean and deviation that it had in
training. Knows channels; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.feature_extraction_utils import FeatureExtractionMixin

from finetune.errors import InputError

# Below this share of its mean a deviation is rounding: the channel is constant.
CONSTANT = 1e-7


class SeriesProcessor(FeatureExtractionMixin):
    """Brings channels onto the standard scale and back; saved with the model as preprocessor_config.json.

    Attributes:
        channels: their names, in the model's order; None before `fit`.
        means, deviations: of each channel over the training rows.
        context_length: steps that the model reads of one series.
    """

    model_input_names = ["past_values"]  # noqa: RUF012

    def __init__(
        self,
        channels: Sequence[str] | None = None,
        means: Sequence[float] | None = None,
        deviations: Sequence[float] | None = None,
        context_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.channels = None if channels is None else list(channels)
        self.means, self.deviations, self.context_length = means, deviations, context_length
        super().__init__(**kwargs)

    def fit(self, means: np.ndarray, deviations: np.ndarray, channels: Sequence[str]) -> None:
        """Take mean and deviation of each channel from the training rows.

        Raises:
            InputError: a channel that is constant there, and has no scale.
        """
        flat = [
            name
            for name, mean, deviation in zip(channels, means, deviations, strict=True)
            # `not >`, which nan doesn't pass either; 1e-30 for a mean of 0
            if not deviation > CONSTANT * max(abs(mean), 1e-30)
        ]
        if flat:
            place = list(channels).index(flat[0])
            still = deviations[place] == 0 or not np.isfinite(deviations[place])
            raise InputError(
                f"The channel '{flat[0]}' has the value {means[place]:g} in all training rows"
                + ("" if still else f", but for {deviations[place]:.2g} that rounding takes")
                + ", so that it has no scale. Leave it out: of a table by --ignore_columns "
                f"{' '.join(flat)}, of lists of channels by writing them without it"
                + ("" if still else "; or take its mean off")
            )
        self.channels = list(channels)
        # numbers of Python's, which JSON can hold
        self.means, self.deviations = [float(one) for one in means], [float(one) for one in deviations]

    def check(self, channels: Sequence[str]) -> None:
        """The rows have the channels of the training, in their order.

        Raises:
            InputError: they have others.
        """
        if list(channels) != self.channels:
            raise InputError(
                f"The rows have the channels {', '.join(channels)}; the model was trained on "
                f"{', '.join(self.channels or ['none'])}. Set --series_columns"
            )

    def standard(self, values: Tensor) -> Tensor:
        """[..., channels] in their own units → on the standard scale, float32."""
        means, deviations = self._scale(values)
        # the difference is taken in float64 and rounded afterwards
        return ((values - means) / deviations).float()

    def own(self, values: Tensor) -> Tensor:
        """[..., channels] on the standard scale → in their own units."""
        means, deviations = self._scale(values)
        return (values * deviations + means).float()

    def _scale(self, values: Tensor) -> tuple[Tensor, Tensor]:
        # in float64: a large mean would swallow a small deviation
        means, deviations = (
            torch.tensor(one, dtype=torch.float64, device=values.device)
            for one in (self.means, self.deviations)
        )
        return means, deviations


def load_series_processor(source: str, **options: Any) -> SeriesProcessor:
    """The processor that was saved with a model; one without scale where the model came without any."""
    try:
        return SeriesProcessor.from_pretrained(source, **options)
    except OSError:
        # a model that was made by other tools: the scale comes from the training rows
        return SeriesProcessor()


def make_series_processor(config: PreTrainedConfig) -> SeriesProcessor:
    """A processor without a scale yet."""
    return SeriesProcessor(context_length=config.to_dict().get("context_length"))
