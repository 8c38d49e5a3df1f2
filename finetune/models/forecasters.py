"""Models that forecast: which there are, how each is made for a series and asked. Knows configurations;
knows no rows and no training.

Every one gives a forecast [batch, horizon, channels] for windows of a series, whatever it calls its inputs
and outputs.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from finetune.errors import InputError
from finetune.models.dlinear import DLinearConfig, DLinearForPrediction
from finetune.models.heads import core

NAMES = OrderedDict(
    patchtst="PatchTSTForPrediction",
    patchtsmixer="PatchTSMixerForPrediction",
    informer="InformerForPrediction",
    autoformer="AutoformerForPrediction",
    time_series_transformer="TimeSeriesTransformerForPrediction",
    timesfm="TimesFmModelForPrediction",
)
CLASSIFIERS = OrderedDict(patchtst="PatchTSTForClassification")
MASKED = OrderedDict(patchtst="PatchTSTForPretraining")
HEADS = ("encoder_attention_heads", "decoder_attention_heads")
# Steps of a patch in PatchTST's own paper (Nie et al. 2023, section 4), half of which it shares with the
# next; transformers' default is one step.
PATCH = 16


class AutoModelForForecast(_BaseAutoModelClass):
    """Models that forecast a series; transformers' own class knows but one of them."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, NAMES)  # type: ignore[assignment]


class AutoModelForSeriesClassification(_BaseAutoModelClass):
    """Models that give a series one class; as many as the configuration has labels, by whatever name."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, CLASSIFIERS)  # type: ignore[assignment]

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        # PatchTST's own word for the number of its classes
        config.update({"num_targets": config.num_labels})
        return super().from_config(config, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str, *further: Any, config: PreTrainedConfig, **kwargs: Any
    ) -> Any:
        config.update({"num_targets": config.num_labels})
        return super().from_pretrained(name, *further, config=config, **kwargs)


class AutoModelForMaskedSeries(_BaseAutoModelClass):
    """Models that learn to fill masked patches of a series."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, MASKED)  # type: ignore[assignment]


AutoConfig.register("dlinear", DLinearConfig)
AutoModelForForecast.register(DLinearConfig, DLinearForPrediction)


