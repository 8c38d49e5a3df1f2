"""GGUF files hold what the model held; what llama.cpp couldn't read is refused."""

import gguf
import peft
import pytest
from conftest import make_model, make_tokenizer
from test_merge import run, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from finetune.adapters.gguf import FILE, export_gguf
from finetune.adapters.modelfile import PROBE_CHATS, make_modelfile, rendered
from finetune.errors import InputError


def byte_level(digits: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and two merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level]) if digits else level
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


def model_for(tokenizer: PreTrainedTokenizerFast, **config):
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 96,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return make_model("llama", AutoModelForCausalLM, **(size | ids | config))


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-5), ("f16", 1e-3), ("q8_0", 1e-2)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_read_back_says_the_same(tmp_path, kind, limit, tied):
    tokenizer = byte_level()
    network = model_for(tokenizer, num_key_value_heads=2, tie_word_embeddings=tied)
    probe = export_gguf(network, tokenizer, tmp_path, kind)
    assert probe.difference < limit
    reader = gguf.GGUFReader(tmp_path / FILE)
    assert ("output.weight" in {tensor.name for tensor in reader.tensors}) is not tied
    assert reader.fields["tokenizer.ggml.merges"].contents() == ["t h", "th e"]
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_what_llama_cpp_could_not_read_is_refused(tmp_path):
    tokenizer = byte_level()
    with pytest.raises(InputError, match="'gpt2' is not written as GGUF; wanted llama"):
        export_gguf(make_model("gpt2", AutoModelForCausalLM), make_tokenizer("gpt2"), tmp_path)
    with pytest.raises(InputError, match="The tokenizer is WordLevel"):
        export_gguf(make_model("llama", AutoModelForCausalLM), make_tokenizer("llama"), tmp_path)
    with pytest.raises(InputError, match="Unknown GGUF type 'q9'"):
        export_gguf(model_for(tokenizer), tokenizer, tmp_path, "q9")
    assert not list(tmp_path.iterdir())


CHATML = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system
Help.<|im_end|>
{% endif %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_modelfile_is_written_for_chatml_alone():
    tokenizer = byte_level()
    with pytest.raises(InputError, match="no chat template"):
        make_modelfile(tokenizer, FILE)
    tokenizer.chat_template = CHATML
    text = make_modelfile(tokenizer, FILE)
    assert text.startswith("FROM ./model.gguf\n") and 'SYSTEM "Help."' in text
    for chat in PROBE_CHATS:
        assert rendered(chat, "Help.") == tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=True
        )
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }} ")
    with pytest.raises(InputError, match="is no ChatML"):
        make_modelfile(tokenizer, FILE)


def test_what_is_refused_leaves_no_folder(tmp_path, saved, capsys):
    source, config = (
        saved("gpt2", AutoModelForCausalLM),
        peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True),
    )
    folder = save(tmp_path / "a", config, make_model("gpt2", AutoModelForCausalLM), named=str(source))
    with pytest.raises(SystemExit):
        run(
            "--action",
            "gguf",
            "--adapters",
            folder,
            "--output_dir",
            tmp_path / "gguf",
            "--allow_mismatch",
            "true",
        )
    assert "'gpt2' is not written as GGUF" in capsys.readouterr().err
    assert not (tmp_path / "gguf").exists()
