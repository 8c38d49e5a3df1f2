"""Adapters whose tensors don't fit the base are refused when they are added, and never break a batch."""

from pathlib import Path

import peft
import pytest
import torch
from conftest import make_model, make_tokenizer
from safetensors.torch import load_file, save_file
from test_pool import make
from transformers import AutoModelForCausalLM

from finetune.errors import InputError
from finetune.pool.pool import AdapterPool


def damaged(folder: Path, part: str, change) -> Path:
    file = folder / "adapter_model.safetensors"
    tensors = {name: change(t) if part in name else t for name, t in load_file(file).items()}
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, file)
    # Without it, as of plain PEFT: its own check of the base would come first.
    (folder / "passport.json").unlink(missing_ok=True)
    return folder


def writer(family: str) -> AdapterPool:
    return AdapterPool(make_model(family, AutoModelForCausalLM), make_tokenizer(family))


@pytest.mark.parametrize(
    ("method", "part", "change", "message"),
    [
        ("lora", "lora_A", lambda t: torch.cat([t, t], 1), "lora_A of .* has the shape"),
        ("lora", "lora_B", lambda t: t[:1], "lora_B of .* has the shape"),
        ("lora", "lora_B", lambda t: t[..., None], "lora_B of .* has the shape"),
        ("lora", "lora_A", lambda t: t[0], "options say rank 3 of .* have"),
        ("lora", "lora_A", lambda t: t[:1], "options say rank 3 of .* have 1"),
        ("lora", "", lambda t: None, "holds no weights"),
        ("lora", "lora_B", lambda t: t / 0, "not finite"),
        ("dora", "magnitude", lambda t: t[:1], "DoRA's magnitude of .* wants"),
        ("ia3", "ia3_l", lambda t: t[:, :1], "IA3's factor of .* wants"),
        ("houlsby", "down.weight", lambda t: t[:, :8], "bottleneck_down.weight of .* wants"),
        ("houlsby", "up.bias", lambda t: t[:1], "bottleneck_up.bias of .* wants"),
        ("houlsby", "up.bias", lambda t: None, "bottleneck_up.bias of .* is missing"),
        ("prompt", "prompt", lambda t: t[:1], "2 made-up tokens, and its weights have 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, method, part, change, message):
    make(tmp_path / "it", "llama", "CAUSAL_LM", method, 1)
    with pytest.raises(InputError, match=message):
        writer("llama").add("it", damaged(tmp_path / "it", part, change))


def test_shifts_of_biases_fit_too(tmp_path):
    make(tmp_path / "it", "gpt2", "CAUSAL_LM", "bitfit", 1)
    with pytest.raises(InputError, match="the bias of .* wants"):
        writer("gpt2").add("it", damaged(tmp_path / "it", "bitfit_bias", lambda t: t[:1]))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dora_on_embeddings_runs_by_itself(tmp_path):
    config = peft.LoraConfig(
        r=2, target_modules=["wte", "c_attn"], use_dora=True, init_lora_weights=False, task_type="CAUSAL_LM",
        fan_in_fan_out=True,
    )  # fmt: skip
    tuned = peft.get_peft_model(make_model("gpt2", AutoModelForCausalLM), config).eval()
    tuned.save_pretrained(tmp_path)
    pool, tokenizer = writer("gpt2"), make_tokenizer("gpt2")
    pool.add("it", tmp_path)
    assert "DoRA on 'wte'" in pool.adapters()["it"]["by_itself"]
    inputs = tokenizer("the film", return_tensors="pt", return_token_type_ids=False)
    ids = tuned.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    wanted = tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert pool.generate(["the film", "a"], ["it", None], max_new_tokens=6)[0].strip() == wanted.strip()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_puts_on_a_base_and_cannot_run_is_refused(tmp_path):
    # PEFT 0.21 splits GPT-2's weights, which lie the other way round, as if they were a linear layer's.
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], init_lora_weights="olora", task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    peft.get_peft_model(make_model("gpt2", AutoModelForCausalLM), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="doesn't run there"):
        writer("gpt2").add("it", tmp_path)
