"""Adapters mixed in one batch answer as they do alone, whoever joins, leaves or is replaced meanwhile."""

import json
import threading
from itertools import product
from pathlib import Path

import peft
import pytest
import torch
from bounds import near
from conftest import make_model, make_tokenizer
from covering import covering
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.artefacts.passport import write_passport
from finetune.errors import InputError
from finetune.methods import attach
from finetune.pool.decoding import Row
from finetune.pool.pool import AdapterPool
from finetune.pool.sampling import Sampling
from finetune.tuners import BottleneckConfig

TEXTS = ["the film was great", "a dull story", "i loved the very bright actor in it and the film", "awful"]
KINDS = {
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "CAUSAL_LM": AutoModelForCausalLM,
}
METHODS = {
    "lora": {"r": 3}, "rslora": {"r": 5}, "dora": {"r": 2}, "ia3": {}, "houlsby": {"reduction_factor": 4},
    "pfeiffer": {"shape": "pfeiffer", "reduction_factor": 2}, "parallel": {"shape": "parallel",
    "reduction_factor": 4},
    "bitfit": {}, "linear_probe": {}, "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 2},
    "ptuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
}  # fmt: skip
LABELS = ["neg", "pos", "so"]


def make(folder: Path, family: str, task: str, method: str, seed: int, labels: int = 2) -> peft.PeftModel:
    """An adapter with random weights in a folder, and the model that PEFT makes of it."""
    names = {"id2label": dict(enumerate(LABELS[:labels]))} if task in ("SEQ_CLS", "TOKEN_CLS") else {}
    base = make_model(family, KINDS[task], **names)
    if task != "SEQ_2_SEQ_LM":
        base.base_model.load_state_dict(make_model(family, AutoModel).state_dict(), strict=False)
    name = "bottleneck" if "reduction_factor" in METHODS[method] else method
    network = attach(base, name, METHODS[method], task)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if parameter.requires_grad and "magnitude" not in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    network.save_pretrained(folder)
    write_passport(
        folder, network, make_tokenizer(family), base="tiny", method=method, method_kwargs=None, task=task,
        labels=LABELS[:labels] if names else None, data_fingerprint=None, metrics=None,
    )  # fmt: skip
    return network.eval()


def pool_of(family: str, writes: bool = False, **options) -> AdapterPool:
    base = make_model(family, AutoModel)
    if writes:
        whole = make_model(family, AutoModelForCausalLM)
        whole.base_model.load_state_dict(base.state_dict())
        base = whole
    return AdapterPool(base, make_tokenizer(family), **options)


def tuned_layers(network: nn.Module) -> list[str]:
    """Names of the layers that a method changed, as PEFT finds them."""
    return [name for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]


@torch.no_grad()
def alone(network, family: str, text: str) -> torch.Tensor:
    return network(**make_tokenizer(family)(text, return_tensors="pt", return_token_type_ids=False)).logits[0]


@pytest.mark.parametrize(
    ("family", "task"), covering(product(["bert", "llama", "gpt2", "distilbert"], ["SEQ_CLS", "TOKEN_CLS"]))
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_a_mixed_batch_equals_one_by_one(tmp_path, family, task):
    every = [
        "lora",
        "rslora",
        "dora",
        "ia3",
        "houlsby",
        "pfeiffer",
        "bitfit",
        "linear_probe",
        "prefix",
        "prompt",
        "ptuning",
    ]
    never = {("distilbert", "ia3"), ("llama", "bitfit"), ("distilbert", "prefix")}
    methods = [
        m for m in every if (family, m) not in never and (task == "SEQ_CLS" or m not in ("prompt", "ptuning"))
    ]
    pool, networks = pool_of(family), {}
    for seed, method in enumerate(methods):
        networks[method] = make(tmp_path / method, family, task, method, seed, labels=2 + seed % 2)
        pool.add(method, tmp_path / method)
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(methods) * 2)]
    if task == "SEQ_CLS":
        for found, method, text in zip(pool.logits(texts, methods * 2), methods * 2, texts, strict=True):
            assert near(found, alone(networks[method], family, text)), method
    else:
        for found, method, text in zip(pool.tag(texts, methods * 2), methods * 2, texts, strict=True):
            chances = alone(networks[method], family, text).softmax(-1)[
                1 if family in ("bert", "distilbert") else 0 :
            ]
            assert [a["word"] for a in found] == text.split()
            for answer, row in zip(found, chances, strict=False):
                assert answer["label"] == LABELS[int(row.argmax())], method
                assert near(answer["probability"], float(row.max()))


