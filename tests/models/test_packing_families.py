"""Every causal family that transformers can make: packed rows keep apart, or are not packed and read
as rows.
"""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune import loss
from finetune.data import collate
from finetune.models import frozen_head
from finetune.models.attention import packed
from finetune.models.load import ModelArguments, load_model
from finetune.objectives import collators

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "head_dim": 8,
    "n_head": 4, "n_layer": 2, "n_embd": 32, "n_positions": 64, "n_ctx": 64, "rotary_dim": 4,
    "max_seq_len": 64, "d_model": 32,
    "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "state_size": 4, "lru_width": 32,
    "block_multiple_of": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
OTHERS = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "deepseek_v3": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
APART = (
    "llama",
    "qwen3",
    "mistral",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt_neox",
    "opt",
    "gpt2",
    "mixtral",
    "biogpt",
)
LEAKING = ("stablelm", "falcon", "bloom", "xglm", "nemotron", "mamba", "lfm2", "recurrent_gemma")
SECONDS_EACH = {"falcon_h1"}  # its kernels' stand-in on a CPU takes twenty
TEXTS = ([9, 33, 60, 21, 5, 48, 17, 8, 40], [51, 12, 29, 7, 63], [14, 14, 35, 58, 3, 26, 44])
OTHER = [62, 4, 4, 19, 37, 55, 23, 11, 46]


def made(family: str) -> torch.nn.Module:
    """A tiny model with weights wide enough for a leak to show."""
    known = AutoConfig.for_model(family).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known} | OTHERS.get(family, {})
    torch.manual_seed(0)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    if sum(parameter.numel() for parameter in network.parameters()) > 3e7:
        pytest.skip("no small sizes known")
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).float().eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def instructed(network: torch.nn.Module, first: list[int]) -> torch.Tensor:
    """Losses of the second and third text, packed as instruction tuning packs them."""
    rows = [{"input_ids": text, "labels": [*text[1:], -100]} for text in (first, *TEXTS[1:])]
    batch = collate.packed_lines(make_tokenizer("llama"))(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        return loss.placed_cross_entropy(frozen_head.packed_costs(network, batch, labels), labels)[1:]


def read(network: torch.nn.Module, first: list[int]) -> torch.Tensor:
    """What the tokens of the second and third document cost, as pretraining reads them."""
    documents = [len(first), *map(len, TEXTS[1:])]
    line = [token for text in (first, *TEXTS[1:]) for token in text]
    batch = collators.causal_collator(make_tokenizer("llama"), seed=0)(
        [{"input_ids": line, "documents": documents, "row": 0}]
    )
    labels = batch.pop("labels")
    batch.pop("row")
    with torch.no_grad():
        return frozen_head.causal_costs(network, batch, labels)[len(first) - 1 :]


def check(family: str) -> bool:
    """Whether the family is packed; asserts that no text moves another, packed or not, and that each
    is as it is alone.
    """
    network = made(family)
    apart = packed.pack(network)
    if apart:
        assert_near(instructed(network, TEXTS[0]), instructed(network, OTHER), 1e-3)
    before, after = read(network, TEXTS[0]), read(network, OTHER)
    near = {"atol": 1e-4 * float(before.abs().max()), "rtol": 0.0}
    torch.testing.assert_close(before, after, **near)
    with torch.no_grad():
        alone = [
            loss.token_costs(
                network(input_ids=torch.tensor([text]), use_cache=False).logits[0, :-1],
                torch.tensor(text[1:]),
            )
            for text in TEXTS[1:]
        ]
    torch.testing.assert_close(before, torch.cat(alone), **near)
    return apart


@pytest.mark.parametrize("family", APART)
def test_these_are_packed(family):
    assert check(family)


@pytest.mark.parametrize("family", LEAKING)
def test_these_would_leak_and_are_read_as_rows(family, caplog):
    assert not check(family)
    assert "Rows are not packed" in caplog.text


@pytest.mark.parametrize("family", [*APART, *LEAKING])
def test_sixteen_bits_give_the_same_answer(family):
    assert packed.pack(made(family).bfloat16()) == (family in APART)


@pytest.mark.slow
def test_a_trained_decoder_in_sixteen_bits_is_packed():
    """Its special tokens' activations are so large that bfloat16 keeps little of the rest."""
    assert packed.pack(load_model(ModelArguments("smollm2", dtype="bfloat16"), AutoModelForCausalLM)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*APART, *LEAKING, *SECONDS_EACH})
)
def test_no_family_leaks(family):
    try:
        network = made(family)
        network(input_ids=torch.tensor([TEXTS[1]]), use_cache=False)
    except pytest.skip.Exception:
        raise
    except Exception as error:  # sizes that a family doesn't take, or packages that it wants
        pytest.skip(
            f"can't be made here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
    if network.config.is_encoder_decoder or not getattr(network.config, "is_decoder", True):
        pytest.skip("reads both ways")
    check(family)
