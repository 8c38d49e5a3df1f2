"""Packed rows: none sees another, and losses and gradients are those of rows that are padded or alone."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from peft.helpers import disable_input_dtype_casting
from transformers import AutoModelForCausalLM, GraniteConfig, MistralConfig

from finetune import loss
from finetune.data import collate
from finetune.errors import InputError
from finetune.methods import attach
from finetune.models import frozen_head, heads
from finetune.models.attention import packed
from finetune.training.sft import noisy, token_lengths

ROWS = [
    {"input_ids": [8, 9, 10, 11], "labels": [-100, 10, 11, 6], "row": 0, "length": 4},
    {"input_ids": [12, 13], "labels": [-100, 6], "row": 1, "length": 2},
    {
        "input_ids": [14, 15, 16, 17, 18, 19, 20],
        "labels": [-100, -100, 17, -100, 19, 20, 6],
        "row": 2,
        "length": 7,
    },
]


def batch_of(rows, collator=collate.packed_lines, family="llama"):
    batch = collator(make_tokenizer(family))(rows)
    batch.pop("row")
    return batch, batch.pop("labels")


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request):
    network = make_model(request.param, AutoModelForCausalLM)
    packed.pack(network)
    return network


def test_a_packed_batch_by_eye():
    batch, labels = batch_of(ROWS)
    assert batch["input_ids"].tolist() == [[8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 6]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 6, 13]
    assert batch["logits_to_keep"].tolist() == [1, 2, 3, 5, 8, 10, 11, 12]
    assert labels.tolist()[1] == [-100, 6, -100, -100, -100, -100, -100]
    assert batch["max_length_q"] == 7


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("short", [0, 640])
def test_losses_and_gradients_equal_those_of_padded_rows(family, short, monkeypatch):
    monkeypatch.setattr(packed, "SHORT", short)  # both ways of computing a text
    results = []
    for pack in (False, True):
        network = make_model(family, AutoModelForCausalLM)
        if pack:
            packed.pack(network)
        batch, labels = batch_of(ROWS, collate.packed_lines if pack else collate.continuations, family)
        call, measure = (
            (frozen_head.packed_costs, loss.placed_cross_entropy)
            if pack
            else (heads.head_logits, loss.cross_entropy)
        )
        losses = measure(call(network, batch, labels), labels)
        losses.sum().backward()
        results.append(
            (losses.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        )
    (padded, wanted), (found, gradients) = results
    assert_near(found, padded)
    assert_near(gradients, wanted)


@pytest.mark.parametrize("short", [0, 640])
def test_a_sliding_window_hides_what_lies_behind_it(short, monkeypatch):
    monkeypatch.setattr(packed, "SHORT", short)
    network = make_mistral()
    batch, labels = batch_of(ROWS, collate.continuations)
    wanted = loss.cross_entropy(heads.head_logits(network, batch, labels), labels)
    packed.pack(network)
    batch, labels = batch_of(ROWS)
    torch.testing.assert_close(
        loss.placed_cross_entropy(frozen_head.packed_costs(network, batch, labels), labels), wanted
    )


def make_mistral():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(num_key_value_heads=1, vocab_size=40, sliding_window=3, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


def test_dropout_inside_attention_is_not_forgotten():
    line = [torch.randn(1, 2, 7, 8) for _ in range(3)]
    edges = torch.tensor([0, 3, 7])
    plain, _ = packed.attend(None, *line, None, cu_seq_lens_q=edges)
    dropped, _ = packed.attend(None, *line, None, dropout=0.5, cu_seq_lens_q=edges)
    assert not torch.allclose(plain, dropped)


def test_scores_that_are_not_plain_are_refused():
    line = [torch.randn(1, 2, 7, 8) for _ in range(3)]
    with pytest.raises(InputError, match="softcap.*--packing false"):
        packed.attend(None, *line, None, cu_seq_lens_q=torch.tensor([0, 7]), softcap=30.0)


def test_no_text_sees_another(decoder):
    batch, labels = batch_of(ROWS)
    before = frozen_head.packed_costs(decoder, batch, labels)
    changed = [dict(ROWS[0], input_ids=[20, 19, 18, 17]), *ROWS[1:]]
    other, _ = batch_of(changed)
    after = frozen_head.packed_costs(decoder, other, labels)
    assert not torch.allclose(before[:3], after[:3])
    torch.testing.assert_close(before[3:], after[3:])


def test_lines_that_are_not_packed_are_attended_to_as_ever(decoder):
    plain = make_model("llama" if decoder.config.model_type == "llama" else "gpt2", AutoModelForCausalLM)
    inputs = {
        "input_ids": torch.tensor([[0, 0, 8, 9], [10, 11, 12, 13]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    torch.testing.assert_close(decoder(**inputs).logits[:, 2:], plain(**inputs).logits[:, 2:])
    written = [
        m.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (decoder, plain)
    ]
    assert written[0].tolist() == written[1].tolist()


def test_losses_and_hits_of_labelled_places_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]))
    labels = torch.tensor([[-100, 0, 2], [1, -100, -100]])
    found = loss.packed_cross_entropy(logits[[0, 1, 2]], labels)
    torch.testing.assert_close(found, -torch.log(torch.tensor([0.5 * 0.25, 0.25])))
    assert loss.packed_hits(logits, labels).tolist() == [1, 0]
    places = loss.token_costs(logits, labels[labels.ne(-100)])
    torch.testing.assert_close(loss.placed_cross_entropy(places, labels), found)
    assert loss.placed_hits(places, labels).tolist() == [1, 0]
    assert loss.items(labels).tolist() == [2, 1]


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_heads_places_cost_what_its_logits_do(bias, monkeypatch):
    monkeypatch.setattr(loss, "_slices", lambda table, *_: [slice(i, i + 3) for i in range(0, len(table), 3)])
    head, states = (
        torch.nn.Linear(4, 11, bias=bias).requires_grad_(False),
        torch.randn(8, 4, requires_grad=True),
    )
    labels, towards = torch.randint(0, 11, (8,)), torch.tensor([0.9, 0.1, 0.0, 0.3])
    found = []
    for places in (
        loss.token_costs(states, labels, head.weight, head.bias, entropies=True),
        loss.token_costs(head(states), labels, entropies=True),
    ):
        found.append((places, *torch.autograd.grad((places * towards).sum(), states)))
    torch.testing.assert_close(*found)
    likeliest = head(states).argmax(-1)
    labels = torch.where(torch.arange(8) < 5, likeliest, (likeliest + 1) % 11)
    assert (
        loss.token_costs(states.detach(), labels, head.weight, head.bias)[:, 2].tolist() == [1] * 5 + [0] * 3
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_frozen_head_makes_no_table_of_logits_and_the_same_gradients(family):
    batch, labels = batch_of(ROWS, family=family)
    found = []
    for frozen in (False, True):
        network = make_model(family, AutoModelForCausalLM, tie_word_embeddings=False)
        packed.pack(network)
        network.get_output_embeddings().requires_grad_(not frozen)
        assert (frozen_head.plain_head(network) is not None) == frozen
        places = frozen_head.packed_costs(network, batch, labels)
        loss.placed_cross_entropy(places, labels).sum().backward()
        assert (
            network(input_ids=batch["input_ids"]).logits.shape[-1] == network.config.vocab_size
        )  # the head is itself again
        found.append((places, {n: p.grad for n, p in network.named_parameters() if "lm_head" not in n}))
    torch.testing.assert_close(*found)


def test_adapters_in_float32_on_a_base_in_bf16_under_autocast_inside_the_forward_alone():
    network = make_model("llama", AutoModelForCausalLM).bfloat16()
    packed.pack(network)
    tuned = attach(network, "lora", None, "CAUSAL_LM")
    tuned.forward = torch.autocast("cpu", torch.bfloat16)(tuned.forward)  # as accelerate does
    batch, labels = batch_of(ROWS)
    with disable_input_dtype_casting(tuned):
        loss.placed_cross_entropy(frozen_head.packed_costs(tuned, batch, labels), labels).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in tuned.parameters() if p.requires_grad)


def test_logits_that_are_scaled_after_the_head_are_the_models_own():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=40, logits_scaling=4.0, **sizes)
    network = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    packed.pack(network)
    assert frozen_head.plain_head(network) is None
    batch, labels = batch_of(ROWS)
    logits = network(**batch, use_cache=False).logits[0]
    torch.testing.assert_close(
        frozen_head.packed_costs(network, batch, labels), loss.token_costs(logits, labels[labels.ne(-100)])
    )


def test_noise_is_scaled_by_each_texts_own_length():
    batch, _ = batch_of(ROWS)
    lengths = token_lengths(batch)
    assert lengths.tolist() == [[4] * 4 + [2] * 2 + [7] * 7]
    padded = {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert token_lengths(padded).tolist() == [[2], [3]]
    embeddings = torch.nn.Embedding(39, 16)
    ids = batch["input_ids"]
    with noisy(embeddings, lengths, alpha=5.0):
        noise = (embeddings(ids) - embeddings.weight[ids]).abs()
    bound = 5 / (lengths * 16).sqrt()
    assert (noise <= bound[..., None] + 1e-6).all() and (noise.amax(-1) > bound * 0.5).all()
    torch.testing.assert_close(embeddings(ids), embeddings.weight[ids])  # and nothing of it stays


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shared", [1, 4])
def test_padded_rows_give_the_numbers_and_gradients_of_texts_one_by_one(window, shared):
    sizes, edges = (
        ((4, 13, 8), (shared, 13, 8), (shared, 13, 8)),
        torch.tensor([0, 4, 6, 13], dtype=torch.int32),
    )
    line = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    found = packed._in_rows(line, packed.Texts(edges, 7, 0.3, window), 0.0)
    wanted, _ = packed.attend(
        None, *(part[None] for part in line), None, scaling=0.3, cu_seq_lens_q=edges, sliding_window=window
    )
    torch.testing.assert_close(found.transpose(0, 1)[None], wanted)
    towards = torch.randn_like(found)
    one, other = (
        torch.autograd.grad(value, line, weight)
        for value, weight in ((found, towards), (wanted, towards.transpose(0, 1)[None]))
    )
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_model_that_cannot_be_told_how_to_attend_is_not_packed(caplog):
    network = make_model("llama", AutoModelForCausalLM)
    network.set_attn_implementation = _refuse  # type: ignore[method-assign]
    assert not packed.pack(network)
    assert "lets nobody choose its attention" in caplog.text


def _refuse(name: str) -> None:
    raise ValueError(f"no {name}")
