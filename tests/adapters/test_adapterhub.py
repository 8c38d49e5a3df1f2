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
from conftest import make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import finetune.tuners  # noqa: F401
from finetune.adapters import Writer, load
from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.adapterhub import convert
from finetune.adapters.adapterhub_fusion import convert_fusion
from finetune.adapters.fusion import mount_fusion
from finetune.adapters.merge import MergeArguments
from finetune.errors import InputError

HERE = Path(__file__).parent / "reference"
IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 9, 11, 12, 13, 3]])
PAIRS = [
    (family, method)
    for family in ("bert", "roberta", "gpt2", "llama", "bart", "t5")
    for method in ("houlsby", "pfeiffer", "parallel", "lora", "ia3")
    if method != "parallel" or family in ("bert", "roberta")
] + [(family, f"{shape}_cross") for family in ("bart", "t5") for shape in ("houlsby", "pfeiffer")]
PAIRS.append(("bert", "qa"))
FUSIONS = [
    (family, shape)
    for family in ("bert", "roberta", "gpt2", "bart", "t5")
    for shape in ("houlsby", "pfeiffer")
]


def base(folder: Path, method: str = "") -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder, num_labels=2 if method == "qa" else 3)
    classes = config.model_type in ("bert", "roberta")
    writes = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    auto = AutoModelForSequenceClassification if classes else writes
    auto = AutoModelForQuestionAnswering if method == "qa" else auto
    network = auto.from_config(config).eval()
    missing, unexpected = network.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
    own = ("classifier", "lm_head", "bert.pooler", "qa_outputs")
    assert not [key for key in missing if not key.startswith(own)], missing
    left = ("pooler", "prompt_tuning", "position_ids")
    assert not [key for key in unexpected if not any(part in key for part in left)], unexpected
    return network


@torch.no_grad()
def ours(source: Path, method: str, folder: Path) -> torch.Tensor:
    convert(source / method, folder, base="tiny")
    network = peft.PeftModel.from_pretrained(base(source, method), folder).eval()
    return asked(network)


def asked(network: torch.nn.Module) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :4]} if network.config.is_encoder_decoder else {}
    found = network(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more)
    # Of questions, where an answer starts and ends.
    return torch.stack((found.start_logits, found.end_logits), -1) if "end_logits" in found else found.logits


@pytest.mark.parametrize(("family", "method"), PAIRS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_converted_is_what_their_library_computes(family, method, tmp_path):
    theirs = load_file(HERE / family / method / "logits.safetensors")["logits"]
    found = ours(HERE / family, method, tmp_path)
    assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-5), float((found - theirs).abs().max())
    with torch.no_grad():
        plain = asked(base(HERE / family, method))
    assert not torch.allclose(plain, theirs, atol=1e-4), "the adapter does something"


@torch.no_grad()
def ours_fused(source: Path, shape: str, folder: Path) -> torch.Tensor:
    convert_fusion([source / f"{shape}_fused"], folder, base="tiny")
    return asked(mount_fusion(base(source), folder, None))


@pytest.mark.parametrize(("family", "shape"), FUSIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fusion_is_what_their_library_computes(family, shape, tmp_path):
    theirs = load_file(HERE / family / f"{shape}_fused" / "logits.safetensors")["logits"]
    found = ours_fused(HERE / family, shape, tmp_path)
    assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-5), float((found - theirs).abs().max())
    one = load_file(HERE / family / shape / "logits.safetensors")["logits"]
    assert not torch.allclose(one, theirs, atol=1e-3), "fusion does something"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_imported_fusion_is_loaded_by_its_folder(tmp_path):
    base(HERE / "roberta").save_pretrained(tmp_path / "base")
    make_tokenizer("roberta").save_pretrained(tmp_path / "base")
    action = ActionArguments(
        "import", [str(HERE / "roberta" / name) for name in ("houlsby_2", "houlsby_fused", "houlsby")],
        str(tmp_path / "out"), base=str(tmp_path / "base"),
    )  # fmt: skip
    lines = list(act(action, MergeArguments()))
    assert "AdapterFusion of 2 adapters" in lines[0] and lines[-1] == str(tmp_path / "out")
    classifier = load(tmp_path / "out")
    assert classifier.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    with torch.no_grad():
        wanted = mount_fusion(base(HERE / "roberta"), tmp_path / "out", None)(
            **make_tokenizer("roberta")("good film", return_tensors="pt")
        ).logits
    assert torch.allclose(classifier.logits(["good film"]), wanted, rtol=1e-5, atol=1e-5)
    # A decoder's fusion writes, and an encoder-decoder's.
    for family in ("gpt2", "t5"):
        out, of = tmp_path / f"{family}-writer", str(tmp_path / family)
        convert_fusion([HERE / family / "pfeiffer_fused"], out, base=of)
        base(HERE / family).save_pretrained(of)
        make_tokenizer(family).save_pretrained(of)
        writer = load(out)
        assert isinstance(writer, Writer)
        assert isinstance(writer("good film", max_new_tokens=4), str)


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
    for family, shape in FUSIONS:
        theirs = load_file(tmp_path / "made" / family / f"{shape}_fused" / "logits.safetensors")["logits"]
        found = ours_fused(tmp_path / "made" / family, shape, tmp_path / f"{family}-{shape}-fused")
        assert torch.allclose(found, theirs, rtol=1e-5, atol=1e-5), (family, shape)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("phm_layer", True, "phm_layer=True"), ("inv_adapter", "nice", "inv_adapter='nice'"),
        ("ln_after", True, "ln_after=True"), ("use_gating", True, "use_gating=True"),
        ("architecture", "prefix_tuning", "prefix_tuning, which is not converted"),
        ("architecture", "prompt_tuning", "prompt_tuning, whose made-up tokens enter behind"),
        ("cross_adapter", True, "cross_adapter=True"),
        ("non_linearity", "maxout", "the non_linearity 'maxout'"),
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
    with pytest.raises(InputError, match="before its norm"):
        convert(HERE / "gpt2" / "parallel", tmp_path / "out", base="tiny")