def test_a_pooler_that_came_with_an_adapter_is_its_own(tmp_path):
    pool, networks = pool_of("bert"), {}
    for seed, name in enumerate(("own", "plain")):
        base = make_model("bert", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
        base.base_model.load_state_dict(make_model("bert", AutoModel).state_dict())
        options = {"modules_to_save": ["classifier", "pooler"]} if name == "own" else {}
        networks[name] = attach(base, "lora", options, "SEQ_CLS")
        torch.manual_seed(seed)
        for parameter in networks[name].parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        networks[name].eval().save_pretrained(tmp_path / name)
        pool.add(name, tmp_path / name)
    names = ["own", "plain", "plain", "own"]
    for found, name, text in zip(pool.logits(TEXTS, names), names, TEXTS, strict=True):
        assert near(found, alone(networks[name], "bert", text)), name


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_parallel_bottlenecks_mix(tmp_path, family):
    networks = {
        name: make(tmp_path / name, family, "SEQ_CLS", "parallel", seed) for seed, name in enumerate("ab")
    }
    pool = pool_of(family)
    for name in networks:
        pool.add(name, tmp_path / name)
    for found, name, text in zip(pool.logits(TEXTS, list("abab")), "abab", TEXTS, strict=True):
        assert near(found, alone(networks[name], family, text))


@torch.no_grad()
def greedy(network, family: str, text: str, most: int) -> list[int]:
    ids = make_tokenizer(family)(text)["input_ids"]
    new: list[int] = []
    while len(new) < most and (not new or new[-1] != 6):
        whole = torch.tensor([ids + new])
        new.append(
            int(network(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -1].argmax())
        )
    return [token for token in new if token != 6]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_texts_are_written_as_alone_whoever_joins_and_leaves(tmp_path, family):
    pool = pool_of(family, writes=True)
    methods = ["lora", "ia3", "houlsby", "dora", "prefix", "prompt", "ptuning", None]
    networks = {None: pool.network}
    for seed, method in enumerate(methods[:-1]):
        networks[method] = make(tmp_path / method, family, "CAUSAL_LM", method, seed)
        networks[method].get_base_model().get_output_embeddings().load_state_dict(
            pool.network.get_output_embeddings().state_dict()
        )
        pool.add(method, tmp_path / method)
    jobs = [(TEXTS[i % 4], methods[i % 8], 3 + 2 * i % 9) for i in range(10)]
    wanted = [greedy(networks[name], family, text, most) for text, name, most in jobs]
    rows = [pool.rows([text], [name], Sampling(max_new_tokens=most))[0] for text, name, most in jobs]
    writing = pool.writing()
    writing.join(rows[:3])
    for late in rows[3:]:
        if writing.rows:
            writing.step()
        writing.join([late])
    while writing.rows:
        writing.step()
    assert [row.ids for row in rows] == wanted
    pieces = [piece for _, piece in pool.stream([TEXTS[0]], ["lora"], max_new_tokens=5)]
    assert ["".join(pieces)] == pool.generate([TEXTS[0]], ["lora"], max_new_tokens=5)


@torch.no_grad()
def written_alone(network, family: str, text: str, most: int) -> list[int]:
    source, settings = make_tokenizer(family)(text, return_tensors="pt"), network.generation_config
    new = [network.config.decoder_start_token_id]
    while len(new) <= most and (len(new) == 1 or new[-1] != 6):
        logits = network(**source, decoder_input_ids=torch.tensor([new])).logits[0, -1]
        new.append(int(logits.argmax()))
    assert settings.forced_bos_token_id is None
    return [token for token in new[1:] if token != 6]


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.filterwarnings("ignore:The target module type .* is not an instance of:UserWarning")
def test_encoder_decoders_write_in_mixed_batches(tmp_path, family):
    base = make_model(family, AutoModelForSeq2SeqLM)
    pool = AdapterPool(base, make_tokenizer(family))
    methods = (
        ["lora", "ia3", "houlsby", "bitfit", None] if family == "bart" else ["lora", "ia3", "houlsby", None]
    )
    networks = {None: base}
    for seed, method in enumerate(methods[:-1]):
        networks[method] = make(tmp_path / method, family, "SEQ_2_SEQ_LM", method, seed)
        pool.add(method, tmp_path / method)
    jobs = [(TEXTS[i % 4], methods[i % len(methods)], 3 + 2 * i % 9) for i in range(9)]
    wanted = [written_alone(networks[name], family, text, most) for text, name, most in jobs]
    rows = [pool.rows([text], [name], Sampling(max_new_tokens=most))[0] for text, name, most in jobs]
    writing = pool.writing()
    writing.join(rows[:4])
    for late in rows[4:]:
        writing.step()
        writing.join([late])
    writing.leave(rows[-1:])
    while writing.rows:
        writing.step()
    assert [row.ids for row in rows[:-1]] == wanted[:-1] and rows[-1].ended == "stop"
    assert pool.generate([TEXTS[0]], ["lora"], max_new_tokens=0) == [""], "nothing asked for, nothing written"
    assert pool.embed([TEXTS[0]] * 2, ["lora", None]).shape == (2, 16)
    with pytest.raises(InputError, match="the context holds"):
        pool.generate(["the film"], max_new_tokens=9999)
    prefix = attach(
        make_model(family, AutoModelForSeq2SeqLM), "prefix", {"num_virtual_tokens": 2}, "SEQ_2_SEQ_LM"
    )
    prefix.save_pretrained(tmp_path / "prefix")
    with pytest.raises(InputError, match="use it alone, by PEFT"):
        pool.add("prefix", tmp_path / "prefix")


def test_draws_do_not_depend_on_the_batch(tmp_path):
    pool = pool_of("llama", writes=True)
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 3}
    together = pool.generate([TEXTS[0], TEXTS[2]], None, **options)
    assert pool.generate([TEXTS[0]], None, **options) == together[:1]
    assert pool.generate([TEXTS[0]], None, **(options | {"seed": 4})) != together[:1]


