"""Actions on adapters of pictures, sounds and series: models are asked on made-up inputs of their kind."""

import numpy as np
import peft
import pytest
import torch
from bounds import assert_near
from test_inputs import alone, given, make_adapter, make_base
from transformers import AutoConfig

from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.loading import load_base, mount
from finetune.adapters.merge import MergeArguments
from finetune.adapters.probe import logits_of
from finetune.artefacts.passport import PASSPORT, write_passport
from finetune.errors import InputError
from finetune.methods import NO_TOKENS, attach
from finetune.models.forecasters import NAMES, AutoModelForForecast, resized, sizes
from finetune.models.series_processor import SeriesProcessor

# The tiny PatchTST's logits are in millions: rounding alone is beyond the tool's limit there.
FAMILIES = [("vit", None), ("ast", None), ("wav2vec2", None), ("patchtst", 100.0)]


def lines_of(action: str, folders: list, base, output=None, limit=None) -> list[str]:
    given = [str(one) for one in folders]
    options = ActionArguments(action, given, output and str(output), str(base), limit=limit)
    return list(act(options, MergeArguments(head=0 if action == "merge" else None)))


@pytest.mark.parametrize(("family", "limit"), FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_of_files_and_series_are_checked_stamped_merged_and_taken_into_the_base(
    family, limit, tmp_path
):
    network, processor = make_base(family)
    for part in (network, processor):
        part.save_pretrained(tmp_path / "base")
    one, two = ("lora", 1), ("lora", 2)
    (tuned, own), _ = (make_adapter(tmp_path / str(seed), family, how, seed) for how, seed in (one, two))
    base = tmp_path / "base"
    assert "belongs on" in lines_of("check", [tmp_path / "1"], base)[0]
    made = lines_of("into_base", [tmp_path / "1"], base, tmp_path / "whole", limit)
    assert "of 12 predictions changed" in made[0]
    whole = type(network).from_pretrained(tmp_path / "whole").eval()
    asked = given(family, 1)
    assert_near(alone(whole, own, family, asked), alone(tuned, own, family, asked), 1e-4)
    made = lines_of("merge", [tmp_path / "1", tmp_path / "2"], base, tmp_path / "sum", limit)
    assert "sum of 2 adapters" in made[0]
    assert isinstance(mount(tmp_path / "sum", str(base))[1], peft.PeftModel)
    (tmp_path / "2" / PASSPORT).unlink()
    said = lines_of("stamp", [tmp_path / "2"], base)
    assert "against the bare base" in said[0] and (tmp_path / "2" / PASSPORT).is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_noise_tells_a_merge_that_went_wrong(tmp_path, monkeypatch):
    network, processor = make_base("vit")
    for part in (network, processor):
        part.save_pretrained(tmp_path / "base")
    make_adapter(tmp_path / "1", "vit", "lora", 1)

    def bare(tuned):
        whole = load_base(tmp_path / "1", str(tmp_path / "base"))[1]
        torch.nn.init.zeros_(whole.classifier.weight)
        return whole

    monkeypatch.setattr("finetune.adapters.export.merge_into_base", bare)
    with pytest.raises(InputError, match="merged model differs from the adapter"):
        lines_of("into_base", [tmp_path / "1"], tmp_path / "base", tmp_path / "whole")


def make_base_that_forecasts(family: str, folder):
    """A tiny model of any family that forecasts, for two channels, saved with a processor without a scale."""
    small = {"d_model": 16, "num_layers": 1, "encoder_layers": 1, "decoder_layers": 1, "num_hidden_layers": 1,
             "encoder_attention_heads": 1, "decoder_attention_heads": 1, "num_attention_heads": 2,
             "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "ffn_dim": 16, "hidden_size": 16,
             "intermediate_size": 16, "head_dim": 8, "patch_length": 4}  # fmt: skip
    made = AutoConfig.for_model(family)
    own = {name: value for name, value in small.items() if name in made.to_dict()}
    made = resized(made, own)
    made = resized(made, sizes(made, 2, 24, 4, 4 if "lags_sequence" in made.to_dict() else 0) | own)
    torch.manual_seed(0)
    network, processor = AutoModelForForecast.from_config(made).eval(), SeriesProcessor(context_length=24)
    for part in (network, processor):
        part.save_pretrained(folder)
    return network, processor


@pytest.mark.parametrize("family", ["dlinear", *NAMES])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adapters_that_forecast_are_checked_stamped_merged_and_taken_into_the_base(family, tmp_path):
    base = tmp_path / "base"
    make_base_that_forecasts(family, base)
    for seed in (1, 2):
        network, processor = make_base_that_forecasts(family, base)
        names = ["load", "heat"]
        processor.fit(np.full(2, 10.0 * seed), np.full(2, 1.0 + seed), names)
        linear = [name for name, one in network.named_modules() if isinstance(one, torch.nn.Linear)][:2]
        tuned = attach(network, "lora", {"target_modules": linear, "modules_to_save": []}, NO_TOKENS)
        torch.manual_seed(seed)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
        folder = tmp_path / str(seed)
        for part in (tuned, processor):
            part.save_pretrained(folder)
        write_passport(
            folder, tuned, processor, base=str(base), method="lora", method_kwargs=None, task="forecast",
            labels=None, data_fingerprint=None, metrics=None,
        )  # fmt: skip
    said = lines_of("check", [tmp_path / "1"], base)
    assert "belongs on" in said[0] and "forecast" in said[0]
    made = lines_of("into_base", [tmp_path / "1"], base, tmp_path / "whole")
    # TimesFM reads one channel at a time
    numbers = 12 * 4 * (1 if family == "timesfm" else 2)
    assert "number difference" in made[0] and f"0 of {numbers} predictions changed" in made[0]
    # the merged folder is a model like any other, with the scale of the adapter's training
    whole = AutoModelForForecast.from_pretrained(tmp_path / "whole").eval()
    alone = mount(tmp_path / "1", str(base))[1]
    assert_near(logits_of(whole, None)[0], logits_of(alone, None)[0], 1e-4)
    assert SeriesProcessor.from_pretrained(tmp_path / "whole").means == [10.0, 10.0]
    made = lines_of("merge", [tmp_path / "1", tmp_path / "2"], base, tmp_path / "sum")
    assert "sum of 2 adapters" in made[0]
    # plain PEFT: the base alone says that it forecasts
    (tmp_path / "2" / PASSPORT).unlink()
    said = lines_of("stamp", [tmp_path / "2"], base)
    found = float(said[0].partition("number difference ")[2].partition(",")[0])
    assert "against the bare base" in said[0] and found > 1e-6
