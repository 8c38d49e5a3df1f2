"""Vectors, their loss and their figures by hand; what is saved loads as a sentence encoder."""

import math

import numpy as np
import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from datasets import ClassLabel, Dataset
from transformers import AutoModel

from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.methods import attach
from finetune.metrics import embeddings
from finetune.objectives import contrastive
from finetune.objectives.inputs import with_label

HIDDEN = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0]])


def test_poolings():
    assert contrastive.mean(HIDDEN, MASK).tolist() == [[2.0, 1.0]]
    assert contrastive.first(HIDDEN, MASK).tolist() == [[1.0, 0.0]]
    assert contrastive.last(HIDDEN, MASK).tolist() == [[3.0, 2.0]]


def test_the_partner_among_all_partners():
    vectors = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 5.0]]])
    losses = contrastive.in_batch(vectors, torch.zeros(2), temperature=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-2))] * 2)


def test_hard_negatives_stand_beside_them():
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    losses = contrastive.in_batch(vectors, torch.zeros(2), temperature=1.0)
    # partners: cosine 1 with the own one, 0 with the other; hard negatives: 0 with the own one, 1 with the
    # other's
    assert losses.tolist() == pytest.approx([math.log(2 * math.e + 2) - 1] * 2)


def test_figures_of_vectors():
    vectors = np.array([[[1.0, 0], [1, 0]], [[0, 1], [1, 0]], [[-1, 0], [0, -1]]])
    figures = embeddings.embedding_figures(vectors, np.array([5.0, 1.0, 2.0]))
    assert figures["alignment"] == 0.0  # of the one pair with a high score
    between = [2, 4, 2]
    assert figures["uniformity"] == pytest.approx(math.log(sum(math.exp(-2 * d) for d in between) / 3))
    assert figures["spearman"] == pytest.approx(math.sqrt(3) / 2)  # cosines 1, 0, 0 for scores 5, 1, 2


def test_a_text_beside_itself_has_no_alignment():
    vectors = np.repeat(np.eye(3)[:, None], 2, axis=1)
    figures = embeddings.embedding_figures(vectors, np.full(3, np.nan))
    assert set(figures) == {"uniformity"}


def test_padding_changes_no_vector():
    processor, network = make_tokenizer("bert"), make_model("bert", AutoModel)
    texts = ["the film was good", "a bad story but a great actor and i loved it"]
    for pooling in contrastive.POOLINGS:
        with torch.no_grad():
            both = contrastive.embeddings(
                network,
                dict(processor(texts, padding=True, return_tensors="pt")),
                torch.zeros(2),
                pooling=pooling,
            )
            alone = contrastive.embeddings(
                network, dict(processor(texts[:1], return_tensors="pt")), torch.zeros(1), pooling=pooling
            )
        assert_near(both[:1], alone)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("pooling", "method"), [("mean", "full"), ("cls", "full"), ("last", "full"), ("mean", "lora")]
)
def test_sentence_transformers_loads_what_is_saved(pooling, method, tmp_path):
    theirs = pytest.importorskip("sentence_transformers")
    processor, network = make_tokenizer("bert"), make_model("bert", AutoModel)
    folder = tmp_path
    if method == "full":
        network.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    else:
        network, folder = (
            attach(network, "lora", {"init_lora_weights": False}, "FEATURE_EXTRACTION"),
            tmp_path / "sentence_encoder",
        )
    contrastive.save_sentence_encoder(network, processor, tmp_path, pooling, 32)
    texts = ["the film was good", "dull"]
    encoder = theirs.SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        ours = contrastive.embeddings(
            network.eval(),
            dict(processor(texts, padding=True, return_tensors="pt")),
            torch.zeros(2),
            pooling=pooling,
        )[:, 0]
    assert_near(torch.tensor(encoder.encode(texts)), ours)
    assert encoder.max_seq_length == 32


def test_what_cannot_be_merged_is_said(tmp_path, caplog):
    network = attach(make_model("bert", AutoModel), "bottleneck", None, "FEATURE_EXTRACTION")
    contrastive.save_sentence_encoder(network, make_tokenizer("bert"), tmp_path, "mean", 32)
    assert (
        "sentence-transformers won't load it" in caplog.text and not (tmp_path / "sentence_encoder").exists()
    )


def test_pairs_of_one_label_are_named_by_class_or_number():
    texts = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    classes = Dataset.from_dict(texts).cast_column("label", ClassLabel(names=["entailment", "neutral"]))
    data = DataArguments("rows")
    assert with_label(classes, "entailment", data)["text"][:] == ["a", "c"]
    # numbers as a file holds them
    assert with_label(Dataset.from_dict(texts), "1", data)["text"][:] == ["b"]
    with pytest.raises(
        InputError, match="No row has the label 'x' in 'label'; there are: entailment, neutral"
    ):
        with_label(classes, "x", data)
