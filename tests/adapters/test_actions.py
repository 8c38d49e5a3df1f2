"""`finetune adapter`: what it needs is asked for by name, and what it writes is what was asked."""

from pathlib import Path

import pytest
from conftest import make_model, make_tokenizer
from test_gguf import byte_level, model_for
from test_stamp import lora
from transformers import AutoModelForCausalLM

from finetune.adapters.actions import ActionArguments, act
from finetune.adapters.gguf import FILE
from finetune.adapters.merge import MergeArguments
from finetune.errors import InputError


def done(action: str, *adapters: str, **options) -> list[str]:
    return list(act(ActionArguments(action, list(adapters), **options), MergeArguments()))


def test_a_chat_adapter_becomes_a_gguf_file(tmp_path: Path):
    tokenizer = byte_level()
    model_for(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora(network, ["q_proj"], tmp_path / "a")
    options = {"base": str(tmp_path / "base"), "allow_mismatch": True}
    said = done("gguf", str(tmp_path / "a"), output_dir=str(tmp_path / "out"), gguf_type="f32", **options)
    assert f"{tmp_path / 'out' / FILE} (f32): largest logit difference" in said[0]
    assert (tmp_path / "out" / FILE).is_file() and "no Modelfile" in said[1]


def test_what_an_action_needs_is_asked_for(tmp_path: Path):
    base = str(tmp_path / "base")
    make_model("llama", AutoModelForCausalLM).save_pretrained(base)
    make_tokenizer("llama").save_pretrained(base)
    lora(AutoModelForCausalLM.from_pretrained(base), ["q_proj"], tmp_path / "a")
    one, empty = str(tmp_path / "a"), tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(InputError, match="Unknown action 'mend'; wanted one of: check"):
        done("mend", one)
    with pytest.raises(InputError, match="No adapters; name their folders by --adapters"):
        done("check")
    with pytest.raises(InputError, match="into_base takes one adapter; got 2. Merge them first"):
        done("into_base", one, one)
    with pytest.raises(InputError, match="--action gguf writes a folder; set --output_dir"):
        done("gguf", one)
    with pytest.raises(InputError, match="Cannot read .*nowhere.txt, named by --probe_texts"):
        done("stamp", one, base=base, probe_texts=str(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="empty.txt holds no text; wanted one a line"):
        done("stamp", one, base=base, probe_texts=str(empty))