def sizes(
    config: PreTrainedConfig, channels: int, context: int, horizon: int, calendar: int
) -> dict[str, Any]:
    """Entries of a fresh model's configuration for a series: how much it reads and forecasts, by the
    family's own names; the user's own entries come on top.

    Args:
        context: steps of a window that stand before a forecast.
        calendar: features of the time that come with each step, 0 where times are not known.
    """
    known = config.to_dict()
    if "lags_sequence" in known:
        return lagged(config.model_type, channels, context, horizon, calendar)
    if config.model_type == "timesfm":
        # whole patches; what the window lacks is padded in front
        return {
            "context_length": -(-context // config.patch_length) * config.patch_length,
            "horizon_length": horizon,
        }
    entries: dict[str, Any] = {"num_input_channels": channels, "context_length": context}
    # a series that gets a class has no horizon
    if horizon:
        entries["prediction_length"] = horizon
    if "patch_stride" in known:
        # of a short window an eighth, so that there are several patches to look at
        length = min(PATCH, max(1, context // 8))
        entries |= {"patch_length": length, "patch_stride": max(1, length // 2)}
    if horizon and "pooling_type" in known:
        entries["pooling_type"] = None  # the paper's head reads every patch, transformers' default their mean
    return entries


def resized(config: PreTrainedConfig, entries: dict[str, Any]) -> PreTrainedConfig:
    """The configuration with other entries, made anew: some families reckon further ones from them."""
    known = config.to_dict()
    # both are reckoned from the others, and would hold the old sizes
    own = {name: value for name, value in known.items() if name not in ("feature_size", "num_patches")}
    return type(config).from_dict(own | entries)


def lagged(kind: str, channels: int, context: int, horizon: int, calendar: int) -> dict[str, Any]:
    """The same for an encoder-decoder that reads each step through what stood some steps before it.

    Its decoder reads the steps that it forecasts through lags too: with none below the horizon they all stand
    before the forecast, so that the whole is foretold at once, as in Informer's paper (Zhou et al. 2021,
    section 3.3), and no forecast is fed back. Autoformer's decoder reads no lags of the future.
    """
    # see `check_sizes`: a lag below the horizon would be the future
    lags = [0] if kind == "autoformer" else [horizon]
    # the model itself reads as much more than its context as its longest lag
    inner = context - max(lags)
    if inner < 2:
        raise InputError(
            f"--context_length {context} leaves nothing to read for a {kind} that forecasts {horizon} "
            f"steps: it reads every step through the one {horizon} steps before. Set --context_length "
            f"{2 * horizon} or more"
        )
    entries = {
        "input_size": channels, "context_length": inner, "prediction_length": horizon, "lags_sequence": lags,
        "scaling": "std", "distribution_output": "normal", "num_time_features": calendar,
    }  # fmt: skip
    if kind == "autoformer":
        # the decoder begins with so many known steps; one head for the reason in `check_sizes`
        entries |= {"label_length": min(inner // 2, horizon)} | dict.fromkeys(HEADS, 1)
    return entries


def forecasts(network: Any) -> bool:
    """Whether a model forecasts: told by its class, since a family may also give classes."""
    whole = core(network)
    mapping = AutoModelForForecast._model_mapping
    return type(whole.config) in mapping and isinstance(whole, mapping[type(whole.config)])


def window_of(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Channels, steps that are read and steps that are forecast, as a model's configuration has them; one
    channel where it takes any number.
    """
    known = config.to_dict()
    # with lags, the steps that it reads are more than its context
    context = known["context_length"] + max(known.get("lags_sequence") or [0])
    horizon = known.get("prediction_length") or known["horizon_length"]
    return known.get("num_input_channels", known.get("input_size", 1)), context, horizon


def check_sizes(config: PreTrainedConfig, channels: int, context: int, horizon: int) -> None:
    """A model's configuration fits the windows.

    Raises:
        InputError: it reads or forecasts another number of steps, or other channels.
    """
    known = config.to_dict()
    lags = known.get("lags_sequence") or []
    if lags and config.model_type != "autoformer" and min(lags) < horizon:
        raise InputError(
            f"lags_sequence {lags} holds a lag below the horizon: the model would read what it has to "
            f"forecast. Set --config_overrides to lags of {horizon} or more"
        )
    if config.model_type == "autoformer" and max(known[name] for name in HEADS) > 1:
        # transformers 5.23 counts windows and heads in two orders; a delay is the mean over all heads anyway
        raise InputError(
            "An Autoformer with several heads takes delays from other windows of its batch, so that a "
            "forecast would depend on them; one head computes the same without. Set --config_overrides "
            f"{HEADS[0]}=1,{HEADS[1]}=1"
        )
    # patches: the window may be shorter than what it reads
    if config.model_type == "timesfm":
        if known["context_length"] < context or known["horizon_length"] < horizon:
            raise InputError(
                f"The model reads {known['context_length']} steps and forecasts {known['horizon_length']}; "
                f"the windows have {context} and {horizon}. Set --context_length and --prediction_length"
            )
        return
    found = {
        # with lags, the steps that it reads are more than its context
        "context_length": (known.get("context_length", context) + max(lags, default=0), context),
        "prediction_length": (
            known.get("prediction_length", horizon),
            horizon or known.get("prediction_length"),
        ),
    }
    for name, (has, wanted) in found.items():
        if has != wanted:
            raise InputError(f"The model's {name} is {has}, the windows' {wanted}; set --{name} {has}")
    held = known.get("num_input_channels", known.get("input_size", channels))
    if held != channels:
        raise InputError(
            f"The model was made for {held} channels, and the series has {channels}; set --series_columns, "
            "or --from_config to train one from scratch"
        )


def forecast(model: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """A model's forecast for windows, [batch, horizon, channels].

    Args:
        batch: past_values [batch, context, channels], and what their times tell where it is known.
        labels: what came, [batch, horizon, channels]; its shape alone is read.
    """
    network = core(model)
    # families differ in what they take; names of arguments tell more than a list of them
    taken = inspect.signature(type(network).forward).parameters
    if "future_time_features" in taken:
        return _of_distribution(model, network, batch, labels)
    if "freq" in taken:
        # one channel at a time, each a row of its own
        # [batch, steps, channels] → [batch × channels, steps]
        rows = batch["past_values"].transpose(1, 2).flatten(0, 1)
        # a list of series is what it takes; its horizon may be longer than the windows'
        found = model(past_values=list(rows))["mean_predictions"][:, : labels.shape[1]]
        return found.unflatten(0, (len(labels), labels.shape[2])).transpose(1, 2)
    return model(past_values=batch["past_values"])["prediction_outputs"]


def _of_distribution(model: Any, network: Any, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The mean of what an encoder-decoder takes for likely; the future that it is given is all zeros."""
    past, single = batch["past_values"], network.config.input_size == 1
    told = network.config.num_time_features
    # zeros, so that not even by mistake the future is read; only its shape is
    future = past.new_zeros(labels.shape)
    inputs = {
        "past_values": past, "past_observed_mask": torch.ones_like(past), "future_values": future,
    }  # fmt: skip
    if single:
        # with one channel these families want no axis for it
        inputs = {name: value[..., 0] for name, value in inputs.items()}
    for name, steps in (("past_time_features", past.shape[1]), ("future_time_features", labels.shape[1])):
        # features of width 0 where times are not known: the argument itself is not optional
        inputs[name] = batch[name] if told else past.new_zeros(len(past), steps, 0)
    with _same_draws(network):
        out = model(**inputs)
    likely = network.output_distribution(out["params"], out["loc"], out["scale"], trailing_n=labels.shape[1])
    return likely.mean[..., None] if single else likely.mean


def bound_to_batches(network: Any) -> str | None:
    """Why a model's training depends on which windows share a micro-batch, so that a batch is not the same
    as an accumulation of smaller ones; None where it doesn't.
    """
    config = network.config.to_dict()
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        mend = " (--config_overrides norm_type=layernorm has none)" if "norm_type" in config else ""
        return f"it normalises over the windows of a micro-batch{mend}"
    if config["model_type"] == "autoformer":
        return "its delays are those of a micro-batch's windows together"
    if config.get("attention_type") == "prob":
        return "it draws keys to look at once a micro-batch (--config_overrides attention_type=full has all)"
    return None


@contextmanager
def _same_draws(network: Any) -> Iterator[None]:
    """Informer looks at keys that it draws anew in each call; where nothing is trained the draws are the
    same in every batch.
    """
    if network.training:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
