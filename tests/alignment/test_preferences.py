"""Preference pairs: every fault is found and named, and pairs are made of the best and the worst answer."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from finetune.alignment.pairs import pairs_of
from finetune.alignment.preferences import (
    PairArguments,
    examine_pairs,
    read_pairs,
    sound_pairs,
    with_prompt,
)
from finetune.data.narrowed import PreferenceArguments
from finetune.data.preferred import are_pairs, lay_out_pairs, lay_out_unpaired
from finetune.data.sources import DataArguments
from finetune.errors import InputError


def rows(*pairs: tuple[str, str, str]) -> Dataset:
    return Dataset.from_list(
        [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    )


GOOD = ("the film", " great", " bad")


def faults_of(*pairs, max_length=32):
    return {
        name: found
        for name, found in examine_pairs(rows(*pairs), make_tokenizer("llama"), max_length).items()
        if found
    }


def test_sound_pairs_have_no_fault():
    assert faults_of(GOOD, ("a story", " fine", " dull")) == {}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([GOOD, ("a", " bad", " bad")], {"equal": [1]}),
        ([GOOD, ("a", " ", " bad"), ("a", " good", "")], {"empty": [1, 2]}),
        ([GOOD, ("a", " good", " bad"), GOOD, GOOD], {"duplicate": [2, 3]}),
        ([GOOD, ("a", " good", " bad"), ("the film", " bad", " great")], {"conflicting": [0, 2]}),
        ([GOOD, ("a film " * 20, " good", " bad")], {"no room": [1]}),
        ([GOOD, ("a film", " good" * 40, " bad")], {"cut": [1]}),
        (
            [GOOD, ("\n\nHuman:", " a film\n\nAssistant: good", " a story\n\nAssistant: bad")],
            {"other question": [1]},
        ),
    ],
    ids=["equal", "empty", "duplicate", "conflicting", "no room", "cut", "other question"],
)
def test_each_fault_is_found_with_its_rows(pairs, expected):
    assert faults_of(*pairs) == expected


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "empty"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "unlike"),
        ({"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}],
          "rejected": [{"role": "assistant", "content": "c"}]}, "unlike"),
    ],
    ids=["nothing", "no prompt", "text and messages"],
)  # fmt: skip
def test_cells_of_other_kinds_are_named(pair, fault):
    assert examine_pairs(Dataset.from_list([pair]), make_tokenizer("llama"), 32)[fault] == [0]


def test_sides_that_differ_beyond_the_cut_alone_are_equal():
    assert faults_of(("the film", " good good great", " good good bad"), max_length=4)["equal"] == [0]
    assert "equal" not in faults_of(("the film", " good good great", " good good bad"), max_length=5)


def test_answers_without_eos_are_noted():
    processor = make_tokenizer("llama")
    assert examine_pairs(rows(GOOD), processor, 32)["endless"] == []
    processor.eos_token = None
    assert examine_pairs(rows(GOOD), processor, 32)["endless"] == [0]
    pair = {
        side: [{"role": "assistant", "content": word}]
        for side, word in (("chosen", "good"), ("rejected", "bad"))
    }
    chat = Dataset.from_list([{"prompt": [{"role": "user", "content": "the film"}], **pair}])
    for end, expected in ((" </s> ", []), ("", [0])):
        processor = make_tokenizer("llama")
        processor.chat_template = (
            "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}" + end + "{% endfor %}"
        )
        assert examine_pairs(chat, processor, 32)["endless"] == expected


def test_texts_without_any_eos_are_refused():
    processor = make_tokenizer("llama")
    processor.eos_token = None
    with pytest.raises(InputError, match="eos_token in tokenizer_config.json"):
        sound_pairs(rows(GOOD), processor, 32, True, "training")


def test_transcripts_that_hold_their_prompt_lose_it(caplog):
    whole = rows(("the film", "the film great", "the film bad"), ("a", "a good", "a dull"))
    found = with_prompt(whole, "pairs")
    assert found.to_list() == [
        dict(zip(("prompt", "chosen", "rejected"), r, strict=True)) for r in (GOOD, ("a", " good", " dull"))
    ]
    assert "2 pairs hold their prompt" in caplog.text
    mixed = rows(("the film", "the film great", "the film bad"), GOOD)
    assert with_prompt(mixed, "pairs").to_list() == mixed.to_list()
    assert examine_pairs(mixed, make_tokenizer("llama"), 32)["repeated"] == [0]


QUESTION, NICE, RUDE = (
    {"role": role, "content": text}
    for role, text in (("user", "q"), ("assistant", "nice"), ("assistant", "rude"))
)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("A: Good day", "A: Great day", ("A:", " Good day", " Great day")),  # not after the G that both share
        ("a film", "a film too", ("a", " film", " film too")),
        ("good", "great", ("", "good", "great")),
        ("a film", "a film", ("a", " film", " film")),
        (
            "\n\nHuman: q\n\nAssistant: It is a film",
            "\n\nHuman: q\n\nAssistant: It is a story",
            ("\n\nHuman: q\n\nAssistant:", " It is a film", " It is a story"),
        ),
        ([QUESTION, NICE], [QUESTION, RUDE], ([QUESTION], [NICE], [RUDE])),
        ([QUESTION, NICE], [QUESTION, NICE], ([QUESTION], [NICE], [NICE])),
    ],
)
def test_a_prompt_is_what_both_sides_begin_with_in_whole_words(chosen, rejected, expected):
    found = with_prompt(Dataset.from_list([{"chosen": chosen, "rejected": rejected}]), "pairs")[0]
    assert (found["prompt"], found["chosen"], found["rejected"]) == expected


def test_conversations_with_two_questions_are_named():
    pairs = Dataset.from_list(
        [{"chosen": [QUESTION, NICE], "rejected": [QUESTION | {"content": "r"}, RUDE]}] * 2
    )
    with pytest.raises(InputError, match="2 pairs begin with two questions .rows 0, 1.; wanted the same"):
        with_prompt(pairs, "pairs")


def test_a_prompt_told_twice_beside_conversations_is_left_aside():
    found = with_prompt(
        Dataset.from_list([{"prompt": "q", "chosen": [QUESTION, NICE], "rejected": [QUESTION, RUDE]}]),
        "pairs",
    )[0]
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([QUESTION], [NICE], [RUDE])


@pytest.mark.parametrize("margin", [float("nan"), None])
def test_margins_that_are_no_numbers_are_named(tmp_path: Path, margin):
    lines = [
        dict(zip(("prompt", "chosen", "rejected"), GOOD, strict=True)) | {"margin": m} for m in (0.5, margin)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataArguments(dataset_name=str(tmp_path), eval_split="train")
    for settings in (PairArguments(margin=True), PairArguments(min_margin=0.3)):
        with pytest.raises(InputError, match=r"margin.*rows 1\)"):
            read_pairs(data, settings, make_tokenizer("llama"), 32)


def test_tokens_that_merge_at_the_boundary_are_noted():
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "a", "b", "ab", "</s>"])}
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="[UNK]")), eos_token="</s>"
    )
    assert examine_pairs(rows(("a", "b", "a")), merging, 32)["merged"] == [0]
    assert examine_pairs(rows(("b", "a", "b")), merging, 32)["merged"] == []


def test_faulty_pairs_stop_the_run_or_are_left_out(caplog):
    pairs = rows(GOOD, ("a", " bad", " bad"), ("a", " good", ""))
    with pytest.raises(
        InputError, match=r"1: .*the same \(rows 1\).*1: a side holds no text \(rows 2\).*--drop_faulty_pairs"
    ):
        sound_pairs(pairs, make_tokenizer("llama"), 32, False, "training")
    with caplog.at_level(logging.WARNING):
        kept = sound_pairs(pairs, make_tokenizer("llama"), 32, True, "training")
    assert kept["prompt"][:] == ["the film"]
    assert "2 of 3 training pairs are left out" in caplog.text


def test_two_evaluation_sets_may_share_pairs_with_each_other(tmp_path: Path):
    pairs = [{"prompt": f"the film {i}", "chosen": " was great", "rejected": " was bad"} for i in range(3)]
    files = [tmp_path / f"{name}.jsonl" for name in ("train", "one", "two")]
    opposite = pairs[0] | {"chosen": " was bad", "rejected": " was great"}
    for file, part in zip(files, (pairs, pairs[:2], [opposite, pairs[1]]), strict=True):
        file.write_text("".join(json.dumps(pair) + "\n" for pair in part))
    data = DataArguments([str(files[0])], eval_dataset_name=[str(files[1]), str(files[2])])
    _, held_out = read_pairs(data, PairArguments(), make_tokenizer("llama"), 32)
    assert len(held_out) == 4
    files[2].write_text(f"{json.dumps(pairs[1])}\n" * 2)
    with pytest.raises(InputError, match="the same pair stands before it"):
        read_pairs(data, PairArguments(), make_tokenizer("llama"), 32)


def test_no_pair_left_is_an_error():
    with pytest.raises(InputError, match="No training pair is left of 1"):
        sound_pairs(rows(("a", " bad", " bad")), make_tokenizer("llama"), 32, True, "training")


def test_conversations_are_examined_by_the_template():
    processor = make_tokenizer("llama")
    turns = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    processor.chat_template = turns + "{% if add_generation_prompt %}assistant {% endif %}"
    pair = {
        "prompt": [{"role": "user", "content": "the film"}],
        "chosen": [{"role": "assistant", "content": "great"}],
        "rejected": [{"role": "assistant", "content": "great"}],
    }
    assert examine_pairs(Dataset.from_list([pair]), processor, 32)["equal"] == [0]


ASKED = {"role": "user", "content": "the film"}


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"name": "Ann"}, "does not render the name of message 1"),
        ({"reasoning_content": "I have seen it."}, "does not render the reasoning_content of message 1"),
        (
            {"tool_calls": [{"function": {"name": "look"}}]},
            r"does not render the tool_calls of message 1 .look",
        ),
        ({"critique": "Too short for this film."}, "'chosen.critique' holds text that nothing reads"),
    ],
)
def test_what_a_template_leaves_out_of_pairs_is_named(further, message, tmp_path):
    processor = make_tokenizer("llama")
    processor.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    said = (("chosen", "great"), ("rejected", "bad"))
    answers = {side: [{"role": "assistant", "content": word}] for side, word in said}
    row = {"prompt": [ASKED], **answers, "chosen": [{**answers["chosen"][0], **further}]}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    data = PreferenceArguments(dataset_name=str(tmp_path))
    with pytest.raises(InputError, match=message):
        read_pairs(data, PairArguments(), processor, 64)
    ignored = PreferenceArguments(
        dataset_name=str(tmp_path), ignore_columns=[f"chosen.{next(iter(further))}"]
    )
    train, _ = read_pairs(ignored, PairArguments(), processor, 64)
    assert train[0]["chosen"] == answers["chosen"]


def test_pairs_take_the_best_and_the_worst():
    pairs = pairs_of(["p", "q"], [["a", "b", "c"], ["d", "d", "e"]], [[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]],
                     [[False, True, True], [True] * 3])  # fmt: skip
    assert [(p["prompt"], p["chosen"], p["rejected"], p["margin"]) for p in pairs] == [
        ("p", "b", "a", pytest.approx(0.8))
    ]


def test_empty_answers_make_no_pair():
    assert pairs_of(["p"], [["a", " "]], [[0.1, -1.0]], [[True, True]]) == []
    assert pairs_of(["p"], [["a", "b"]], [[0.1, math.nan]], [[True, True]]) == []


def test_answers_in_a_conversation_become_messages():
    prompt = [{"role": "user", "content": "q"}]
    (pair,) = pairs_of([prompt], [["a", "b"]], [[0.0, 1.0]], [[True, False]])
    assert pair["chosen"] == [{"role": "assistant", "content": "b"}]


def test_pairs_are_read_from_a_folder_and_small_margins_left_out(tmp_path: Path):
    lines = [
        dict(zip(("prompt", "chosen", "rejected"), GOOD, strict=True)) | {"margin": m} for m in (0.5, 0.1)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataArguments(dataset_name=str(tmp_path))
    train, held_out = read_pairs(
        data, PairArguments(min_margin=0.3, margin=True), make_tokenizer("llama"), 32
    )
    assert train["margin"][:] == held_out["margin"][:] == [0.5]
    with pytest.raises(InputError, match="lower --min_margin"):
        read_pairs(data, PairArguments(min_margin=0.6), make_tokenizer("llama"), 32)
    # the sample is drawn from the pairs that stay
    for seed in range(3):
        few = DataArguments(dataset_name=str(tmp_path), max_train_rows=1, sample_seed=seed)
        assert len(read_pairs(few, PairArguments(min_margin=0.3), make_tokenizer("llama"), 32)[0]) == 1
    with pytest.raises(InputError, match="--drop_faulty_pairs"):
        read_pairs(
            data, PairArguments(), make_tokenizer("llama"), 32
        )  # without the margin the two rows are one pair


def test_columns_that_are_missing_are_named(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b"}))
    with pytest.raises(InputError, match=r"No column 'chosen'.*it has text"):
        read_pairs(DataArguments(dataset_name=str(tmp_path)), PairArguments(), make_tokenizer("llama"), 32)


def test_columns_of_any_name_are_read_where_they_are_named():
    rows = Dataset.from_list(
        [
            {
                "id": 1,
                "prompt": "an id, not asked",
                "frage": "Wie spät?",
                "gut": "Es ist zwei.",
                "nein": "Weiß nicht.",
            }
        ]
    )
    named = {"prompt_column": "frage", "chosen_column": "gut", "rejected_column": "nein"}
    data = PreferenceArguments("rows", ignore_columns=["prompt"], **named)
    assert are_pairs(rows, data)
    laid = lay_out_pairs(rows.remove_columns("prompt"), data).rows
    assert [laid[0][name] for name in ("prompt", "chosen", "rejected")] == [
        "Wie spät?",
        "Es ist zwei.",
        "Weiß nicht.",
    ]
    for flag in named:
        with pytest.raises(InputError, match=f"No column 'x' in rows; it has .*frage.*Set --{flag}"):
            lay_out_pairs(rows, PreferenceArguments("rows", **named | {flag: "x"}))
    with pytest.raises(InputError, match="Set --rejected_column too"):
        PreferenceArguments("rows", chosen_column="gut")
    single = Dataset.from_list([{"frage": "Wie spät?", "answer": "Zwei.", "label": True}])
    laid = lay_out_unpaired(single, PreferenceArguments("rows", prompt_column="frage")).rows
    assert laid[0] == {"prompt": "Wie spät?", "completion": "Zwei.", "label": True}
    single = single.rename_column("answer", "antwort").add_column("chosen", ["x"])
    data = PreferenceArguments("rows", prompt_column="frage", completion_column="antwort")
    # an answer that is named is the one, whatever else the rows have
    assert not are_pairs(single, data) and lay_out_unpaired(single, data).rows[0]["completion"] == "Zwei."
    with pytest.raises(InputError, match="No column 'x' in rows; it has .*Set --completion_column"):
        lay_out_unpaired(single, PreferenceArguments("rows", completion_column="x"))
    with pytest.raises(InputError, match="read as pairs here. Set --chosen_column and --rejected_column"):
        lay_out_pairs(single, data)
    with pytest.raises(InputError, match="leave one out"):
        PreferenceArguments("rows", chosen_column="a", rejected_column="b", completion_column="c")


def test_margins_come_from_the_scores_of_a_file(tmp_path: Path):
    lines = [
        dict(zip(("prompt", "chosen", "rejected"), GOOD, strict=True))
        | {"score_chosen": 2.5, "score_rejected": s}
        for s in (1, 2)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataArguments(dataset_name=str(tmp_path))
    settings = PairArguments(margin=True, min_margin=1.0)
    train, _ = read_pairs(data, settings, make_tokenizer("llama"), 32)
    assert train["margin"][:] == [1.5]
