"""Tokenizers that are trained here: what stands around a text, and that nothing of it is lost."""

import pytest
from conftest import WORDS
from transformers import AutoTokenizer

from finetune.errors import InputError
from finetune.objectives import collators, documents
from finetune.objectives import tokenizer as making

TEXTS = [" ".join([WORDS[(n * k) % len(WORDS)] for k in range(1, 9)]) + "." for n in range(1, 60)]
AROUND = {
    "mlm": (["[CLS]"], ["[SEP]"]),
    "clm": (["<s>"], []),
    "span_corruption": ([], ["</s>"]),
    "infilling": (["<s>"], ["</s>"]),
}


@pytest.mark.parametrize("objective", AROUND)
@pytest.mark.parametrize("kind", making.MAKERS)
def test_special_tokens_and_round_trip(objective, kind, tmp_path):
    making.train_tokenizer(TEXTS, objective, kind, 400).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= 400
    before, after = documents.affixes(tokenizer)
    assert (tokenizer.convert_ids_to_tokens(before), tokenizer.convert_ids_to_tokens(after)) == AROUND[
        objective
    ]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert all(token in tokenizer.special_tokens_map for token in making.SPECIAL[objective])
    decoded = tokenizer.decode(tokenizer("the film was good")["input_ids"], skip_special_tokens=True)
    assert decoded.strip() == "the film was good"
    assert len(collators.sentinels(tokenizer)) == (100 if objective == "span_corruption" else 0)
    (document,) = documents.tokenised(["the film was good"], tokenizer)
    assert document.ends[-1] == len("the film was good")


def test_bytes_leave_nothing_unknown():
    tokenizer = making.train_tokenizer(TEXTS, "clm", "bpe", 300)
    text = "Ångström 漢字 🙂\n\tthe"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_byte_of_a_text_is_predicted_once():
    tokenizer = making.train_tokenizer(TEXTS, "clm", "bpe", 300)
    texts = ["Ångström 漢字 🙂 the film", "good \n"]
    rows = documents.causal_rows({"text": texts}, tokenizer, 8, None, layout="blocks")
    assert sum(rows["bytes"]) == sum(
        len(text.encode()) for text in texts
    )  # <s> stands before the first token


def test_bad_input():
    with pytest.raises(InputError, match=r"Unknown kind 'glyphs'.*--kind"):
        making.train_tokenizer(TEXTS, "mlm", "glyphs", 400)
    with pytest.raises(InputError, match=r"Unknown objective 'glm'.*--objective"):
        making.train_tokenizer(TEXTS, "glm", "bpe", 400)
    with pytest.raises(InputError, match=r"--vocab_size 200 is too small"):
        making.train_tokenizer(TEXTS, "mlm", "bpe", 200)
    with pytest.raises(InputError, match=r"--sentinel_count 0"):
        making.train_tokenizer(TEXTS, "span_corruption", "bpe", 400, sentinels=0)


def test_whole_units_are_found_not_made():
    words = making.train_tokenizer(TEXTS, "mlm", "words", 400)
    assert words.tokenize("the film!") == ["the", "film", "[UNK]"]
    letters = making.train_tokenizer(["MKTAYI AK"] * 2, "clm", "characters", 40)
    assert letters.tokenize("MKX A") == ["M", "K", "<unk>", " ", "A"]
    assert letters.decode(letters("MKT")["input_ids"], skip_special_tokens=True) == "MKT"
    with pytest.raises(InputError, match=r"--vocab_size 5 is too small beside 5 special tokens; wanted 6"):
        making.train_tokenizer(TEXTS, "mlm", "words", 5)
