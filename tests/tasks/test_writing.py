"""Sources and targets of models that write, read by eye."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune.data import collate
from finetune.data.columns import Columns
from finetune.errors import InputError
from finetune.tasks import seq2seq

COLUMNS = Columns("source", None, "target")
EOS = 6


def rows(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"source": [a for a, _ in pairs], "target": [b for _, b in pairs]})


def words(processor, ids):
    return processor.convert_ids_to_tokens(ids)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of GPT-2's kind, whose spaces belong to the word behind them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["a review. positive\n\n positive", "negative\n\n negative: positive"] * 5
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=320, show_progress=False, special_tokens=["<pad>", "<eos>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def test_source_and_target_of_an_encoder_decoder():
    processor = make_tokenizer("t5")
    (row,) = seq2seq.encode_targets(
        rows(("the film was great", "good film")), COLUMNS, processor, 16, None, source_prefix="story "
    )
    assert words(processor, row["input_ids"]) == ["story", "the", "film", "was", "great", "</s>"]
    assert words(processor, row["labels"]) == ["good", "film", "</s>"]
    assert row["length"] == 9


def test_eos_is_there_once_whoever_puts_it():
    assert seq2seq.ended([8, 9, EOS], 8, EOS) == [8, 9, EOS]
    assert seq2seq.ended([8, 9], 8, EOS) == [8, 9, EOS]
    assert seq2seq.ended([8, 9, EOS], 3, EOS) == [8, 9, EOS]
    assert seq2seq.ended([8, 9, 10, EOS], 3, EOS) == [8, 9, 10]  # cut: no stop in mid-sentence
    assert seq2seq.ended([], 3, EOS) == [EOS]
    assert seq2seq.ended([8, 9, 10], 2, None) == [8, 9]


def test_a_decoder_learns_the_target_and_its_end():
    processor = make_tokenizer("llama")
    (row,) = seq2seq.encode_continuations(
        rows(("the film", "good film")),
        COLUMNS,
        processor,
        16,
        None,
        max_target_length=8,
        source_suffix=" is",
    )
    assert words(processor, row["input_ids"]) == ["the", "film", "is", "good", "film"]
    assert row["labels"] == [
        -100,
        -100,
        *processor.convert_tokens_to_ids(["good", "film", "</s>"]),
    ]  # the token that comes next
    assert row["prompt"] == 3 and row["length"] == 5


def test_a_long_source_never_swallows_suffix_or_target(caplog):
    processor = make_tokenizer("llama")
    text = "the film was good and the actor was great"
    (row,) = seq2seq.encode_continuations(
        rows((text, "loved it")), COLUMNS, processor, 8, None, max_target_length=4, source_suffix=" is it"
    )
    assert words(processor, row["input_ids"]) == ["the", "film", "was", "good", "is", "it", "loved", "it"]
    assert row["labels"][-1] == EOS
    assert "1 of 1 texts are longer" in caplog.text


def test_a_long_target_is_cut_without_an_end_and_counted_apart(caplog):
    processor = make_tokenizer("llama")
    (row,) = seq2seq.encode_continuations(
        rows(("a", "the film was good")), COLUMNS, processor, 16, None, max_target_length=3, source_suffix=""
    )
    assert words(processor, [t for t in row["labels"] if t >= 0]) == ["the", "film", "was"]
    assert "1 of 1 targets are longer than 3 tokens" in caplog.text and "texts are longer" not in caplog.text
    assert "no end to learn (rows 0; --max_target_length)" in caplog.text
    bart = make_tokenizer("bart")
    (whole,) = seq2seq.encode_targets(
        rows(("a", "the film was")), COLUMNS, bart, 16, None, max_target_length=4
    )
    (cut,) = seq2seq.encode_targets(rows(("a", "the film was")), COLUMNS, bart, 16, None, max_target_length=3)
    assert whole["labels"][:3] == cut["labels"] and whole["labels"][3] == bart.eos_token_id


@pytest.mark.parametrize("suffix", ["\n\n", "", ":", " ", "\n\n "])
def test_tokens_are_the_same_together_and_apart(byte_level, suffix):
    """A prompt that is tokenised alone at generation has the tokens that it was trained with."""
    source, target = "a review.", "positive"
    (row,) = seq2seq.encode_continuations(
        rows((source, target)), COLUMNS, byte_level, 64, None, max_target_length=16, source_suffix=suffix
    )
    prompt = source + suffix.rstrip(" ")
    assert row["input_ids"][: row["prompt"]] == byte_level(prompt)["input_ids"]
    whole = byte_level(f"{prompt} {target}")["input_ids"]
    assert row["input_ids"] == whole and [t for t in row["labels"] if t >= 0] == [
        *whole[row["prompt"] :],
        byte_level.eos_token_id,
    ]


def test_a_tokenizer_without_end_is_refused():
    processor = make_tokenizer("llama")
    processor.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        seq2seq.encode_continuations(rows(("a", "b")), COLUMNS, processor, 16, None)


def test_a_suffix_that_fills_the_room_is_refused():
    with pytest.raises(InputError, match="--source_suffix takes 5 of 4 tokens"):
        seq2seq.encode_continuations(
            rows(("the film was good", "it")),
            COLUMNS,
            make_tokenizer("llama"),
            5,
            None,
            max_target_length=2,
            source_suffix=" in the film we is"[:17],
        )


def test_targets_that_fill_the_length_are_refused():
    with pytest.raises(InputError, match="--max_target_length 16 leaves nothing of --max_length 16"):
        seq2seq.encode_continuations(
            rows(("a", "b")), COLUMNS, make_tokenizer("llama"), 16, None, max_target_length=16
        )


def test_logits_are_asked_for_from_the_first_label_on():
    processor = make_tokenizer("llama")
    features = seq2seq.encode_continuations(
        rows(("the film was good", "it"), ("the", "great film")),
        COLUMNS,
        processor,
        16,
        None,
        max_target_length=8,
        source_suffix="",
    )
    batch = collate.continuations(processor)(list(features))
    it, great, film = processor.convert_tokens_to_ids(["it", "great", "film"])
    # rows of five and three tokens; the second one's first label stands at place 0
    assert batch["logits_to_keep"] == 5
    assert batch["labels"].tolist() == [[-100, -100, -100, it, EOS], [great, film, EOS, -100, -100]]
    one = collate.continuations(processor)(list(features)[:1])
    assert one["logits_to_keep"] == 2 and one["labels"].tolist() == [[it, EOS]]


@pytest.mark.parametrize("encode", [seq2seq.encode_targets, seq2seq.encode_continuations])
@pytest.mark.parametrize(
    ("row", "most", "message"),
    [
        (("\u200b", "good"), 4, "of the source"),
        (("good", "\u200b"), 4, "of the target"),
    ],
)
def test_texts_of_which_nothing_is_left_are_refused(encode, row, most, message):
    processor = make_tokenizer("llama")
    processor.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    with pytest.raises(InputError, match=f"nothing is left {message} of the row"):
        encode(rows(row), COLUMNS, processor, 12, None, max_target_length=most, source_suffix="")
