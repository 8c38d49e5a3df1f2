"""Several data sets in one run keep names that tell them apart."""

from __future__ import annotations

from finetune.data.places import short_names


def test_sets_are_told_apart_by_as_little_of_their_names_as_it_takes():
    assert short_names(["a/one.csv", "b/two.csv", "a/one.csv"]) == ["one.csv", "two.csv", "one.csv"]
    assert short_names(["x/a/test.jsonl", "x/b/test.jsonl"]) == ["a/test.jsonl", "b/test.jsonl"]
    three = ["test.jsonl", "b/test.jsonl", "c/one.csv"]
    assert short_names(three) == three
    assert short_names(["stanfordnlp/imdb"]) == ["imdb"] and short_names([]) == []
