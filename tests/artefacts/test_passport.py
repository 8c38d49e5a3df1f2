"""An adapter goes on what it belongs to and on nothing else."""

import json
from pathlib import Path

import peft
import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.artefacts.passport import (
    PASSPORT,
    WEIGHTS,
    check_passport,
    hash_processor,
    hash_weights,
    read_passport,
    write_passport,
)
from finetune.errors import InputError

CONFIGS = {
    "lora": (peft.LoraConfig, {"target_modules": ["query", "value"], "bias": "all"}),
    "ia3": (
        peft.IA3Config,
        {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
    "prompt": (peft.PromptTuningConfig, {"num_virtual_tokens": 2}),
}


def classifier(seed: int = 0, **config):
    return make_model(
        "bert", AutoModelForSequenceClassification, seed, id2label={0: "neg", 1: "pos"}, **config
    )


def save_adapter(folder: Path, method: str = "lora", full: bool = False) -> Path:
    kind, options = CONFIGS[method]
    network = peft.get_peft_model(classifier(), kind(task_type="SEQ_CLS", **options))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    network.save_pretrained(folder)
    write_passport(
        folder, network, make_tokenizer("bert"), base="tiny", method=method, method_kwargs=None,
        task="classification",
        labels=["neg", "pos"], data_fingerprint="d", metrics={"accuracy": 1.0}, full=full,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("method", CONFIGS)
def test_the_own_base_is_taken(tmp_path, method):
    folder = save_adapter(tmp_path, method)
    check_passport(folder, classifier(), make_tokenizer("bert"), full=False)
    check_passport(folder, peft.PeftModel.from_pretrained(classifier(), folder), make_tokenizer("bert"))
    assert read_passport(folder)["metrics"] == {"accuracy": 1.0}


def test_another_base_of_the_same_shape_is_refused_by_name(tmp_path):
    folder = save_adapter(tmp_path)
    with pytest.raises(
        InputError, match=r"other base weights \(\d+ of \d+ tensors differ.*trained on 'tiny'.*belongs to$"
    ):
        check_passport(folder, classifier(seed=1), make_tokenizer("bert"))
    with pytest.raises(InputError, match="--allow_mismatch insists"):  # where there is such an option
        check_passport(folder, classifier(seed=1), make_tokenizer("bert"), allow_mismatch=False)
    other = make_model("gpt2", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
    with pytest.raises(InputError, match=r"another architecture .*another base"):
        check_passport(folder, other, make_tokenizer("bert"))


def test_weights_equal_and_another_number_of_heads(tmp_path):
    with pytest.raises(InputError, match="num_attention_heads 2 in training, 4 here"):
        check_passport(save_adapter(tmp_path), classifier(num_attention_heads=4), make_tokenizer("bert"))


def test_another_tokenizer_and_another_chat_template_are_refused(tmp_path):
    folder, other = save_adapter(tmp_path), make_tokenizer("bert")
    other.chat_template = "{{ messages }}"
    with pytest.raises(InputError, match="another chat template"):
        check_passport(folder, classifier(), other)
    other.add_tokens(["film2"])
    with pytest.raises(InputError, match="another tokenizer; another chat template"):
        check_passport(folder, classifier(), other)


def test_labels_in_another_order_are_refused(tmp_path):
    folder = save_adapter(tmp_path)
    turned = make_model("bert", AutoModelForSequenceClassification, id2label={0: "pos", 1: "neg"})
    with pytest.raises(InputError, match=r"other labels \(neg, pos in training, pos, neg here\)"):
        check_passport(folder, turned, make_tokenizer("bert"))


@pytest.mark.parametrize("passport", [True, False])
def test_a_missing_head_is_refused(tmp_path, passport):
    folder = save_adapter(tmp_path)
    if not passport:
        (folder / PASSPORT).unlink()
    weights = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"its head .*is missing"):
        check_passport(folder, classifier(), make_tokenizer("bert"))


def test_insisting_says_so_in_the_log(tmp_path, caplog):
    check_passport(save_adapter(tmp_path), classifier(seed=1), make_tokenizer("bert"), allow_mismatch=True)
    assert "other base weights" in caplog.text and "Loaded all the same" in caplog.text


def test_plain_peft_folders_load_and_say_so(tmp_path, caplog):
    folder = save_adapter(tmp_path)
    peft.PeftModel.from_pretrained(classifier(), folder)  # the passport is no hindrance to PEFT itself
    (folder / PASSPORT).unlink()
    check_passport(folder, classifier(), make_tokenizer("bert"))
    assert "has no passport.json" in caplog.text


def test_one_changed_weight_is_seen_by_the_full_check_only(tmp_path):
    folder, other = save_adapter(tmp_path, full=True), classifier()
    with torch.no_grad():
        other.bert.encoder.layer[0].intermediate.dense.weight[3, 5] += 0.5
    check_passport(folder, other, make_tokenizer("bert"))
    with pytest.raises(InputError, match=r"1 of .* tensors differ"):
        check_passport(folder, other, make_tokenizer("bert"), full=True)


def test_hashes_are_the_same_for_any_task_dtype_and_added_pad_row():
    hashes, other = hash_weights(classifier()), make_model("bert", AutoModelForTokenClassification)
    other.bert.load_state_dict(
        classifier().bert.state_dict(), strict=False
    )  # the one has a pooler, the other none
    assert hashes.items() > hash_weights(other).items()
    assert hash_weights(classifier().bfloat16()) == hashes
    wider = classifier()
    wider.resize_token_embeddings(wider.config.vocab_size + 1, mean_resizing=False)
    assert hash_weights(wider) == hashes
    assert hash_weights(classifier(seed=1)).keys() == hashes.keys()


def test_a_pooler_that_is_made_up_at_each_loading_is_noticed(tmp_path):
    folder, other = save_adapter(tmp_path), classifier()
    torch.nn.init.normal_(other.bert.pooler.dense.weight)
    with pytest.raises(InputError, match=r"1 of .* tensors differ, as pooler\.dense\.weight"):
        check_passport(folder, other, make_tokenizer("bert"))


def test_the_tokenizer_hash_survives_use_and_saving(tmp_path):
    tokenizer = make_tokenizer("bert")
    before = hash_processor(tokenizer)
    tokenizer(["the film"], truncation=True, max_length=2, padding=True)
    assert hash_processor(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert hash_processor(type(tokenizer).from_pretrained(tmp_path)) == before


def test_a_fully_tuned_model_is_checked_by_its_tokenizer_and_labels(tmp_path):
    passport = write_passport(
        tmp_path, make_model("llama", AutoModelForCausalLM), make_tokenizer("llama"), base="tiny",
        method="full",
        method_kwargs={}, task="sft", labels=None, data_fingerprint=None, metrics=None,
    )  # fmt: skip
    assert passport["weights"] is None and passport["heads"] == []
    assert json.loads((tmp_path / PASSPORT).read_text()) == passport


def edit(folder: Path, **entries) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | entries))


def test_folders_that_could_run_code_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_passport(tmp_path / "none", classifier(), None)
    folder = save_adapter(tmp_path)
    edit(folder, auto_mapping={"base_model_class": "X", "parent_library": "evil.module"})
    with pytest.raises(InputError, match=r"auto_mapping to 'evil.module'"):
        check_passport(folder, classifier(), None)
    edit(folder, auto_mapping=None, megatron_config={"a": 1}, megatron_core="evil")
    with pytest.raises(InputError, match="megatron_config"):
        check_passport(folder, classifier(), None)
    edit(folder, megatron_config=None)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled weights"):
        check_passport(folder, classifier(), None)


def test_damaged_files_are_named(tmp_path):
    folder = save_adapter(tmp_path)
    (folder / PASSPORT).write_text("{")
    with pytest.raises(InputError, match=r"Cannot read .*passport\.json"):
        check_passport(folder, classifier(), None)
    (folder / PASSPORT).unlink()
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match=r"Cannot read .*safetensors"):
        check_passport(folder, classifier(), None)
