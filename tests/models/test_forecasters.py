"""Every family forecasts windows of a series in one shape, sees nothing of the future, and says the same in
any batch.
"""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from transformers import AutoConfig

from finetune.errors import InputError
from finetune.models.dlinear import DLinearConfig, DLinearForPrediction, moving_average
from finetune.models.forecasters import (
    AutoModelForForecast,
    bound_to_batches,
    check_sizes,
    forecast,
    resized,
    sizes,
)

SMALL = {
    "patchtst": {"d_model": 16, "num_hidden_layers": 1, "ffn_dim": 16},
    "patchtsmixer": {"d_model": 8, "num_layers": 1},
    "dlinear": {},
    "informer": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "autoformer": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "time_series_transformer": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "timesfm": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "head_dim": 8, "patch_length": 8,
    },
}  # fmt: skip
CONTEXT, HORIZON = 40, 12


def made(family: str, channels: int = 3, calendar: int = 4):
    config = AutoConfig.for_model(family)
    config = resized(config, SMALL[family])
    config = resized(config, sizes(config, channels, CONTEXT, HORIZON, calendar))
    check_sizes(config, channels, CONTEXT, HORIZON)
    torch.manual_seed(0)
    return AutoModelForForecast.from_config(config).eval()


def batch(rows: int = 5, channels: int = 3) -> tuple[dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {"past_values": drawn(rows, CONTEXT, channels), "past_time_features": drawn(rows, CONTEXT, 4)}
    return inputs | {"future_time_features": drawn(rows, HORIZON, 4)}, drawn(rows, HORIZON, channels)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_forecast_is_the_same_in_any_batch_and_sees_no_future(family, channels):
    network, (inputs, labels) = made(family, channels), batch(channels=channels)
    with torch.no_grad():
        whole = forecast(network, inputs, labels)
        one = forecast(network, {name: value[3:4] for name, value in inputs.items()}, labels[3:4])
        other = forecast(network, inputs, labels + 100)
    assert whole.shape == labels.shape and (whole == other).all()
    assert_near(one, whole[3:4])


@pytest.mark.parametrize("family", SMALL)
def test_every_step_of_the_context_may_count_and_gradients_flow(family):
    network, (inputs, labels) = made(family), batch()
    inputs["past_values"].requires_grad_()
    (forecast(network, inputs, labels) - labels).square().sum().backward()
    slopes = inputs["past_values"].grad.abs().sum(dim=(0, 2))
    assert (slopes[-HORIZON:] > 0).all()
    trained = [p for p in network.parameters() if p.grad is not None and p.grad.any()]
    assert len(trained) > len(list(network.parameters())) / 2


def test_patchtst_reads_its_patches_one_by_one():
    """As in its paper: a head on their mean could not tell what was when."""
    network, (inputs, labels) = made("patchtst"), batch()
    assert network.head.projection.in_features == network.model.patchifier.num_patches * 16
    turned = inputs | {"past_values": inputs["past_values"].flip(1)}
    with torch.no_grad():
        assert not torch.allclose(
            forecast(network, inputs, labels), forecast(network, turned, labels), atol=1e-3
        )


def test_a_decoder_that_would_read_the_future_is_refused():
    config = AutoConfig.for_model("informer")
    config.update(
        sizes(config, 3, CONTEXT, HORIZON, 0) | {"lags_sequence": [4], "context_length": CONTEXT - 4}
    )
    with pytest.raises(InputError, match="lags_sequence .* below the horizon"):
        check_sizes(config, 3, CONTEXT, HORIZON)
    with pytest.raises(InputError, match="--context_length 24 or more"):
        sizes(config, 3, HORIZON, HORIZON, 0)


def test_an_autoformer_whose_windows_would_mix_is_refused():
    config = resized(made("autoformer").config, {"encoder_attention_heads": 2})
    with pytest.raises(InputError, match="encoder_attention_heads=1,decoder_attention_heads=1"):
        check_sizes(config, 3, CONTEXT, HORIZON)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("patchtst", "norm_type=layernorm"), ("autoformer", "delays"), ("informer", "draws keys"),
    ("dlinear", None),
     ("timesfm", None)],
)  # fmt: skip
def test_what_binds_training_to_its_batches_is_said(family, reason):
    found = bound_to_batches(made(family))
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("channels", "context", "horizon", "said"),
    [(2, CONTEXT, HORIZON, "3 channels"), (3, 48, HORIZON, "--context_length 40"), (3, CONTEXT, 6,
    "--prediction_length 12")],
)  # fmt: skip
def test_a_model_for_other_windows_is_refused(channels, context, horizon, said):
    for family in ("patchtst", "informer", "dlinear"):
        with pytest.raises(InputError, match=said):
            check_sizes(made(family).config, channels, context, horizon)


def test_a_moving_average_by_hand():
    assert moving_average(torch.tensor([[[0.0, 3.0, 6.0, 0.0]]]), 3).tolist() == [[[1.0, 3.0, 3.0, 2.0]]]


def test_dlinear_is_trend_and_rest():
    """With the layers' weights set to pick one step, the forecast is that step's trend, or its rest."""
    network = DLinearForPrediction(DLinearConfig(4, 1, 1, kernel_size=3)).eval()
    values = torch.tensor([[[0.0], [3.0], [6.0], [0.0]]])
    with torch.no_grad():
        assert network(values).prediction_outputs.item() == pytest.approx(2.25)  # the mean, at first
        for layer, step in ((network.seasonal, 2), (network.trend, 1)):
            layer.weight.zero_()[0, step] = 1
    assert network(values).prediction_outputs.item() == 3 + 3  # 6 - 3 of the rest, and 3 of the trend


def test_dlinear_with_a_layer_for_each_channel_is_saved_and_loaded(tmp_path):
    network = DLinearForPrediction(DLinearConfig(8, 4, 2, individual=True)).eval()
    with torch.no_grad():
        network.trend.weight[1] *= 2
        values = torch.randn(3, 8, 2)
        wanted = network(values).prediction_outputs
        network.save_pretrained(tmp_path)
        found = AutoModelForForecast.from_pretrained(tmp_path)(values).prediction_outputs
    assert_near(found, wanted)
    assert not torch.allclose(wanted[..., 0] * 2, wanted[..., 1])
    with pytest.raises(ValueError, match="kernel_size 4"):
        DLinearForPrediction(DLinearConfig(kernel_size=4))
