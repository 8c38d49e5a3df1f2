"""Tokens without a row and modules that a checkpoint lacks: the same at every loading, trained and saved."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import CONFIGS, make_model, make_tokenizer
from covering import covering
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from finetune.adapters import load
from finetune.adapters.actions import ActionArguments, into_base
from finetune.adapters.merge import MergeArguments
from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.methods import METHODS, attach
from finetune.models.load import ModelArguments, load_model, load_processor
from finetune.models.tokens import MADE_UP_ROWS, fit_embeddings, token_rows
from finetune.pool import AdapterPool

DECODERS = (
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "phi",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon",
    "bloom",
    "stablelm",
)
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 9, "n_embd": 16, "n_layer": 1, "n_head": 2, "head_dim": 8, "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 32, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
    "rotary_dim": 4,
}  # fmt: skip


def decoder(family: str, folder: Path, rows: int = 9) -> Path:
    """A decoder whose tokenizer has no pad token, as published ones are; `rows` in its embeddings for
    nine tokens.
    """
    known = AutoConfig.for_model(family)
    settings = {
        k: v for k, v in SMALL.items() if k in known.to_dict() or k in known.attribute_map or "token" in k
    }
    config = AutoConfig.for_model(family, **(settings | {"vocab_size": rows}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rows", [9, 12])
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_without_a_pad_token_loads_and_learns(family, rows, tmp_path):
    folder = decoder(family, tmp_path, rows)
    for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        if kind is not AutoModelForCausalLM and family in ("bloom", "gpt_neox"):
            continue
        processor, network = load_model(ModelArguments(model_name_or_path=str(folder)), kind)
        assert processor.pad_token_id == 9 == network.config.pad_token_id != processor.eos_token_id
        assert network.get_input_embeddings().num_embeddings == max(rows, 10)
        ids = torch.tensor([[3, 4, 9], [3, 4, 5]])
        inputs = {"input_ids": ids, "attention_mask": ids.ne(9).long()}
        loss = network(**inputs).logits.square().mean()
        loss.backward()
        assert torch.isfinite(loss) and network.config.to_dict().get(MADE_UP_ROWS, []) == []


def test_a_pad_token_beyond_the_published_embeddings_loads(tmp_path):
    folder = decoder("llama", tmp_path)
    config = AutoConfig.from_pretrained(folder)
    config.pad_token_id = 9  # as some configurations on the hub say
    config.save_pretrained(folder)
    _, network = load_model(ModelArguments(model_name_or_path=str(folder)), AutoModelForCausalLM)
    assert network.get_input_embeddings().num_embeddings == 10


def test_vocabularies_with_gaps_get_a_row_for_their_last_token():
    processor = make_tokenizer("llama")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "z": 70}, unk_token="<unk>"))
    gaps = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    assert token_rows(gaps) == 71 and token_rows(processor) == len(processor)


def test_new_rows_are_the_same_at_every_loading(saved):
    folder = saved("llama", AutoModelForCausalLM)
    model = ModelArguments(model_name_or_path=str(folder), add_tokens=["<x>", "<y>"])
    first, second = (load_model(model, AutoModelForCausalLM)[1] for _ in range(2))
    held = CONFIGS["llama"].vocab_size
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = first.get_output_embeddings().weight
    assert torch.allclose(rows[held:], rows[:held].mean(0).expand(2, -1), atol=1e-6)
    assert first.config.to_dict()[MADE_UP_ROWS] == [held, held + 1]
    with pytest.raises(InputError, match="in the vocabulary already"):
        load_model(ModelArguments(model_name_or_path=str(folder), add_tokens=["film"]), AutoModelForCausalLM)


CASES = (
    ("llama", AutoModelForCausalLM, "CAUSAL_LM"),
    ("gpt2", AutoModelForCausalLM, "CAUSAL_LM"),
    ("t5", AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    ("bert", AutoModelForMaskedLM, None),
    ("bert", AutoModelForSequenceClassification, "SEQ_CLS"),
)


# rsLoRA and DoRA go LoRA's way but for their arithmetic
WAYS = sorted(set(METHODS) - {"qlora", "qat_lora", "full", "rslora", "dora"})


@pytest.mark.parametrize(
    ("family", "kind", "task", "tied", "method"),
    covering(
        (*case, tied, method)
        for case in CASES
        for tied in (True, False)
        if tied or case[0] != "bert"
        for method in WAYS
    ),
)
def test_new_rows_are_trained_and_saved_or_the_run_is_refused(
    family, kind, task, tied, method, saved, tmp_path
):
    folder = saved(family, kind, tie_word_embeddings=tied)
    model = ModelArguments(model_name_or_path=str(folder), add_tokens=["<x>", "<y>"])
    processor, network = load_model(model, kind)
    try:
        tuned = attach(network, method, None, task)
    except InputError:
        return
    new = processor.convert_tokens_to_ids(["<x>", "<y>"])
    ids = torch.tensor([[8, new[0], 9, new[1], 10]])
    labels = {"labels": torch.tensor([1]) if task == "SEQ_CLS" else ids}
    before = tuned.get_input_embeddings()(ids)[0].detach()
    step(tuned, ids, labels)
    after = tuned.get_input_embeddings()(ids)[0].detach()
    moved = (before != after).any(-1).tolist()
    assert moved == [False, True, False, True, False]
    out = tmp_path / "adapter"
    tuned.save_pretrained(out, save_embedding_layers=False)
    processor.save_pretrained(out)
    _, base = load_model(ModelArguments(model_name_or_path=str(folder)), kind)
    again = load_processor(str(out))
    fit_embeddings(base, again)
    loaded = peft.PeftModel.from_pretrained(base, str(out))
    wanted, found = (one.eval()(input_ids=ids, **labels).logits for one in (tuned, loaded))
    assert torch.equal(wanted, found)


def step(network: torch.nn.Module, ids: torch.Tensor, labels: dict[str, torch.Tensor]) -> None:
    network.eval()  # without dropout: the step is the same everywhere
    loss = network(input_ids=ids, **labels).loss
    loss.backward()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad


ASKED_AGAIN = """
import sys
from finetune.adapters import load
print(repr(load(sys.argv[1], device="cpu")("a b", max_new_tokens=3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_with_new_rows_answers_alike_wherever_it_is(family, tmp_path):
    """Loaded, moved and loaded in another process, in a pool, merged: a base without a pad token, as many ids
    as rows, and an adapter that learns to say a token which the base hasn't."""
    base, out, moved = decoder(family, tmp_path / "base"), tmp_path / "run", tmp_path / "elsewhere" / "it"
    rows = tmp_path / "rows"
    rows.mkdir()
    for split in ("train", "validation"):
        lines = [{"prompt": "a b", "completion": " <x> c"}, {"prompt": "c d", "completion": " e f"}] * 4
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sft = script("sft")
    given = (
        f"--model_name_or_path {base} --dataset_name {rows} --output_dir {out} --method lora "
        "--add_tokens <x> --chat false --max_steps 60 --learning_rate 0.05 --bf16 false "
        "--save_strategy no --eval_strategy no"
    )
    sft.main(*parse(sft.main, given.split()))
    said = load(out, device="cpu")("a b", max_new_tokens=3)
    assert "<x>" in said
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    asked = [sys.executable, "-c", ASKED_AGAIN, str(moved)]
    other = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert other.stdout.strip().splitlines()[-1] == repr(said)
    pool = AdapterPool(str(base), device="cpu")
    pool.add("it", moved)
    (served,) = pool.generate(["a b"], ["it"], max_new_tokens=3)
    assert served.split() == said.split()
    assert "<x>" not in pool.generate(["a b"], [None], max_new_tokens=3)[0]  # the base stays as it is
    action = ActionArguments("into_base", [str(moved)], str(tmp_path / "whole"))
    assert list(into_base(action, MergeArguments()))
    processor, whole = load_model(ModelArguments(str(tmp_path / "whole")), AutoModelForCausalLM)
    ids = processor("a b", return_tensors="pt", add_special_tokens=False)
    written = whole.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert processor.decode(written, skip_special_tokens=True).split() == said.split()


def script(verb: str) -> Any:
    file = Path(__file__).parents[2] / "scripts" / f"{verb}.py"
    spec = importlib.util.spec_from_file_location(verb, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_checkpoint_of_something_else_is_refused(saved):
    folder = saved("llama", AutoModelForCausalLM)
    config = folder / "config.json"
    bert = CONFIGS["bert"].to_json_string()
    config.write_text(bert)
    with pytest.raises(InputError, match="no weight of a BertForMaskedLM's base"):
        load_model(ModelArguments(model_name_or_path=str(folder)), AutoModelForMaskedLM)
    assert make_model("bert", AutoModelForMaskedLM) is not None
