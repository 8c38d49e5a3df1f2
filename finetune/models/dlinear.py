"""DLinear (Zeng et al. 2023): what one linear layer forecasts, as a transformers model. Knows no rows and no
training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class DLinearConfig(PreTrainedConfig):
    """Sizes of a DLinear.

    Args:
        context_length: steps that it reads.
        prediction_length: steps that it forecasts.
        num_input_channels: channels of the series.
        kernel_size: steps that the trend is the mean of (odd).
        individual: a pair of layers for each channel, instead of one for all.
    """

    model_type = "dlinear"

    def __init__(
        self,
        context_length: int = 336,
        prediction_length: int = 96,
        num_input_channels: int = 1,
        kernel_size: int = 25,
        individual: bool = False,
        **kwargs: Any,
    ) -> None:
        self.context_length, self.prediction_length = context_length, prediction_length
        self.num_input_channels, self.kernel_size, self.individual = (
            num_input_channels,
            kernel_size,
            individual,
        )
        super().__init__(**kwargs)


class PerChannelLinear(nn.Module):
    """A linear layer for each channel: [batch, channels, in] → [batch, channels, out]."""

    def __init__(self, channels: int, wide: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, out, wide))
        self.bias = nn.Parameter(torch.zeros(channels, out))

    def forward(self, values: Tensor) -> Tensor:
        return torch.einsum("bci,coi->bco", values, self.weight) + self.bias


class DLinearForPrediction(PreTrainedModel):
    """The trend (a moving average) and what is left of it, each by a linear layer from context to horizon;
    their sum is the forecast (Zeng et al. 2023, section 3.2).
    """

    config_class = DLinearConfig
    base_model_prefix = "layers"
    main_input_name = "past_values"

    def __init__(self, config: DLinearConfig) -> None:
        super().__init__(config)
        if config.kernel_size < 1 or config.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {config.kernel_size} is no odd number of 1 or more")
        wide, out = config.context_length, config.prediction_length
        self.seasonal, self.trend = (
            PerChannelLinear(config.num_input_channels, wide, out)
            if config.individual
            else nn.Linear(wide, out)
            for _ in range(2)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Each step of a fresh forecast is the mean of the context."""
        if isinstance(module, (nn.Linear, PerChannelLinear)):
            nn.init.constant_(module.weight, 1 / module.weight.shape[-1])
            nn.init.zeros_(module.bias)

    def forward(self, past_values: Tensor) -> ModelOutput:
        """past_values [batch, context, channels] → prediction_outputs [batch, horizon, channels]."""
        # channels beside the batch: time is what the layers go over
        values = past_values.transpose(1, 2)
        trend = moving_average(values, self.config.kernel_size)
        forecast = self.seasonal(values - trend) + self.trend(trend)
        return ModelOutput(prediction_outputs=forecast.transpose(1, 2))


def moving_average(values: Tensor, kernel_size: int) -> Tensor:
    """Mean of `kernel_size` steps around each, the first and last value going on beyond the ends:
    [..., time].
    """
    beyond = kernel_size // 2
    # repeated ends: with zeros the trend would fall towards 0 at both
    return F.avg_pool1d(F.pad(values, (beyond, beyond), mode="replicate"), kernel_size, stride=1)
