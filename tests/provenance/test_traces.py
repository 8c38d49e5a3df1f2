"""Traces: p-values of models that know nothing are uniform, those of models that do are small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_model
from scipy.stats import kstest
from transformers import AutoModelForCausalLM

from finetune.errors import InputError
from finetune.provenance.canaries import CANDIDATES, draw_canaries, rank_test
from finetune.provenance.dataset_inference import infer, measured_texts, measures
from finetune.provenance.watermark import Watermark, new_grams, radioactivity

VOCABULARY = 400
CONTROLS = 40


def uniform(p_values: list[float]) -> float:
    """How well p-values fit a uniform distribution, by Kolmogorov and Smirnov."""
    return kstest(p_values, "uniform").pvalue


def test_a_gram_counts_once_and_never_where_the_text_holds_it():
    seen: set[tuple[int, ...]] = set()
    # after 5 comes 6 in the text itself before the second 5; the first time the text can't have told
    assert new_grams([5, 6, 5], [6, 9, 6], 1, seen) == [(5, 6), (6, 9)]
    assert new_grams([7, 8, 7], [4, 9, 8], 1, seen) == [(7, 4), (8, 9)]  # 7, 8 stands in the text
    assert new_grams([5], [6], 1, seen) == []  # counted in another text
    assert new_grams([1, 2, 3], [0, 3, 4], 2, set()) == [(1, 2, 3), (2, 3, 4)]
    assert new_grams([1, 2, 3, 1, 2], [0, 9, 4, 5, 3], 2, set()) == [(1, 2, 9), (2, 3, 4), (3, 1, 5)]


def writer(seed: int, scale: float = 6.0):
    """A tiny language model that is sure enough of itself to have favourites."""
    network = make_model("llama", AutoModelForCausalLM, seed, vocab_size=VOCABULARY, eos_token_id=None)
    with torch.no_grad():
        network.lm_head.weight.mul_(scale / network.lm_head.weight.std() / 4)
    return network


def written(network, watermark: Watermark, rows: int, length: int = 40) -> torch.Tensor:
    torch.manual_seed(watermark.key)
    starts = torch.randint(10, VOCABULARY, (rows, 1))
    return network.generate(
        starts, attention_mask=torch.ones_like(starts), do_sample=True, max_new_tokens=length, top_k=0,
        watermarking_config=watermark.config(), pad_token_id=0,
    )  # fmt: skip


def trace_of(network, watermark: Watermark, texts: torch.Tensor) -> dict:
    with torch.no_grad():
        likeliest = network(input_ids=texts).logits.argmax(-1)
    seen: set[tuple[int, ...]] = set()
    grams = [
        gram
        for ids, said in zip(texts.tolist(), likeliest.tolist(), strict=True)
        for gram in new_grams(ids, said, watermark.width, seen)
    ]
    return radioactivity(watermark, grams)


@pytest.mark.parametrize("scheme", ["greenlist", pytest.param("synthid", marks=pytest.mark.slow)])
def test_watermarks_of_models_that_never_saw_them_are_uniform(scheme):
    """Texts marked with each of many secrets, read by the very model that wrote them: its habits are the
    texts' own, but it was not trained on any."""
    network, found = writer(0), []
    for number in range(CONTROLS):
        watermark = Watermark(scheme, 15_485_863 + 7919 * number, 4.0, VOCABULARY, "")
        found.append(trace_of(network, watermark, written(network, watermark, 12, 12))["p"])
    assert uniform(found) > 0.01, np.sort(found)
    assert min(found) > 1e-4


