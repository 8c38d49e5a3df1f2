"""RNN, LSTM and GRU: gates as their equations, padding that nobody sees, states that go on, what is saved."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near, near
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import finetune.models.own_families  # noqa: F401  (registers what is tested here)
from finetune.models.recurrent_config import MERGES, RecurrentConfig
from finetune.models.recurrent_layers import RecurrentLayer, VariantLSTM, draw_kernel, merged_states

SIZES = {"vocab_size": 40, "embedding_size": 6, "hidden_size": 5, "num_labels": 3}
CELLS = {
    "rnn": {"cell": "rnn"},
    "irnn": {"cell": "rnn", "activation": "relu", "initialization": "identity"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "peephole": {"cell": "lstm", "peephole": True},
    "coupled": {"cell": "lstm", "coupled_gates": True},
    "both": {"cell": "lstm", "peephole": True, "coupled_gates": True},
}
LENGTHS = (4, 2, 7)


def model(auto=AutoModel, **entries):
    return auto.from_config(RecurrentConfig(**(SIZES | entries))).eval()


def padded():
    ids = torch.randint(1, 40, (3, 7))
    mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask


def layer(**entries):
    config = RecurrentConfig(**(SIZES | entries))
    made = RecurrentLayer(6, config)
    for kernel in made.kernels:
        draw_kernel(kernel, config)
    return made


def test_peepholes_and_coupled_gates_are_their_equations():
    """A loop that spells the gates out, one number of one row at a time."""
    for entries in (CELLS["peephole"], CELLS["coupled"], CELLS["both"]):
        made, line = layer(**entries), torch.randn(1, 4, 6)
        (kernel,) = made.kernels
        sizes = [one.size(0) for one in kernel.weight_ih.split(5)]
        assert sizes == [5] * (3 if kernel.coupled else 4)
        hidden, cell, expected = torch.zeros(5), torch.zeros(5), []
        names = ["f", "g", "o"] if kernel.coupled else ["i", "f", "g", "o"]
        for x in line[0]:
            raw = kernel.weight_ih @ x + kernel.weight_hh @ hidden + kernel.bias
            part = dict(zip(names, raw.split(5), strict=True))
            holes = dict.fromkeys("ifo", torch.zeros(5))
            if kernel.peephole is not None:
                holes |= dict(zip([name for name in names if name != "g"], kernel.peephole, strict=True))
            forget = torch.sigmoid(part["f"] + holes["f"] * cell)
            take = 1 - forget if kernel.coupled else torch.sigmoid(part["i"] + holes["i"] * cell)
            cell = forget * cell + take * torch.tanh(part["g"])
            hidden = torch.sigmoid(part["o"] + holes["o"] * cell) * torch.tanh(cell)
            expected.append(hidden)
        outputs, (last, _) = made(line, torch.tensor([4]))
        assert_near(outputs[0], torch.stack(expected), 1e-5)
        assert_near(last[0, 0], hidden, 1e-5)


def test_the_own_cell_without_options_is_torchs():
    plain, own = nn.LSTM(6, 5, batch_first=True), VariantLSTM(6, RecurrentConfig(**SIZES))
    with torch.no_grad():
        own.weight_ih.copy_(plain.weight_ih_l0)
        own.weight_hh.copy_(plain.weight_hh_l0)
        own.bias.copy_(plain.bias_ih_l0 + plain.bias_hh_l0)
    line, zeros = torch.randn(3, 7, 6), torch.zeros(3, 5)
    found, _ = own(line, torch.tensor([7, 7, 7]), (zeros, zeros))
    assert_near(found, plain(line)[0], 1e-5)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_rows_side_by_side_are_rows_packed(cell):
    """Without packing, and as torch packs them for a layer that reads both ways: the same states, ends
    too."""
    made, line, lengths = layer(cell=cell, bidirectional=True), torch.randn(3, 7, 6), torch.tensor(LENGTHS)
    whole = type(made.kernels[0])(6, 5, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for side, kernel in zip(("", "_reverse"), made.kernels, strict=True):
            for name, weight in kernel.named_parameters():
                getattr(whole, name + side).copy_(weight)
    found, ends = whole(pack_padded_sequence(line, lengths, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(found, batch_first=True)
    for cells in (False, True):
        outputs, last = made(line, lengths, cells=cells)
        assert_near(outputs, expected, 1e-5)
        parts = ends if cell == "lstm" else (ends,)
        for mine, theirs in list(zip(last, parts, strict=True))[: 2 if cells else 1]:
            assert_near(mine, theirs.transpose(0, 1), 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_seen_by_nobody(cell):
    """Rows alone without padding, beside longer ones, and padded on the left: the same states, both ways."""
    network = model(bidirectional=True, merge="concat", num_hidden_layers=2, **CELLS[cell])
    ids, mask = padded()
    states = network(ids, mask).last_hidden_state
    left = torch.stack([row.roll(7 - n) for row, n in zip(ids, LENGTHS, strict=True)])
    other = network(left, mask.flip(1)).last_hidden_state
    for place, length in enumerate(LENGTHS):
        alone = network(ids[place : place + 1, :length]).last_hidden_state[0]
        assert_near(states[place, :length], alone, 1e-5)
        assert_near(other[place, 7 - length :], alone, 1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("merge", MERGES)
def test_heads_read_texts_without_their_padding(merge, pooling):
    network = model(AutoModelForSequenceClassification, bidirectional=True, merge=merge, pooling=pooling)
    ids, mask = padded()
    alone = [network(ids[i : i + 1, :n]).logits for i, n in enumerate(LENGTHS)]
    assert_near(network(ids, mask).logits, torch.cat(alone), 1e-5)


def test_merges_join_two_directions():
    both = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    found = {merge: merged_states(both, merge).tolist() for merge in MERGES}
    assert found == {"concat": [1, 5, 3, 2], "sum": [4, 7], "average": [2, 3.5], "max": [3, 5]}


def test_the_identity_and_an_open_forget_gate():
    kernel = model(**CELLS["irnn"]).stack.layers[0].kernels[0]
    assert torch.equal(kernel.weight_hh_l0, torch.eye(5)) and kernel.nonlinearity == "relu"
    lstm = model(forget_bias=2.0).stack.layers[0].kernels[0]
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist() == [0] * 5 + [2] * 5 + [0] * 10
    square = model(cell="gru", initialization="orthogonal").stack.layers[0].kernels[0].weight_hh_l0[:5]
    assert_near(square @ square.T, torch.eye(5), 1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForCausalLM]
)
def test_saved_is_loaded(auto, cell, tmp_path):
    network, ids = model(auto, **CELLS[cell]), padded()[0]
    network.save_pretrained(tmp_path)
    assert_near(auto.from_pretrained(tmp_path).eval()(ids).logits, network(ids).logits, 1e-6)


def test_states_go_on_where_a_text_was_cut():
    network, (ids, _) = model(AutoModelForCausalLM, num_hidden_layers=2), padded()
    whole, first = network(ids).logits, network(ids[:, :3])
    rest = network(ids[:, 3:], past_key_values=first.past_key_values)
    assert_near(torch.cat([first.logits, rest.logits], dim=1), whole, 1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_alone_and_beside_longer_prompts(beams):
    network, (ids, mask) = model(AutoModelForCausalLM, eos_token_id=39), padded()
    left = torch.stack([row.roll(7 - n) for row, n in zip(ids, LENGTHS, strict=True)])
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    together = network.generate(left, attention_mask=mask.flip(1), **options)[:, 7:]
    for place, length in enumerate(LENGTHS):
        alone = network.generate(ids[place : place + 1, :length], **options)[0, length:]
        assert together[place, : len(alone)].tolist() == alone.tolist()


def test_frozen_vectors_stay_frozen_when_loaded(tmp_path):
    network = model(AutoModelForSequenceClassification, freeze_embeddings=True)
    network.save_pretrained(tmp_path)
    for one in (network, AutoModelForSequenceClassification.from_pretrained(tmp_path)):
        still = [name for name, weight in one.named_parameters() if not weight.requires_grad]
        assert still == ["model.embeddings.weight"]


def test_tied_vectors_are_one_weight(tmp_path):
    network = model(AutoModelForCausalLM, embedding_size=5, tie_word_embeddings=True)
    network.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embeddings.weight
    assert near(loaded.lm_head.weight, network.lm_head.weight, 0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"cell": "lstn"}, "cell is 'lstn'; wanted one of: rnn, gru, lstm"),
        ({"merge": "sum"}, "set bidirectional=true"),
        ({"cell": "gru", "peephole": True}, "are an lstm's; cell is gru"),
        ({"initialization": "identity"}, "are an rnn's; cell is lstm"),
        ({"hidden_size": 0}, "hidden_size is 0; wanted 1 or more"),
        ({"dropout": 1.5}, "dropout is 1.5; wanted a share below 1"),
        ({"bidirectional": "maybe"}, "bidirectional is 'maybe'; wanted true or false"),
    ],
)
def test_what_can_not_be_is_named(entries, message):
    with pytest.raises(ValueError, match=message):
        model(**entries)


def test_a_language_model_reads_one_way():
    with pytest.raises(ValueError, match="would see the token that it has to predict"):
        model(AutoModelForCausalLM, bidirectional=True)
