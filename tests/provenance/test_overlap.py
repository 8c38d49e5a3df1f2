"""What of one set stands in another: by eye, beside a plain count, and as a user asks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset

from finetune.errors import InputError
from finetune.provenance.compared import OverlapArguments, compare_sets, text_columns, texts_of_rows
from finetune.provenance.overlap import overlaps, words_of

GENERATOR = np.random.default_rng(0)
WORDS = ["".join(GENERATOR.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(500)]


def text(words: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def test_equal_near_and_shared_passages():
    first = [text(60, seed) for seed in range(50)]
    words = first[7].split()
    changed = " ".join([*words[:30], "other", *words[31:]])  # 5 of 56 runs of 5 words differ on either side
    passage = " ".join([text(40, 901), *words[10:23], text(40, 902)])
    short = " ".join([text(40, 903), *words[10:22], text(40, 904)])  # 12 words are no passage
    second = [first[3].upper() + "!", changed, passage, short, text(60, 900), "", first[9][:20]]
    found = list(overlaps(first, second, near=0.8))
    assert (found[0].exact, found[0].near, found[0].likeness) == (3, 3, 1.0)
    assert found[1].exact is None and found[1].near == 7
    assert found[1].likeness == pytest.approx(51 / 61)
    assert found[1].passage == 7 and found[1].shared == pytest.approx(35 / 48)
    assert found[2].near is None and found[2].passage == 7
    assert found[2].shared == pytest.approx(1 / 81)
    assert [one.is_found for one in found[3:]] == [False] * 4
    assert not next(overlaps(first, [changed], near=0.9)).near


def test_words_are_those_of_any_script():
    assert words_of("Café, CAFE\u0301!") == words_of("cafe\u0301 ＣＡＦＥ\u0301") == ["café"] * 2
    assert words_of("Straße") == words_of("STRASSE")
    assert words_of("今天天气 good") == ["今", "天", "天", "气", "good"]
    assert words_of("कि की") == ["कि", "की"]  # other vowels, other words
    assert words_of("ไปไหน") == ["ไ", "ป", "ไ", "ห", "น"]
    assert words_of("한국어 문장") == ["한국어", "문장"]
    assert words_of("🙂🙂 :)") == ["🙂🙂", ":)"] and words_of(" \n") == []


def test_texts_without_blanks_have_near_ones_and_passages():
    letters = [chr(0x4E00 + number) for number in np.random.default_rng(2).permutation(2000)[:120]]
    line = "".join(letters)
    near, part = line[:60] + "一" + line[61:], "".join(chr(0x8000 + n) for n in range(40)) + line[20:34]
    found = list(overlaps([line, "🙂🙂"], [near, part, "🙂🙂", "🙂"], near=0.8))
    assert found[0].exact is None and found[0].near == 0
    assert found[1].near is None and found[1].passage == 0
    assert found[2].exact == 1 and not found[3].is_found


def test_columns_that_one_set_alone_has_are_not_compared(tmp_path, capsys):
    texts = [text(20, seed) for seed in range(8)]
    (tmp_path / "mine.jsonl").write_text(
        "\n".join(json.dumps({"title": text(9, 70 + n), "text": one}) for n, one in enumerate(texts))
    )
    counts, _ = compare_sets(
        OverlapArguments(str(tmp_path / "mine.jsonl"), write(tmp_path / "theirs.jsonl", texts[:4]))
    )
    assert counts["exact"] == counts["rows"] == 4
    assert "compared: text ↔ text" in capsys.readouterr().out


def test_near_texts_are_those_of_a_plain_count():
    """Every pair of 200 texts of which many are alike, beside Jaccard's share counted by sets."""
    base = [text(30, seed) for seed in range(20)]
    generator = np.random.default_rng(1)

    def worn(words: list[str]) -> str:
        return " ".join(word if generator.random() > 0.02 else "x" for word in words)

    first = [worn(one.split()) for one in base for _ in range(5)]
    second = [worn(one.split()) for one in base for _ in range(5)]

    def runs(one: str) -> set[tuple[str, ...]]:
        words = one.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    wanted = []
    for one in second:
        wanted.append(max(len(runs(one) & runs(other)) / len(runs(one) | runs(other)) for other in first))
    found = [one.likeness for one in overlaps(first, second, near=0.7)]
    far = [place for place, share in enumerate(wanted) if share >= 0.7]
    assert len(far) > 30
    assert [found[place] for place in far] == pytest.approx([wanted[place] for place in far])
    assert all(mine <= theirs + 1e-9 for mine, theirs in zip(found, wanted, strict=True))


def test_columns_with_texts_are_read_and_labels_are_not():
    rows = Dataset.from_dict(
        {
            "label": ["pos", "neg"] * 30,
            "text": [text(8, seed) for seed in range(60)],
            "messages": [[{"role": "user", "content": text(5, 100 + seed)}] for seed in range(60)],
        }
    )
    assert text_columns(rows) == ["text", "messages"]
    assert texts_of_rows(rows, ["text"]) == rows["text"][:]
    with pytest.raises(InputError, match="No column 'body'; the rows have label, text"):
        text_columns(rows, ["body"])


def write(file, rows):
    file.write_text("\n".join(json.dumps({"text": one, "label": "a"}) for one in rows))
    return str(file)


def test_two_files_are_compared(tmp_path, capsys):
    first = [text(20, seed) for seed in range(20)]
    mine = write(tmp_path / "mine.jsonl", first)
    theirs = write(tmp_path / "theirs.jsonl", [text(20, 99), first[4], first[5] + " more"])
    counts, entries = compare_sets(OverlapArguments(mine, theirs))
    assert counts == {"rows": 3, "exact": 1, "near": 2, "passage": 2, "found": 2}
    assert [(one["kind"], one["row"], one["in"]) for one in entries] == [
        ("exact", "row 1", "row 4"), ("near", "row 2", "row 5"),
    ]  # fmt: skip
    from finetune.cli.command import run

    run(["overlap", mine, theirs, "--at_most", "0.7", "--output_file", str(tmp_path / "found.jsonl")])
    assert "2 (66.67%) any of these" in capsys.readouterr().out
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 2
    with pytest.raises(SystemExit) as left:
        run(["overlap", mine, theirs, "--at_most", "0.5"])
    assert left.value.code == 1


def test_what_cannot_be_compared_is_named(tmp_path):
    mine = write(tmp_path / "mine.jsonl", [text(20, 1)] * 5)
    for given, said in (
        ({}, "Two data sets are wanted"),
        ({"first": mine}, "has no other split than 'train'"),
        ({"first": mine, "second": str(tmp_path / "no.jsonl")}, "No file or folder"),
        ({"first": mine, "near": 0.3}, "wanted a share from 0.6 to 1"),
    ):
        with pytest.raises(InputError, match=said):
            compare_sets(OverlapArguments(**given))
