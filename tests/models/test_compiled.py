"""Layers compiled for training: the numbers stay, one graph serves all lengths, and evaluation is left alone.

Graphs are made and run as they are ("eager"): which kernels a compiler makes of them is its own affair.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bounds import assert_near
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune.errors import InputError
from finetune.methods import attach
from finetune.models.attention import packed
from finetune.models.compiled import check_compiler, compile_layers, repeated

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
LINES = ((5, 9), (30, 7, 11), (12,), (3, 4, 5, 6))  # lengths of the texts of packed lines


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def decoder(method: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=60))
    assert packed.pack(made)
    tuned = attach(made, method, None, "CAUSAL_LM").train()
    with torch.no_grad():  # an adapter's second factor begins at zero, and its first one's gradient too
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return tuned


def line(lengths: tuple[int, ...]) -> dict[str, Any]:
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.arange(sum(lengths))[None] % 57 + 3,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "use_cache": False,
        "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip


def gradients(network: Any, lengths: tuple[int, ...]) -> list[Tensor]:
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    loss = network(**line(lengths)).logits.log_softmax(-1)[..., 7].sum()
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


# torch's compiler looks at what no backward pass fills
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_and_gradients_stay_and_no_length_compiles_anew(method):
    network = decoder(method)
    wanted = [gradients(network, lengths) for lengths in LINES]
    assert compile_layers(network, "aot_eager") == 3
    first = gradients(network, LINES[0])
    graphs = counters["stats"]["unique_graphs"]
    found = [first, *(gradients(network, lengths) for lengths in LINES[1:])]
    assert_near(found, wanted)
    # the three layers share them, and so do lines of other lengths
    assert 0 < counters["stats"]["unique_graphs"] == graphs < 6


def test_what_is_not_trained_is_not_compiled():
    network = decoder("lora")
    compile_layers(network, "aot_eager")
    with torch.no_grad():
        network(**line((4, 5)))
    network.eval()(input_ids=torch.tensor([[3, 4, 5]]))
    network.generate(input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=3)
    assert not counters["stats"]


def test_attention_on_a_card_is_inside_of_the_graph(monkeypatch):
    """By tensors that hold nothing: the kernel itself is a card's."""

    def attend(query: Tensor, key: Tensor, value: Tensor, edges: Tensor, longest: int) -> Tensor:
        return packed._on_gpu((query, key, value), packed.Texts(edges, longest, 0.5), 0.0)

    asked = []
    monkeypatch.setattr(packed, "_has_kernel", lambda *told: not asked.append(told))
    compile_layers(decoder("lora"), "eager")
    whole = torch.compile(attend, fullgraph=True, dynamic=True, backend="eager")
    for tokens, texts in ((14, 2), (48, 3), (30, 5)):
        parts = [torch.empty(heads, tokens, 8, device="meta", dtype=torch.bfloat16) for heads in (4, 2, 2)]
        for part in parts:  # heads and their width are a model's own, as its weights are
            torch._dynamo.mark_static(part, [0, 2])
        edges = torch.empty(texts + 1, dtype=torch.int32, device="meta")
        assert whole(*parts, edges, tokens).shape == (1, tokens, 4, 8)
    assert asked == [(torch.device("meta"), torch.bfloat16, 8, 2)]
    assert counters["stats"]["unique_graphs"] == 1


def test_layers_are_found_in_encoders_and_in_both_halves_of_a_pair():
    encoder = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES, vocab_size=60))
    assert [type(layer).__name__ for layer in repeated(attach(encoder, "lora", None, "SEQ_CLS"))] == [
        "BertLayer"
    ] * 3
    pair = T5ForConditionalGeneration(
        T5Config(d_model=16, d_ff=16, d_kv=4, num_layers=2, num_heads=2, vocab_size=40)
    )
    assert len(list(repeated(pair))) == 4


def encoder(method: str, layers: int) -> Any:
    made = AutoModelForSequenceClassification.from_config(
        BertConfig(**SIZES | {"num_hidden_layers": layers}, vocab_size=60)
    )
    return attach(made, method, None, "SEQ_CLS").train()


def test_a_head_alone_is_trained_without_going_back_through_frozen_layers():
    network = encoder("linear_probe", 2)
    compile_layers(network, "eager")
    states = []
    list(repeated(network))[-1].register_forward_hook(lambda layer, given, found: states.append(found))
    network(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert [state.requires_grad for state in states] == [False]


def test_a_model_that_repeats_no_layer_is_refused():
    with pytest.raises(
        InputError, match="--torch_compile true compiles the layers .* repeats none. Leave it"
    ):
        compile_layers(encoder("lora", 1), "eager")


# torch's compiler looks at what no backward pass fills
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_pictures_whose_embedding_gives_more_than_states():
    """Swin's, whose windows are as many as a picture of one size has."""
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [1]}
    network = SwinModel(SwinConfig(**shape, window_size=2, drop_path_rate=0.0)).train()
    pictures = torch.randn(2, 3, 16, 16)

    def found() -> list[Tensor]:
        loss = network(pixel_values=pictures).pooler_output.sum()
        return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))

    wanted = found()
    assert compile_layers(network, "eager") == 2
    assert_near(
        *([torch.zeros(1) if one is None else one for one in grads] for grads in (found(), wanted)),
    )
    assert counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("backend", "mode", "said"),
    [
        ("nonsense", None, "--torch_compile_backend nonsense; wanted one of aot_eager, .*inductor"),
        ("no", None, "--torch_compile_backend no; wanted one of aot_eager"),
        ("inductor", "fast", "--torch_compile_mode fast; wanted one of default, .*max-autotune"),
    ],
)
def test_names_that_torch_does_not_know_are_refused(backend, mode, said):
    with pytest.raises(InputError, match=said):
        check_compiler("--torch_compile true: ", "leave it out", torch.device("cpu"), backend, mode)
