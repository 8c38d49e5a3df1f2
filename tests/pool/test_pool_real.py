"""The packaged models: mixed batches equal PEFT alone, merged equals adapter, saved and loaded equals
itself."""

import peft
import pytest
import torch
from bounds import near
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.adapters import probe
from finetune.adapters.export import merge_into_base
from finetune.adapters.merge import MergeArguments, combine, save_merged
from finetune.adapters.weights import read_adapter
from finetune.methods import METHODS, attach
from finetune.models.load import ModelArguments, load_model
from finetune.pool.pool import AdapterPool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TEXTS = [
    "A warm and funny film.",
    "Two hours I will never get back, and the ending drags on and on and on.",
    "Fine.",
]
OPTIONS = {
    "lora": {"r": 8}, "rslora": {"r": 4}, "dora": {"r": 4}, "ia3": {},
    "bottleneck": {"reduction_factor": 16}, "bitfit": {},
    "linear_probe": {}, "prefix": {"num_virtual_tokens": 5}, "prompt": {"num_virtual_tokens": 4},
    "ptuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
}  # fmt: skip
MERGEABLE = ("lora", "rslora", "dora", "ia3", "bitfit")


def make(folder, network, method: str, task: str, seed: int) -> peft.PeftModel:
    """An adapter whose every weight was moved, saved; and the model that PEFT makes of it."""
    tuned = attach(network, method, OPTIONS[method], task)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "lora_A" not in name and "magnitude" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return tuned.eval()


@torch.inference_mode()
def alone(tuned, processor, text: str) -> torch.Tensor:
    return tuned(**processor(text, return_tensors="pt")).logits[0]


def test_every_method_and_task_is_accounted_for():
    assert set(OPTIONS) | {"full", "qlora", "qat_lora"} == set(METHODS)


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_minilm_answers_in_mixed_batches_as_alone_and_merges(tmp_path, task):
    pool, wanted = AdapterPool("minilm"), {}
    kind = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}[task]
    methods = [m for m in OPTIONS if task == "SEQ_CLS" or m not in ("prompt", "ptuning")]
    for seed, method in enumerate(methods):
        processor, network = load_model(ModelArguments("minilm"), kind, ["neg", "pos"])
        tuned = make(tmp_path / method, network, method, task, seed)
        pool.add(method, tmp_path / method)
        wanted[method] = [alone(tuned, processor, text) for text in TEXTS]
        if method in MERGEABLE:
            before = probe.logits_of(tuned, processor)
            assert (
                probe.compare_models(before, probe.logits_of(merge_into_base(tuned), processor)).difference
                < 1e-4
            ), method
    texts, names = [text for _ in methods for text in TEXTS], [method for method in methods for _ in TEXTS]
    every = [logits for method in methods for logits in wanted[method]]
    if task == "SEQ_CLS":
        assert (
            max(float((a - b).abs().max()) for a, b in zip(pool.logits(texts, names), every, strict=True))
            < 1e-5
        )
        return
    for words, name, text, logits in zip(pool.tag(texts, names), names, texts, every, strict=True):
        places = pool.processor(text.split(), is_split_into_words=True).word_ids()
        for index, word in enumerate(words):
            likeliest = float(logits[places.index(index)].softmax(-1).max())
            assert near(word["probability"], likeliest), name


def test_smollm2_writes_in_mixed_batches_as_alone_and_merges(tmp_path):
    pool, wanted = AdapterPool("smollm2"), {}
    methods = [m for m in OPTIONS if m not in ("bitfit", "linear_probe")]
    for seed, method in enumerate(methods):
        processor, network = load_model(ModelArguments("smollm2"), AutoModelForCausalLM)
        tuned = make(tmp_path / method, network, method, "CAUSAL_LM", seed)
        pool.add(method, tmp_path / method)
        inputs = processor(TEXTS[0], return_tensors="pt")
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": processor.pad_token_id}
        out = tuned.generate(**inputs, **options)[0]
        new = (
            out[inputs["input_ids"].shape[1] :] if len(out) > 12 else out
        )  # made-up tokens: generate gives back the new ones alone
        wanted[method] = processor.decode(new, skip_special_tokens=True)
        if method in MERGEABLE:
            before = probe.logits_of(tuned, processor)
            assert (
                probe.compare_models(before, probe.logits_of(merge_into_base(tuned), processor)).difference
                < 1e-3
            ), method
    found = pool.generate([TEXTS[0]] * len(methods), methods, max_new_tokens=12)
    assert dict(zip(methods, found, strict=True)) == wanted
    assert pool.generate([TEXTS[0]], ["lora"], max_new_tokens=12) == [wanted["lora"]]


@pytest.mark.parametrize(
    ("base", "kind", "task"),
    [
        ("minilm", AutoModelForSequenceClassification, "SEQ_CLS"),
        ("smollm2", AutoModelForCausalLM, "CAUSAL_LM"),
    ],
)
def test_a_sum_of_real_adapters_is_the_sum_and_one_is_itself(tmp_path, base, kind, task):
    labels = ["neg", "pos"] if task == "SEQ_CLS" else None
    processor, network = load_model(ModelArguments(base), kind, labels)
    before = {}
    for seed, method in enumerate(("lora", "rslora")):
        _, fresh = load_model(ModelArguments(base), kind, labels)
        before[method] = probe.logits_of(make(tmp_path / method, fresh, method, task, seed), processor)
    adapters = [read_adapter(tmp_path / method) for method in before]
    one = save_merged(combine(adapters[:1], MergeArguments(weights=[1.0])), tmp_path / "one")
    again = peft.PeftModel.from_pretrained(network, str(one)).eval()
    assert probe.compare_models(before["lora"], probe.logits_of(again, processor)).difference < 1e-4
    options = MergeArguments(weights=[0.7, -0.4], head=0)
    both = save_merged(combine(adapters, options), tmp_path / "both")
    _, wanted = load_model(ModelArguments(base), kind, labels)
    probe.asked_for(wanted.double(), adapters, options)
    _, fresh = load_model(ModelArguments(base), kind, labels)
    found = probe.compare_models(
        probe.logits_of(wanted.float(), processor),
        probe.logits_of(peft.PeftModel.from_pretrained(fresh, str(both)).eval(), processor),
    )
    assert found.difference < 1e-3 and found.changed == 0
