"""Tags of words, sets of labels, numbers and choices: rows spelled out, features read by eye."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import make_tokenizer
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune.data import collate
from finetune.data.columns import Columns
from finetune.errors import InputError
from finetune.tasks import choice, multilabel, regression, tokens, windows

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ers", "ann", "##a", "in", "rome", "x"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
FEATURES = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
COLUMNS = Columns("tokens", None, "ner_tags")


@pytest.fixture
def pieces() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose every piece can be read off: anna → ann ##a."""
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tagged(*rows: tuple[list[str], list[str]]) -> Dataset:
    return Dataset.from_dict(
        {
            "tokens": [words for words, _ in rows],
            "ner_tags": [[TAGS.index(tag) for tag in tags] for _, tags in rows],
        },
        features=FEATURES,
    )


def test_a_tag_stands_on_the_first_piece_of_its_word(pieces):
    rows = tagged((["anna", "playing", "in", "rome"], ["B-PER", "O", "O", "B-LOC"]))
    (row,) = tokens.encode(rows, COLUMNS, pieces, 16, TAGS)
    assert pieces.convert_ids_to_tokens(row["input_ids"]) == [
        "[CLS]",
        "ann",
        "##a",
        "play",
        "##ing",
        "in",
        "rome",
        "[SEP]",
    ]
    assert row["labels"] == [-100, 1, -100, 0, -100, 0, 3, -100]
    assert row["words"] == [-1, 0, -1, 1, -1, 2, 3, -1]
    assert (row["row"], row["length"]) == (0, 8)


def test_labels_follow_names_not_ids(pieces):
    rows = tagged((["rome"], ["B-LOC"]))
    (row,) = tokens.encode(rows, COLUMNS, pieces, 16, ["B-LOC", "O", "B-PER", "I-PER"])
    assert row["labels"] == [-100, 0, -100]


def test_every_word_of_a_long_row_is_labelled_in_one_window(pieces, caplog):
    words = ["anna", "playing", "in", "rome", "x", "players", "in", "anna", "x", "rome"]
    rows = tagged((["x"], ["O"]), (words, ["B-PER", "O", "O", "B-LOC", "O", "O", "O", "B-PER", "O", "B-LOC"]))
    features = tokens.encode(rows, COLUMNS, pieces, 8, TAGS, stride=3)
    assert max(features["length"]) <= 8
    assert features["row"][:][0] == 0 and set(features["row"][1:]) == {1}
    owned = [word for row in features.select(range(1, len(features))) for word in row["words"] if word >= 0]
    assert owned == list(range(10))
    for row in features:  # each labelled piece begins the word that it says
        for piece, word, label in zip(row["input_ids"], row["words"], row["labels"], strict=True):
            assert (label >= 0) == (word >= 0)
            if word >= 0 and row["row"] == 1:
                assert words[word].startswith(PIECES[piece])
    assert "1 of 2 rows are longer than 8 tokens" in caplog.text


def test_windows_by_eye():
    # words begin at 0, 2, 3, 5, 6 of eight tokens; windows of four that share two
    assert windows.split_windows([0, 2, 3, 5, 6], 8, 4, 2) == [(0, 3, 0, 2), (2, 6, 2, 5), (5, 8, 5, 8)]
    assert windows.split_windows([0, 1], 3, 4, 2) == [(0, 3, 0, 3)]
    # one word of nine tokens alone: it is cut where it must, and begins in one window only
    assert windows.split_windows([0], 9, 4, 1) == [(0, 4, 0, 4), (4, 8, 4, 8), (8, 9, 8, 9)]


