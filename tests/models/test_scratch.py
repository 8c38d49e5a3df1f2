"""Models made from a configuration: sizes, special tokens, and what is said of those that can't be."""

import pytest
from conftest import make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from finetune.errors import InputError
from finetune.models import scratch
from finetune.models.load import ModelArguments
from finetune.models.scratch import ScratchArguments, prepare

SIZES = {
    "bert": "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32",
    "llama": '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}',
    "t5": "d_model=16,d_ff=32,d_kv=8,num_layers=2,num_heads=2",
    "bart": "d_model=16,encoder_layers=1,decoder_layers=1,encoder_ffn_dim=32,decoder_ffn_dim=32,"
    "encoder_attention_heads=2,decoder_attention_heads=2",
}
HEADS = {
    "bert": AutoModelForMaskedLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "bart": AutoModelForSeq2SeqLM,
}


def made(tmp_path, family, overrides=None, max_length=32):
    make_tokenizer(family).save_pretrained(tmp_path)
    scratch = ScratchArguments(family, SIZES[family] if overrides is None else overrides, str(tmp_path))
    return prepare(ModelArguments(), scratch, HEADS[family], max_length)


@pytest.mark.parametrize("family", SIZES)
def test_sizes_and_special_tokens(family, tmp_path):
    processor, network = made(tmp_path, family)
    config = network.config
    assert network.get_input_embeddings().weight.shape == (len(processor), 16)
    assert (config.pad_token_id, config.vocab_size) == (processor.pad_token_id, len(processor))
    network.save_pretrained(tmp_path / "saved")
    if config.is_encoder_decoder:
        assert (
            config.decoder_start_token_id
            == {"t5": processor.pad_token_id, "bart": processor.eos_token_id}[family]
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "hidden_sise=16",
            "'hidden_sise', which a bert configuration does not have. Did you mean hidden_size",
        ),
        ("hidden_size", "can't be read; wanted hidden_size=256"),
        (
            "max_position_embeddings=16",
            "--max_length 32 is beyond the model's 16 positions.*max_position_embeddings=32",
        ),
    ],
)
def test_overrides_that_cannot_be(overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        made(tmp_path, "bert", overrides)


def test_a_family_needs_a_tokenizer():
    with pytest.raises(InputError, match=r"--from_config bert has no tokenizer.*finetune tokenizer"):
        prepare(ModelArguments(), ScratchArguments("bert"), AutoModelForMaskedLM, 32)


def test_a_loaded_model_keeps_its_tokenizer():
    with pytest.raises(InputError, match=r"--tokenizer_name without --from_config"):
        prepare(ModelArguments(), ScratchArguments(tokenizer_name="x"), AutoModelForMaskedLM, 32)


def test_an_unknown_configuration():
    with pytest.raises(InputError, match=r"No configuration 'no/such'.*--from_config"):
        prepare(ModelArguments(), ScratchArguments("no/such", tokenizer_name=None), AutoModelForMaskedLM, 32)


def test_overrides_hold_lists():
    config = scratch._base("resnet", ModelArguments())
    scratch._override(config, "hidden_sizes=[8, 16],depths=[1,1], layer_type=basic", "image")
    assert (config.hidden_sizes, config.depths, config.layer_type) == ([8, 16], [1, 1], "basic")
