"""Word vectors from a file: GloVe's and word2vec's text format, and what is said of files that are
neither."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoModelForSequenceClassification

import finetune.models.own_families  # noqa: F401  (registers what is tested here)
from finetune.errors import InputError
from finetune.models.recurrent_config import RecurrentConfig, TextCNNConfig
from finetune.models.vectors import fill_embeddings, vector_width

GLOVE = "Film 9 9 9\nfilm 1 2 3\nstory 4 5 6\nfilm 7 7 7\nunheard 1 1 1\n"


def filled(tmp_path, content, config=None):
    file = tmp_path / "vectors.txt"
    file.write_text(content, encoding="utf-8")
    sizes = {"vocab_size": 36, "embedding_size": 3, "num_labels": 2}
    network = AutoModelForSequenceClassification.from_config((config or RecurrentConfig)(**sizes))
    share = fill_embeddings(network, make_tokenizer("bert"), str(file))
    return network, share


def rows(network, *words):
    vocabulary = make_tokenizer("bert").get_vocab()
    return network.get_input_embeddings().weight[[vocabulary[word] for word in words]].tolist()


def test_words_that_stand_twice_are_counted(tmp_path, caplog):
    filled(tmp_path, GLOVE)
    assert "has 1 words twice; the first vector of each counts" in caplog.text


@pytest.mark.parametrize("front", ["", "5 3\n"], ids=["glove", "word2vec"])
def test_words_get_their_vectors(front, tmp_path):
    network, share = filled(tmp_path, front + GLOVE)
    assert rows(network, "film", "story") == [[1, 2, 3], [4, 5, 6]]  # as it stands beats another case
    assert share == pytest.approx(2 / 29)
    vectors = network.get_input_embeddings().weight
    assert not vectors[0].any() and vectors[10:].std() > 0.5  # padding; others as wide as those found
    assert vector_width(tmp_path / "vectors.txt") == 3


def test_another_case_will_do(tmp_path):
    network, _ = filled(tmp_path, "FILM 1 2 3\nStory 4 5 6\n")
    assert rows(network, "film", "story") == [[1, 2, 3], [4, 5, 6]]


def test_both_channels_begin_alike(tmp_path):
    def both(**sizes):
        return TextCNNConfig(channels="both", **sizes)

    network, _ = filled(tmp_path, GLOVE, both)
    assert torch.equal(network.model.embeddings.weight, network.model.frozen.weight)
    assert not network.model.frozen.weight.requires_grad


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("film 1 2\n", r"line 1, 'film': 2 numbers; wanted 3 finite ones.*embedding_size=2"),
        ("story 1 2 3\nfilm 1 two 3\n", r"line 2, 'film': could not convert string to float: 'two'"),
        ("film 1 nan 3\n", r"line 1, 'film': 3 numbers; wanted 3 finite"),
        ("nothing 1 2 3\n", r"no word of the tokenizer's 29.*--kind words"),
    ],
)
def test_bad_files_are_named_by_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        filled(tmp_path, content)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"No file .*--embeddings"):
        vector_width(tmp_path / "none.txt")
    (tmp_path / "w2v.bin").write_bytes(b"3 2\nfilm \x8f\xff\x00\x01\n")
    with pytest.raises(InputError, match=r"is no text.*save_word2vec_format"):
        vector_width(tmp_path / "w2v.bin")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="holds no word vectors"):
        vector_width(tmp_path / "empty.txt")