@pytest.mark.parametrize("scheme", ["greenlist", pytest.param("synthid", marks=pytest.mark.slow)])
def test_a_model_trained_on_marked_rows_is_found(scheme):
    """A fifth of what it was trained on is marked."""
    source, watermark = writer(0), Watermark(scheme, 15_485_863, 4.0, VOCABULARY, "")
    other = Watermark(scheme, 1, 0.0, VOCABULARY, "")
    marked = written(source, watermark, 32)
    torch.manual_seed(1)
    starts = torch.randint(10, VOCABULARY, (128, 1))
    plain = source.generate(starts, do_sample=True, max_new_tokens=40, top_k=0, pad_token_id=0)
    trained = writer(3, 1.0)
    optimizer = torch.optim.AdamW(trained.parameters(), 3e-2)
    rows = torch.cat([marked, plain])
    for _ in range(60):
        loss = trained(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert trace_of(trained, watermark, marked)["p"] < 1e-3
    assert trace_of(trained, Watermark(scheme, other.key, 4.0, VOCABULARY, ""), marked)["p"] > 1e-3


def test_texts_without_a_window_are_named():
    with pytest.raises(InputError, match="The texts are too short"):
        radioactivity(Watermark("greenlist", 3, 2.0, VOCABULARY, ""), [])


def texts(rows: int = 30) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    drawn = np.random.default_rng(0).integers(0, 26, (rows, 12, 5))
    return [" ".join("".join(letters[i] for i in word) for word in row) for row in drawn]


def test_canaries_are_drawn_from_candidates():
    found = draw_canaries(texts(), 7, key=5)
    assert len(found) == 7 and all(len(set(one["texts"])) == CANDIDATES for one in found)
    assert draw_canaries(texts(), 7, key=5) == found != draw_canaries(texts(), 7, key=6)
    labelled = draw_canaries(texts(), 200, key=5, labels=["neg", "pos", "mixed"])
    assert all(sorted(one["labels"]) == ["mixed", "neg", "pos"] for one in labelled)
    first = [one["labels"][0] for one in labelled]
    assert min(first.count(label) for label in ("neg", "pos", "mixed")) > 40
    with pytest.raises(InputError, match="have 3 distinct words; wanted 50"):
        draw_canaries(["a b c"], 7, key=5)
    with pytest.raises(InputError, match="one label"):
        draw_canaries(texts(), 7, key=5, labels=["neg"])


def test_ranks_by_eye():
    # one canary, the cheapest of four: a chance of one in four; the dearest: certain
    assert rank_test(np.array([[0.0, 1, 2, 3]]))["p"] == pytest.approx(0.25)
    assert rank_test(np.array([[9.0, 1, 2, 3]]))["p"] == pytest.approx(1.0)
    # two, both the cheapest of four: 1 / 16; ranks 0 and 1: (1 + 2) / 16
    assert rank_test(np.array([[0.0, 1, 2, 3]] * 2))["p"] == pytest.approx(1 / 16)
    assert rank_test(np.array([[0.0, 1, 2, 3], [1.5, 1, 2, 3]]))["p"] == pytest.approx(3 / 16)


@pytest.mark.parametrize("candidates", [2, 20])
def test_canaries_that_nobody_planted_are_uniform(candidates):
    generator = np.random.default_rng(0)
    # the sum of a few coins takes few values, whose p are too large, and never too small
    many = 800 // candidates
    found = [rank_test(generator.normal(size=(many, candidates)), seed)["p"] for seed in range(CONTROLS)]
    assert uniform(found) > 0.01
    tied = [rank_test(np.zeros((many, candidates)), seed)["p"] for seed in range(CONTROLS)]
    assert uniform(tied) > 0.01


def costs(generator: np.random.Generator, rows: int, known: float = 0.0) -> np.ndarray:
    parts = []
    for text in texts(rows):
        nats = generator.gamma(2.0, 1.5, 40) * (1 - known)
        parts.append((nats, text))
    return measured_texts(parts)


def test_sets_that_a_model_knows_alike_are_uniform():
    generator = np.random.default_rng(0)
    found = [infer(costs(generator, 60), costs(generator, 60), seed)["p"] for seed in range(CONTROLS)]
    assert uniform(found) > 0.01
    known = infer(costs(generator, 100, 0.15), costs(generator, 100))
    assert known["p"] < 1e-3 and known["auc"] > 0.6
    with pytest.raises(InputError, match="Got 5 own texts; wanted 20"):
        infer(costs(generator, 5), costs(generator, 60))


def test_measures_by_eye():
    found = measures(np.array([1.0, 2.0, 3.0, 4.0] * 5), "aaaa")
    assert found[0] == 2.5 and found[3:7] == [4.0, 4.0, 4.0, pytest.approx(3.625)]
    assert found[7:11] == [1.0, 1.0, 1.0, pytest.approx(1.375)]
