"""Actions on adapters of pictures, sounds and series: models are asked on made-up inputs of their kind."""

import peft
import pytest
import torch
from bounds import assert_near
from test_inputs import alone, given, make_adapter, make_base

from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.loading import load_base, mount
from finetune.adapters.merge import MergeArguments
from finetune.artefacts.passport import PASSPORT
from finetune.errors import InputError

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
