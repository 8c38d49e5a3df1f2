"""TextCNN: windows by hand, padding unseen, channels that stay as they are."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_near
from transformers import AutoModelForSequenceClassification

import finetune.models.own_families  # noqa: F401  (registers what is tested here)
from finetune.models.recurrent_config import TextCNNConfig

LENGTHS = (4, 1, 7)


def model(**entries):
    sizes = {"vocab_size": 30, "embedding_size": 6, "filters": 4, "num_labels": 3}
    return AutoModelForSequenceClassification.from_config(TextCNNConfig(**(sizes | entries))).eval()


@pytest.mark.parametrize("channels", ["tuned", "frozen", "both"])
def test_padding_is_unseen_and_short_texts_are_read(channels):
    network, ids = model(channels=channels), torch.randint(1, 30, (3, 7))
    mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
    alone = [network(ids[i : i + 1, :n]).logits for i, n in enumerate(LENGTHS)]
    assert_near(network(ids, mask).logits, torch.cat(alone), 1e-5)


def test_a_filter_is_the_strongest_window():
    network, ids = model(widths=[2]), torch.randint(1, 30, (1, 5))
    vectors = torch.nn.functional.pad(network.model.embeddings(ids)[0], (0, 0, 1, 1))
    one = network.model.filters[0]
    windows = [(one.weight[0] * vectors[i : i + 2].T).sum() + one.bias[0] for i in range(6)]
    assert_near(network.model(ids, None)[0, 0], torch.stack(windows).max().relu(), 1e-5)


def test_the_frozen_channel_stays(tmp_path):
    network = model(channels="both")
    network.save_pretrained(tmp_path)
    for one in (network, AutoModelForSequenceClassification.from_pretrained(tmp_path)):
        assert [n for n, w in one.named_parameters() if not w.requires_grad] == ["model.frozen.weight"]


def test_widths_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"widths is \[0\]; wanted numbers of words"):
        model(widths=[0])