def test_windows_own_every_token_once():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        total, room = (
            int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((1, 60), (2, 20))
        )
        stride = int(torch.randint(0, room, (1,), generator=generator))
        firsts = sorted({0, *torch.randint(0, total, (total // 2,), generator=generator).tolist()})
        found = windows.split_windows(firsts, total, room, stride)
        assert [first for _, _, first, _ in found[1:]] == [last for *_, last in found[:-1]]
        assert found[0][2] == 0 and found[-1][3] == total
        assert all(start <= first <= last <= end <= start + room for start, end, first, last in found)


def test_pieces_that_begin_with_a_space_and_dropped_words():
    # byte-level tokenizers may count the space before a word to its first token; some tokenizers drop signs
    # altogether
    assert tokens.first_pieces(["ab", "cd", "e"], [(0, 2), (2, 4), (4, 5), (5, 7)]) == [0, 1, 3]
    assert tokens.first_pieces(["ab", "\u200b", "cd"], [(0, 2), (5, 7)]) == [0, None, 1]


def test_a_byte_level_tokenizer_finds_the_same_words():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["anna plays in rome"] * 5,
        trainers.BpeTrainer(vocab_size=280, show_progress=False, special_tokens=["<pad>", "<eos>"]),
    )
    processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    (row,) = tokens.encode(
        tagged((["anna", "in", "rome"], ["B-PER", "O", "B-LOC"])), COLUMNS, processor, 32, TAGS
    )
    starts = [
        processor.decode(row["input_ids"][place:]).strip()
        for place, word in enumerate(row["words"])
        if word >= 0
    ]
    assert starts == ["anna in rome", "in rome", "rome"]


def test_a_row_that_no_token_is_left_of_is_refused(pieces):
    pieces.backend_tokenizer.normalizer = None
    dropping = make_tokenizer("bert")
    dropping.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    rows = tagged((["a"], ["O"]), ([" "], ["O"]))
    with pytest.raises(InputError, match="Row 1 has no token"):
        tokens.encode(rows, COLUMNS, dropping, 16, TAGS)


def test_a_stride_that_leaves_no_room_is_refused(pieces):
    with pytest.raises(InputError, match="--stride 14 leaves nothing of 14 tokens"):
        tokens.encode(tagged((["x"], ["O"])), COLUMNS, pieces, 16, TAGS, stride=14)


def test_token_labels_are_padded_as_ignored(pieces):
    rows = tagged((["anna", "x"], ["B-PER", "O"]), (["x"], ["O"]))
    batch = collate.token_labels(pieces)(list(tokens.encode(rows, COLUMNS, pieces, 16, TAGS)))
    assert batch["input_ids"].tolist() == [[2, 7, 8, 11, 3], [2, 11, 3, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 1, -100, 0, -100], [-100, 0, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["row"].tolist() == [0, 1]


def test_sets_of_labels_become_zeros_and_ones():
    rows = Dataset.from_dict({"text": ["a film", "the story", "good"], "labels": [["b", "a"], [], ["c"]]})
    features = multilabel.encode(
        rows, Columns("text", None, "labels"), make_tokenizer("bert"), 16, ["a", "b", "c"]
    )
    assert features["labels"][:] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert collate.sequences(make_tokenizer("bert"))(list(features))["labels"].dtype == torch.float32


def test_numbers_stay_numbers():
    rows = Dataset.from_dict(
        {"text": ["a film", "good"], "pair": ["film", "a good story"], "score": [1, 4.5]}
    )
    features = regression.encode(rows, Columns("text", "pair", "score"), make_tokenizer("bert"), 16, None)
    assert features["labels"][:] == [1.0, 4.5]
    assert features["length"][:] == [6, 7]


def test_each_choice_is_read_with_its_text(caplog):
    processor = make_tokenizer("bert")
    rows = Dataset.from_dict(
        {
            "text": ["a film story actor was", "good"],
            "choices": [["good", "bad great"], ["a", "b", "c"]],
            "answer": [1, 2],
        }
    )
    with caplog.at_level(logging.WARNING):
        features = choice.encode(rows, Columns("text", "choices", "answer"), processor, 8, None)
    first = [processor.convert_ids_to_tokens(ids) for ids in features[0]["input_ids"]]
    assert first == [
        [
            "[CLS]",
            "a",
            "film",
            "story",
            "actor",
            "[SEP]",
            "good",
            "[SEP]",
        ],  # the text is cut, never the choice
        ["[CLS]", "a", "film", "story", "[SEP]", "bad", "great", "[SEP]"],
    ]
    assert "1 of 2 texts are longer" in caplog.text
    batch = choice.collate(processor)(list(features))
    assert batch["choices"].tolist() == [2, 3] and batch["input_ids"].shape == (5, 8)
    assert batch["labels"].tolist() == [1, 2] and batch["row"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "offered", "message"),
    [
        ("good", ["bad " * 5, "fine"], "has 5 tokens, which leaves no room for the text within 8"),
        ("\u200b", ["bad", "fine"], "nothing is left of the text"),
        ("good", ["\u200b", "fine"], "nothing is left of the text"),
    ],
)
def test_choices_of_which_nothing_is_left_are_refused(text, offered, message):
    processor = make_tokenizer("bert")
    processor.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    rows = Dataset.from_dict({"text": [text], "choices": [offered], "answer": [1]})
    with pytest.raises(InputError, match=message):
        choice.encode(rows, Columns("text", "choices", "answer"), processor, 8, None)
