"""A series learns to fill its hidden patches: which are hidden is the window's own chance, what is learnt
from them is the same however windows are dealt out, and a forecast goes on from it.
"""

from __future__ import annotations

import json

import pytest
import torch
from bounds import assert_near
from series_gradients import hourly
from test_train import script

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.objectives.contrastive import ContrastiveArguments
from finetune.objectives.masked_series import apart_patches, hidden_patches
from finetune.objectives.options import ObjectiveArguments
from finetune.objectives.table import settle_objective

TINY = "context_length=24,patch_length=4,d_model=16,ffn_dim=16,num_hidden_layers=1,num_attention_heads=2"


def row_of():
    return settle_objective(ObjectiveArguments("masked_series"), ContrastiveArguments(), 0, "patchtst")


def test_as_many_patches_are_hidden_of_each_channel():
    found = hidden_patches([1, 2, 1], 3, 10, 0.4)
    assert found.shape == (3, 3, 10) and (found.sum(-1) == 4).all()
    assert (found[0] == found[2]).all() and not (found[0] == found[1]).all()
    assert (hidden_patches([1], 1, 2, 0.9).sum(-1) == 1).all()  # one is left to see


def test_costs_are_those_of_hidden_steps_and_no_others():
    """What is hidden changes no answer, and a window's cost is its own in any batch."""
    from transformers import AutoConfig

    own = {"context_length": 24, "patch_length": 4, "d_model": 8, "ffn_dim": 8, "num_hidden_layers": 1}
    row = row_of()
    torch.manual_seed(0)
    network = row.model.from_config(apart_patches(AutoConfig.for_model("patchtst"), own)).eval()
    values, chance = torch.randn(4, 24, 2), torch.tensor([5, 6, 7, 8])
    with torch.no_grad():
        whole = row.forward(network, {"past_values": values, "chance": chance}, torch.zeros(4))
        alone = row.forward(network, {"past_values": values[2:3], "chance": chance[2:3]}, torch.zeros(1))
    assert whole.shape == (4, 2)
    assert_near(alone, whole[2:3])
    hidden = hidden_patches([5], 2, 6, 0.4)[0]
    scaled = (values[0] - values[0].mean(0)) / values[0].std(0, unbiased=False)
    steps = hidden.repeat_interleave(4, dim=1).T
    assert_near(whole[0, 1], (scaled[:, :].square() * steps).sum() / steps.sum(), 1e-3)  # what saying 0 costs


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"patch_length": 8, "patch_stride": 4}, "patch_stride=8"),
        ({"num_input_channels": 3}, "one at a time"),
    ],
)
def test_patches_that_show_what_is_hidden_are_refused(own, said):
    from transformers import AutoConfig

    with pytest.raises(InputError, match=said):
        apart_patches(AutoConfig.for_model("patchtst"), {"context_length": 24} | own)


def test_a_forecast_goes_on_from_it(tmp_path):
    file, out = tmp_path / "load.csv", tmp_path / "before"
    hourly(300).to_csv(str(file))
    main = script("pretrain").main
    given = "--objective masked_series --from_config patchtst --bf16 false"
    given += f" --dataset_name {file} --output_dir {out} --num_train_epochs 3 --eval_strategy no"
    given += " --learning_rate 1e-2"
    main(*parse(main, [*given.split(), "--config_overrides", f"{TINY},norm_type=layernorm"]))
    found = json.loads((out / "metrics.json").read_text())
    assert found["loss"] == pytest.approx(found["hidden_mse"], rel=1e-5) and found["explained"] > 0.05
    main = script("train").main
    given = f"--task forecast --model_name_or_path {out} --method full --dataset_name {file}"
    given += " --bf16 false --max_steps 2 --context_length 24 --prediction_length 4 --eval_strategy no"
    given += " --config_overrides"
    main(*parse(main, [*given.split(), "num_input_channels=2,prediction_length=4,pooling_type=null",
                       "--output_dir", str(tmp_path / "after")]))  # fmt: skip
    assert json.loads((tmp_path / "after" / "metrics.json").read_text())["mse"] > 0