def copied(tmp_path: Path, *names: str, family: str = "bert") -> list[Path]:
    for name in names:
        shutil.copytree(HERE / family / name, tmp_path / "it" / name)
    return [tmp_path / "it" / name for name in names]


def reworded(file: Path, **changes: object) -> None:
    """Other words in a configuration of theirs; None takes one away."""
    said = json.loads(file.read_text())
    for key, value in changes.items():
        where = said if key in said else said["config"]
        where[key] = value
        if value is None:
            del where[key]
    file.write_text(json.dumps(said))


def reweighted(file: Path, change) -> None:
    save_file({name: change(name, tensor).clone() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("head_config.json", {"head_type": "similarity"}, "a head 'similarity' with 2"),
        ("head_config.json", {"head_type": "multilabel_classification"}, "a head 'multilabel_"),
        ("head_config.json", {"num_labels": 1}, "for a number"),
        ("head_config.json", {"layers": float("nan")}, "does not say layers as their library"),
        ("head_config.json", {"layers": True}, "does not say layers as their library"),
        ("head_config.json", {"label2id": {"a": 0, "b": 2, "c": 3}}, "a name for each number from 0"),
        ("head_config.json", {"num_labels": 4}, r"holds \(3, 16\) for 'classifier.weight'; wanted \(4, 16\)"),
        ("head_config.json", {"activation_function": "relu"}, "with 2 layers for 'bert', which is not"),
        ("adapter_config.json", {"hidden_size": 32}, r"wanted \(2, 32\)"),
        ("adapter_config.json", {"hidden_size": None}, "does not say hidden_size"),
        ("adapter_config.json", {"reduction_factor": 4}, r"wanted \(4, 16\)"),
        ("adapter_config.json", {"name": "other"}, "also holds"),
        ("adapter_config.json", {"model_type": ["bert"]}, "does not say model_type"),
        ("adapter_config.json", {"mh_adapter": "no"}, "does not say mh_adapter"),
        ("head_config.json", {"num_labels": "3"}, "does not say num_labels"),
        ("head_config.json", {"config": []}, "does not say config"),
        ("adapter_config.json", {"non_linearity": None}, "does not say non_linearity"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(tmp_path, file, changes, message):
    (it,) = copied(tmp_path, "pfeiffer")
    reworded(it / file, **changes)
    with pytest.raises(InputError, match=message):
        convert(it, tmp_path / "out", base="tiny")
    assert not (tmp_path / "out").exists()


def test_broken_files_and_missing_words_are_named(tmp_path):
    it, lora = copied(tmp_path, "houlsby", "lora")
    with pytest.raises(InputError, match="set --base"):
        convert(it, tmp_path / "out")
    reworded(it / "head_config.json", label2id=None)
    assert "LABEL_0, LABEL_1, LABEL_2" in convert(it, tmp_path / "unnamed", base="tiny")[1]
    for name in ("model_head.safetensors", "adapter.safetensors"):
        whole = (it / name).read_bytes()
        (it / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=f"Cannot read .*{name}"):
            convert(it, tmp_path / "out", base="tiny")
        (it / name).write_bytes(whole)
    reweighted(it / "model_head.safetensors", lambda name, t: t * float("nan"))
    with pytest.raises(InputError, match="no finite real numbers"):
        convert(it, tmp_path / "out", base="tiny")
    (it / "model_head.safetensors").unlink()
    with pytest.raises(InputError, match="There is no .*model_head.safetensors; pickled"):
        convert(it, tmp_path / "out", base="tiny")
    reweighted(lora / "adapter.safetensors", lambda name, t: t[:, :1] if name.endswith("lora_B") else t)
    with pytest.raises(InputError, match="for .*; wanted rank 8"):
        convert(lora, tmp_path / "out", base="tiny")


FUSED = ("pfeiffer_fused", "pfeiffer", "pfeiffer_2")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", True, "AdapterFusion with temperature=True"),
        ("query_before_ln", True, "AdapterFusion with query_before_ln=True"),
        ("residual_before", True, "AdapterFusion with residual_before=True"),
        ("adapter_names", ["pfeiffer"], "fuses 1 adapters; wanted two"),
        ("adapter_names", ["pfeiffer", "houlsby"], "There is no adapter in .*houlsby"),
        ("adapter_names", None, "does not say adapter_names"), ("name", "other", "holds nothing for"),
        ("hidden_size", 8, r"wanted \(2, 8\)|wanted \(3, 8\)|wanted \(8, 8\)"),
    ],
)  # fmt: skip
def test_a_fusion_that_cannot_be_said_here_is_named(tmp_path, option, value, message):
    fused, *_ = copied(tmp_path, *FUSED)
    reworded(fused / "adapter_fusion_config.json", **{option: value})
    with pytest.raises(InputError, match=message):
        convert_fusion([fused], tmp_path / "out", base="tiny")


def test_a_fusion_lacks_none_of_its_parts(tmp_path):
    fused, first, second = copied(tmp_path, *FUSED)
    with pytest.raises(InputError, match="set --base"):
        convert_fusion([fused], tmp_path / "out")
    with pytest.raises(InputError, match="the folders given hold pfeiffer$"):
        convert_fusion([first, fused], tmp_path / "out", base="tiny")
    again = shutil.copytree(first, tmp_path / "again")
    with pytest.raises(InputError, match="both hold an adapter named 'pfeiffer'"):
        convert_fusion([first, fused, again], tmp_path / "out", base="tiny")
    reweighted(fused / "model_adapter_fusion.safetensors", lambda name, t: t[:3] if "query" in name else t)
    with pytest.raises(InputError, match=r"holds \(3, 16\) for .*query.*; wanted \(16, 16\)"):
        convert_fusion([fused], tmp_path / "out", base="tiny")
    (fused / "model_adapter_fusion.safetensors").write_bytes(b"12")
    with pytest.raises(InputError, match="Cannot read .*model_adapter_fusion"):
        convert_fusion([fused], tmp_path / "out", base="tiny")
    shutil.copytree(HERE / "bert" / "houlsby", second, dirs_exist_ok=True)
    with pytest.raises(InputError, match="the folders given hold pfeiffer, houlsby"):
        convert_fusion([fused], tmp_path / "out", base="tiny")
    for file in ("model_head.safetensors", "head_config.json"):
        (fused / file).unlink()
    with pytest.raises(InputError, match="with_head=True"):
        convert_fusion([fused, first, shutil.copytree(HERE / "bert" / "pfeiffer_2", tmp_path / "2")],
                       tmp_path / "out", base="tiny")  # fmt: skip


def test_a_fusion_is_refused_for_the_reason_that_it_has(tmp_path):
    fused, *_ = copied(tmp_path, *FUSED)
    for file in ("model_head.safetensors", "head_config.json"):
        shutil.copy2(HERE / "bert" / "qa" / file, fused / file)
    with pytest.raises(InputError, match="head for questions"):
        convert_fusion([fused], tmp_path / "out", base="tiny")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_head_over_the_vocabulary_is_kept_unless_it_is_the_bases(family, tmp_path):
    (it,) = copied(tmp_path, "lora", family=family)
    # An untied base: there the head is trained beside the adapter.
    network = base(HERE / family)
    network.config.tie_word_embeddings = False
    network.lm_head.weight = torch.nn.Parameter(load_file(it / "model_head.safetensors")["lm_head.weight"])
    network.save_pretrained(tmp_path / "base")
    said = convert(it, tmp_path / "same", base=str(tmp_path / "base"))
    assert said[1] == f"its lm_head is that of '{tmp_path / 'base'}'"
    assert not [name for name in load_file(tmp_path / "same" / "adapter_model.safetensors") if "head" in name]
    # Where the base isn't at hand nobody knows, and nothing is lost.
    assert "kept: 'tiny' is not at hand" in convert(it, tmp_path / "unknown", base="tiny")[1]
    reweighted(it / "model_head.safetensors", lambda name, t: t + 1 if name == "lm_head.weight" else t)
    assert "has another" in convert(it, tmp_path / "other", base=str(tmp_path / "base"))[1]
    trained = peft.PeftModel.from_pretrained(network, tmp_path / "other").eval()
    assert torch.equal(
        trained.get_submodule("base_model.model.lm_head.modules_to_save.default").weight,
        load_file(it / "model_head.safetensors")["lm_head.weight"],
    )
    reweighted(it / "model_head.safetensors", lambda name, t: t + 1 if name == "final_logits_bias" else t)
    if family == "bart":
        for name in ("tiny", str(tmp_path / "base")):
            with pytest.raises(InputError, match="'final_logits_bias' that differs .* no place for it"):
                convert(it, tmp_path / "shifted", base=name)