def test_what_later_tokens_may_change_is_held_back():
    row = Row([1], (), Sampling(stop=("stop now",)), lambda ids: "".join("abc stop now!"[i] for i in ids))
    pieces = [row.take(token, set()) for token in range(12)]
    assert pieces[:6] == ["a", "b", "c", " ", "", ""] and row.text == "abc " and row.ended == "stop"
    half = Row([1], (), Sampling(), lambda ids: "é" if len(ids) > 1 else "\ufffd")
    assert [half.take(0, set()), half.take(1, set())] == ["", "é"]


def test_a_stack_runs_in_sequence(tmp_path):
    networks = [make(tmp_path / name, "bert", "SEQ_CLS", "houlsby", seed) for seed, name in enumerate("ab")]
    pool = pool_of("bert")
    for name in "ab":
        pool.add(name, tmp_path / name)
    stacked = networks[1]
    stacked.load_adapter(tmp_path / "a", adapter_name="a")
    for layer in tuned_layers(stacked):
        stacked.get_submodule(layer).set_adapter(["a", "default"])
    found = pool.logits([TEXTS[0], TEXTS[0], TEXTS[0]], [("a", "b"), ("b", "a"), "b"])
    trunk = stacked.get_base_model().bert(
        **make_tokenizer("bert")(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    )
    head = stacked.get_base_model().classifier.modules_to_save["default"]
    assert near(found[0], head(trunk.pooler_output)[0])
    assert (found[0] - found[2]).abs().max() > 1e-4 and (found[0] - found[1]).abs().max() > 1e-4


def test_embeddings_of_base_and_adapter(tmp_path):
    network = make(tmp_path / "a", "bert", "SEQ_CLS", "lora", 1)
    pool = pool_of("bert")
    pool.add("a", tmp_path / "a")
    found = pool.embed([TEXTS[0], TEXTS[1]], ["a", None])
    hidden = network.base_model.model.bert(
        **make_tokenizer("bert")(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    )[0]
    assert near(found[0], torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0])
    assert near(found[1], pool.embed([TEXTS[1]])[0])
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_eight_threads_while_adapters_come_and_go(tmp_path):
    for seed, name in enumerate(("a", "b", "x", "y")):
        make(tmp_path / name, "bert", "SEQ_CLS", "houlsby" if seed % 2 else "lora", seed)
    pool = pool_of("bert")
    for name in ("a", "b"):
        pool.add(name, tmp_path / name)
    wanted = {name: pool.logits([TEXTS[0]], [name])[0] for name in ("a", "b")}
    errors: list[object] = []

    def ask(number: int) -> None:
        try:
            for turn in range(12):
                names = ["a", "b"] if (number + turn) % 2 else ["b", "a"]
                for name, found in zip(names, pool.logits([TEXTS[0]] * 2, names), strict=True):
                    if not near(found, wanted[name]):
                        errors.append((name, found))
        except Exception as error:
            errors.append(error)

    def change() -> None:
        try:
            for turn in range(10):
                pool.add("new", tmp_path / ("x", "y")[turn % 2])
                pool.add("new", tmp_path / ("y", "x")[turn % 2], replace=True)
                pool.remove("new")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(7)] + [threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(pool.adapters()) == {"a", "b"}


def test_refusals_say_what_to_do(tmp_path):
    make(tmp_path / "a", "bert", "SEQ_CLS", "lora", 0)
    pool = pool_of("bert")
    pool.add("a", tmp_path / "a")
    for texts, adapters, message in [
        (["x"], ["b"], "Unknown adapter 'b'; there are: a"),
        (["  "], ["a"], "Text 0 is empty"),
        (
            ["the " * 80],
            ["a"],
            "Text 0 has 82 tokens, its adapter and base take 64; shorten it, or set truncate",
        ),
        (["x"], [None], "the base alone has no head"),
        (["x"], ["a", "a"], "1 texts and 2 adapters"),
    ]:
        with pytest.raises(InputError, match=message):
            pool.classify(texts, adapters)
    assert pool.classify(["the " * 80], ["a"], truncate=True)[0]["label"] in LABELS
    with pytest.raises(InputError, match="writes no texts"):
        pool.generate(["x"])
    with pytest.raises(InputError, match="already"):
        pool.add("a", tmp_path / "a")
    for name in ("../a", "", "a/b", "x" * 65, ".."):
        with pytest.raises(InputError, match="is no adapter's"):
            pool.add(name, tmp_path / "a")
    for task, text, message in (
        ("regression", "x", "was trained for 'regression'; ask for logits"),
        ("pairs", "x", "is a single text; its adapter takes a pair of texts"),
        ("classification", ("x", "y"), "is a pair; its adapter takes a single text"),
    ):
        passport = json.loads((tmp_path / "a" / "passport.json").read_text()) | {"task": task}
        (tmp_path / "a" / "passport.json").write_text(json.dumps(passport))
        pool.add("a", tmp_path / "a", replace=True)
        with pytest.raises(InputError, match=message):
            pool.classify([text], ["a"])
    writer = pool_of("llama", writes=True)
    with pytest.raises(InputError, match="the context holds 64"):
        writer.generate(["the film"], max_new_tokens=64)
    with pytest.raises(InputError, match="does not fit"):
        AdapterPool(make_model("bert", AutoModel, seed=1), make_tokenizer("bert")).add("a", tmp_path / "a")
    make(tmp_path / "prompt", "bert", "SEQ_CLS", "prompt", 1)
    pool.add("prompt", tmp_path / "prompt")
    with pytest.raises(InputError, match="Text 0 has 64 tokens, its adapter and base take 62"):
        pool.classify(["the " * 62], ["prompt"])
    with pytest.raises(InputError, match="stacks with nothing"):
        pool.classify(["x"], [("a", "prompt")])
    assert BottleneckConfig().shape == "houlsby"
