"""Packed and labelled-only forwards give what a plain forward of each text alone gives."""

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from test_collators import TEXTS, features, spans_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from finetune import loss
from finetune.metrics import likelihood
from finetune.models import frozen_head, heads
from finetune.models.attention import packed
from finetune.models.load import ModelArguments, load_model
from finetune.objectives import collators, documents

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in ("row", *names)}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masked_blocks_are_their_documents(family, attention):
    processor, network = make_tokenizer(family), make_model(family, AutoModelForMaskedLM)
    network.set_attn_implementation(attention)
    apart = features(documents.masked_rows, processor, layout="rows")
    together = features(documents.masked_rows, processor, layout="blocks")
    assert [len(row["documents"]) for row in together] == [3]
    ids = [row["input_ids"] for row in apart]
    order = [1, 0, 2]  # longest first
    labels = torch.full((1, sum(map(len, ids))), 7)
    batch = collators.mask_collator(processor, masking_rate=0.3, whole_words=False, seed=0)(together)
    batch["input_ids"] = torch.tensor([together[0]["input_ids"]])
    with torch.no_grad():
        got = heads.masked_logits(network, without(batch, "labels"), labels)
        wanted = torch.cat([network(torch.tensor([ids[i]])).logits[0] for i in order])
    torch.testing.assert_close(got, wanted, **TOLERANCE)


def test_only_labelled_positions_reach_the_head():
    processor, network = make_tokenizer("bert"), make_model("bert", AutoModelForMaskedLM)
    batch = collators.mask_collator(processor, masking_rate=0.3, whole_words=False, seed=0)(
        features(documents.masked_rows, processor, layout="rows")
    )
    labels = batch["labels"]
    got = heads.masked_logits(network, without(batch, "labels"), labels)
    whole = network(**without(batch, "labels")).logits
    assert got.shape == (6, processor.vocab_size)
    torch.testing.assert_close(got, whole[labels != -100], **TOLERANCE)
    torch.testing.assert_close(
        loss.packed_cross_entropy(got, labels), loss.cross_entropy(whole, labels), **TOLERANCE
    )
    assert network(**without(batch, "labels")).logits.shape == whole.shape  # the hook is gone


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", [packed.NAME, "sdpa", "eager"])
@pytest.mark.parametrize("layout", ["rows", "blocks"])
def test_causal_rows_are_their_documents(family, attention, layout):
    """Right whether attention reads the borders or finds them in the positions; GPT-2 has learnt
    positions, which restart too.
    """
    processor, network = make_tokenizer(family), make_model(family, AutoModelForCausalLM)
    network.set_attn_implementation(attention)
    batch = collators.causal_collator(processor, seed=0)(
        features(documents.causal_rows, processor, layout=layout)
    )
    texts = [[*processor(text)["input_ids"], processor.eos_token_id] for text in TEXTS]
    with torch.no_grad():
        sums = loss.placed_cross_entropy(
            frozen_head.causal_costs(network, without(batch, "labels"), batch["labels"]), batch["labels"]
        )
        alone = []
        for ids in texts:
            logits = network(torch.tensor([ids])).logits[0, :-1]
            alone.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
    torch.testing.assert_close(sums.sum(), torch.stack(alone).sum(), **TOLERANCE)
    assert int(loss.items(batch["labels"]).sum()) == sum(len(ids) - 1 for ids in texts)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_targets_are_predicted_from_their_own_beginning(family):
    processor, network = spans_tokenizer(), make_model(family, AutoModelForSeq2SeqLM, vocab_size=64)
    rows = features(documents.span_rows, processor, layout="rows", masking_rate=0.3, mean_span=2.0)
    batch = collators.span_collator(processor, masking_rate=0.3, mean_span=2.0, seed=0)(rows)
    labels = batch["labels"]
    with torch.no_grad():
        got = loss.packed_cross_entropy(
            heads.target_logits(network, without(batch, "labels"), labels), labels
        )
        theirs = network(**without(batch)).loss
    torch.testing.assert_close(got.sum() / loss.items(labels).sum(), theirs, **TOLERANCE)


def test_pair_loss_is_berts_own():
    processor, network = make_tokenizer("bert"), make_model("bert", AutoModelForPreTraining)
    texts = ["i hated it . the film was bad . dull .", "we loved it . the actor was great . fine ."]
    rows = features(documents.pair_rows, processor, texts, sentence_order=False)[:1]
    batch = collators.pair_collator(
        processor, masking_rate=0.3, whole_words=False, sentence_order=False, seed=0
    )(rows)
    labels = batch["labels"]
    with torch.no_grad():
        got = loss.pair_loss(heads.pair_logits(network, without(batch, "labels"), labels), labels)
        theirs = network(
            **without(batch, "labels"), labels=labels[:, 1:], next_sentence_label=labels[:, 0]
        ).loss
    torch.testing.assert_close(got.sum(), theirs, **TOLERANCE)


def test_figures_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]))
    labels = torch.tensor([[0, -100, 0], [-100, -100, 2]])
    sums = loss.nats_and_hits(logits, labels)
    assert sums.tolist() == [[pytest.approx(float(np.log(8))), 1.0], [pytest.approx(float(np.log(2))), 1.0]]
    figures = likelihood.token_likelihood(sums.numpy(), labels.numpy(), byte_count=8)
    assert figures == {"perplexity": pytest.approx(16 ** (1 / 3)), "token_accuracy": pytest.approx(2 / 3),
    "tokens": 3,
                       "commonest": pytest.approx(2 / 3), "bits_per_byte": pytest.approx(0.5)}  # fmt: skip


def test_a_new_head_starts_at_the_mean_and_a_trained_one_stays():
    network = make_model("bert", AutoModelForSequenceClassification, num_labels=1)
    heads.start_at_mean(network, [1.0, 3.0, 5.0])
    assert network.classifier.bias.item() == 3.0
    heads.start_at_mean(network, [7.0])
    assert network.classifier.bias.item() == 3.0
    heads.start_at_mean(
        make_model("llama", AutoModelForSequenceClassification, num_labels=1), [7.0]
    )  # without a bias: as it is


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_head_never_reads_a_view(family, saved):
    """In bf16 on a CPU its product would copy the whole weight once a row: a third of the speed, six
    times the memory.
    """
    network = load_model(ModelArguments(saved(family, AutoModelForCausalLM)), AutoModelForCausalLM)[1]
    read = []
    network.get_output_embeddings().register_forward_hook(lambda head, states, logits: read.append(states[0]))
    ids = torch.tensor([[7, 8, 9], [9, 8, 7]])
    whole = network(input_ids=ids).logits
    torch.testing.assert_close(network(input_ids=ids, logits_to_keep=2).logits, whole[:, 1:])
    assert all(states.is_contiguous() for states in read)
