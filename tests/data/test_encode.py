"""Features are read from the cache where nothing that they depend on has changed, and only there."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from finetune.data import encode
from finetune.data.columns import Columns
from finetune.data.letters import letters_of
from finetune.errors import InputError
from finetune.objectives import documents, inputs
from finetune.objectives.tokenizer import train_tokenizer
from finetune.tasks import sft, tokens

BOTH = Columns("text", None, "label")


def from_file(tmp_path, columns: dict, name: str = "rows") -> Dataset:
    """Rows of a file: what is made of rows in memory is never cached."""
    file = tmp_path / f"{name}.parquet"
    Dataset.from_dict(columns).to_parquet(str(file))
    return Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def counted():
    """An encoder, and how many batches it has been given."""
    given = []

    def encoder(batch: dict, indices: list[int]) -> dict:
        given.append(len(indices))
        return {"length": [len(text) for text in batch["text"]]}

    return encoder, given


def test_the_same_rows_are_encoded_once_whatever_the_tokenizer_did_before(tmp_path, counted):
    encoder, given = counted
    processor = make_tokenizer("bert")
    rows = from_file(tmp_path, {"text": ["a film", "good"], "label": [0, 1]})
    encode.cached(rows, encoder, processor, "rows", {"max_length": 8})
    processor("a film was good", truncation=True, max_length=4, padding="max_length")
    again = encode.cached(rows, encoder, processor, "rows", {"max_length": 8})
    assert given == [2] and again["length"][:] == [6, 4]


@pytest.mark.parametrize("change", ["parts", "special tokens", "code"])
def test_what_features_depend_on_makes_them_anew(tmp_path, counted, change, monkeypatch):
    encoder, given = counted
    processor = make_tokenizer("bert")
    rows = from_file(tmp_path, {"text": ["a film", "good"], "label": [0, 1]})
    encode.cached(rows, encoder, processor, 8)
    if change == "special tokens":
        processor.eos_token = "[SEP]"
    elif change == "code":
        monkeypatch.setattr(encode, "code", lambda: "another version")
    encode.cached(rows, encoder, processor, 9 if change == "parts" else 8)
    assert given == [2, 2]


def test_rows_are_known_by_every_column_that_is_read(tmp_path):
    rows = {"text": ["a film"] * 2, "pair": ["good"] * 2, "score": [1.0, 2.0]}
    roles = {"text": "text", "pair": "pair", "score": "score"}
    one = inputs.encoded(
        from_file(tmp_path, rows), roles, documents.view_rows, make_tokenizer("bert"), max_length=16
    )
    other = inputs.encoded(
        from_file(tmp_path, rows | {"score": [3.0, 4.0]}, "other"),
        roles,
        documents.view_rows,
        make_tokenizer("bert"),
        max_length=16,
    )
    assert one["labels"][:] == [1.0, 2.0] and other["labels"][:] == [3.0, 4.0]


def test_other_tools_are_another_text(tmp_path):
    processor = make_tokenizer("llama")
    processor.chat_template = "{{ tools }}{% for message in messages %} {{ message.content }}{% endfor %}"
    chat = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}]
    found = [
        sft.encode(
            from_file(tmp_path, {"messages": [chat], "tools": [tools]}, f"rows-{place}"),
            Columns("messages", None, "messages"), processor, 32, None,
        )["input_ids"][:]
        for place, tools in enumerate(['[{"name": "the"}]', '[{"name": "the film"}]'])
    ]  # fmt: skip
    assert found[0] != found[1]


def test_two_texts_are_parted_by_the_tokenizer_or_by_a_line_break():
    pairs = [("a film", "it was"), ("b", "c")]
    assert encode.as_columns(pairs, make_tokenizer("bert")) == [["a film", "b"], ["it was", "c"]]
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    assert encode.as_columns(pairs, bare) == [["a film", "b"], ["\nit was", "\nc"]]
    assert encode.as_columns(["a", "b"], bare) == [["a", "b"]]


@pytest.mark.parametrize(
    ("family", "pair"), [("bert", None), ("bert", "second"), ("llama", None), ("t5", "second")]
)
def test_a_text_of_which_no_token_is_left_is_named(family, pair):
    processor = make_tokenizer(family)
    texts_of = {
        "text": ["a film", "good"],
        "second": ["the story", "\u200b" if pair else "bad"],
        "label": [0, 1],
    }
    if pair is None:
        texts_of["text"][1] = "\u200b"
    processor.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(InputError, match=r"nothing is left of the text '.u200b'.*--max_length"):
        encode.sequence(
            Dataset.from_dict(texts_of), Columns("text", pair, "label"), processor, 16, ["0", "1"]
        )


def test_a_length_that_leaves_no_room_for_text_is_named():
    rows = Dataset.from_dict({"text": ["a film"], "label": [0]})
    with pytest.raises(InputError, match=r"Within 2 tokens nothing is left of the text 'a film'"):
        encode.sequence(rows, BOTH, make_tokenizer("bert"), 2, ["0", "1"])


RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def of_letters():
    return train_tokenizer([RESIDUES] * 2, "mlm", "characters", 40)


def test_letters_that_a_tokenizer_of_letters_does_not_know_are_named(caplog):
    assert letters_of(of_letters()) == set(RESIDUES) and letters_of(make_tokenizer("bert")) is None
    rows = Dataset.from_dict({"text": ["ACD", "AC*BD", "GGX"], "label": ["a", "b", "a"]})
    encode.sequence(rows, BOTH, of_letters(), 16, ["a", "b"])
    assert "2 of 3 rows hold letters" in caplog.text and "first '*' 'B' in row 1" in caplog.text
    assert "finetune tokenizer --kind characters" in caplog.text
    low = Dataset.from_dict({"text": ["ACD", "acd"], "label": ["a", "b"]})
    with pytest.raises(InputError, match=r"^Row 1: the tokenizer knows no letter of 'acd'; it has A C D E"):
        encode.sequence(low, BOTH, of_letters(), 16, ["a", "b"])


def test_residues_are_read_without_blanks_between(caplog):
    rows = Dataset.from_dict({"tokens": [list("ACDA")], "tags": [["x", "y", "x", "x"]]})
    (row,) = tokens.encode(rows, Columns("tokens", None, "tags"), of_letters(), 16, ["x", "y"])
    processor = of_letters()
    assert (
        row["input_ids"] == processor("ACDA")["input_ids"] and processor.unk_token_id not in row["input_ids"]
    )
    assert row["labels"] == [-100, 0, 1, 0, 0, -100] and "letters" not in caplog.text
