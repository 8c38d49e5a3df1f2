"""Checkpoints of AdapterHub's library give its own logits here. The reference folders were made by it (see
reference/make.py); where its environment is at hand (ADAPTERHUB_PYTHON), they are made anew and compared."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import finetune.tuners  # noqa: F401
from finetune.adapters.adapterhub import convert
from finetune.errors import InputError

HERE = Path(__file__).parent / "reference"
IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 9, 11, 12, 13, 3]])
PAIRS = [
    (family, method)
    for family in ("bert", "roberta", "gpt2", "llama", "bart", "t5")
    for method in ("houlsby", "pfeiffer", "parallel", "lora", "ia3")
    if method != "parallel" or family in ("bert", "roberta")
]


def base(folder: Path) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    classes = config.model_type in ("bert", "roberta")
    writes = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    auto = AutoModelForSequenceClassification if classes else writes
    network = auto.from_config(config).eval()
    missing, unexpected = network.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
    own = ("classifier", "lm_head", "bert.pooler")
    assert not [key for key in missing if not key.startswith(own)], missing
    left = ("pooler", "prompt_tuning", "position_ids")
    assert not [key for key in unexpected if not any(part in key for part in left)], unexpected
    return network


@torch.no_grad()
def ours(source: Path, method: str, folder: Path) -> torch.Tensor:
    convert(source / method, folder, base="tiny")
    network = peft.PeftModel.from_pretrained(base(source), folder).eval()
    return asked(network)


def asked(network: torch.nn.Module) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :4]} if network.config.is_encoder_decoder else {}
    return network(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits


@pytest.mark.parametrize(("family", "method"), PAIRS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_converted_is_what_their_library_computes(family, method, tmp_path):
    theirs = load_file(HERE / family / method / "logits.safetensors")["logits"]
    found = ours(HERE / family, method, tmp_path)
    assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-5), float((found - theirs).abs().max())
    with torch.no_grad():
        plain = asked(base(HERE / family))
    assert not torch.allclose(plain, theirs, atol=1e-4), "the adapter does something"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_their_library_says_the_same_today(tmp_path):
    python = os.environ.get("ADAPTERHUB_PYTHON")
    if not python:
        pytest.skip("no environment with AdapterHub's library: set ADAPTERHUB_PYTHON to its python")
    subprocess.run([python, str(HERE / "make.py"), str(tmp_path / "made")], check=True, capture_output=True)
    for family, method in PAIRS:
        theirs = load_file(tmp_path / "made" / family / method / "logits.safetensors")["logits"]
        found = ours(tmp_path / "made" / family, method, tmp_path / f"{family}-{method}")
        assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-5), (family, method)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("phm_layer", True, "phm_layer=True"), ("inv_adapter", "nice", "inv_adapter='nice'"),
        ("ln_after", True, "ln_after=True"), ("use_gating", True, "use_gating=True"),
        ("architecture", "prefix_tuning", "prefix_tuning, which is not converted"),
        ("architecture", "prompt_tuning", "prompt_tuning, which is not converted"),
        ("cross_adapter", True, "cross_adapter=True"),
        ("reduction_factor", {"1": 2}, "one whole number"), ("mh_adapter", True, "none of houlsby"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused_by_its_name(tmp_path, option, value, message):
    shutil.copytree(HERE / "bert" / "pfeiffer", tmp_path / "it")
    said = json.loads((tmp_path / "it" / "adapter_config.json").read_text())
    said["config"][option] = value
    (tmp_path / "it" / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "it", tmp_path / "out", base="tiny")


def test_pickled_weights_and_other_folders_are_refused(tmp_path):
    shutil.copytree(HERE / "bert" / "pfeiffer", tmp_path / "it")
    (tmp_path / "it" / "adapter.safetensors").unlink()
    with pytest.raises(InputError, match="use_safetensors=True"):
        convert(tmp_path / "it", tmp_path / "out", base="tiny")
    with pytest.raises(InputError, match="no checkpoint of AdapterHub"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "adapter_fusion_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an AdapterFusion"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="before its norm"):
        convert(HERE / "gpt2" / "parallel", tmp_path / "out", base="tiny")
