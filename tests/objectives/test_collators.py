"""Batches by eye, and noise that depends on (seed, epoch, row) alone."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from conftest import WORDS, make_tokenizer
from tokenizers import AddedToken

from finetune.errors import InputError
from finetune.objectives import collators, documents
from finetune.objectives.packing import joined

TEXTS = ["the film was good", "a bad story . the actor was awful ! i hated it", "dull"]


def rng():
    return np.random.default_rng(0)


def features(encode, processor, texts=TEXTS, length=32, **options):
    columns = encode({"text": texts}, processor, length, rng(), **options)
    return [
        dict(zip(columns, values, strict=True)) | {"row": n}
        for n, values in enumerate(zip(*columns.values(), strict=True))
    ]


def words(processor, ids):
    return " ".join(processor.convert_ids_to_tokens([int(i) for i in ids]))


@pytest.fixture
def bert():
    return make_tokenizer("bert")


@pytest.fixture
def llama():
    return make_tokenizer("llama")


def test_special_tokens_around_a_text(bert, llama):
    assert documents.affixes(bert) == ([2], [3])
    assert documents.affixes(llama) == ([], [])


def test_masked_rows(bert):
    rows = features(documents.masked_rows, bert, layout="rows")
    assert words(bert, rows[0]["input_ids"]) == "[CLS] the film was good [SEP]"
    assert rows[0]["words"] == [-1, 0, 1, 2, 3, -1]
    batch = collators.mask_collator(bert, masking_rate=0.3, whole_words=False, seed=0)(rows)
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 14, 3]
    assert batch["labels"].ne(-100).sum(dim=1).tolist() == [1, 4, 1]
    original = collators.padded([row["input_ids"] for row in rows], 0)
    places = batch["labels"].ne(-100)
    assert torch.equal(batch["labels"][places], original[places])  # the label is what stood there
    assert torch.equal(batch["input_ids"][~places], original[~places])  # and nothing else was touched
    assert not torch.isin(
        batch["labels"], torch.tensor([2, 3])
    ).any()  # special tokens are never to be predicted


def test_long_texts_go_on_in_further_rows(bert):
    rows = features(documents.masked_rows, bert, length=6, layout="rows")
    assert [words(bert, row["input_ids"]) for row in rows][1:4] == [
        "[CLS] a bad story [UNK] [SEP]", "[CLS] the actor was awful [SEP]", "[CLS] [UNK] i hated it [SEP]",
    ]  # fmt: skip


def test_blocks_hold_whole_pieces_and_say_where_each_ends(bert):
    (row, other) = features(documents.masked_rows, bert, length=14, layout="blocks")
    assert row["documents"] == [14]
    assert other["documents"] == [6, 3]
    assert words(bert, other["input_ids"]) == "[CLS] the film was good [SEP] [CLS] dull [SEP]"
    batch = collators.mask_collator(bert, masking_rate=0.3, whole_words=False, seed=0)([row, other])
    assert batch["documents"][1].tolist() == [0] * 6 + [1] * 3 + [-1] * 5
    assert batch["position_ids"][1].tolist()[:9] == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_causal_rows_end_with_the_end_token_which_is_learnt(llama):
    rows = features(documents.causal_rows, llama, layout="blocks")
    (row,) = rows
    assert words(llama, row["input_ids"]).endswith("the film was good </s> dull </s>")
    batch = collators.causal_collator(llama, seed=0)(rows)
    labels = words(llama, [i for i in batch["labels"][0] if i != -100])
    assert labels == "bad story [UNK] the actor was awful [UNK] i hated it </s> film was good </s> </s>"
    assert batch["cu_seq_lens"].tolist() == [0, 13, 18, 20]
    assert batch["position_ids"][0].tolist() == [*range(13), *range(5), 0, 1]
    assert batch["labels"][0].tolist().count(-100) == 3  # no document's end says anything of the next one


def test_the_end_token_is_learnt_where_padding_looks_the_same(llama):
    llama.pad_token = llama.eos_token
    batch = collators.causal_collator(llama, seed=0)(features(documents.causal_rows, llama, layout="rows"))
    assert batch["labels"].eq(llama.eos_token_id).sum().item() == 3


def test_bytes_of_what_is_predicted(llama):
    texts = ["the film", "good é .", "a  "]
    rows = features(documents.causal_rows, llama, texts, layout="rows")
    # nothing stands before a text's first token, so that it is not predicted; é is two bytes; spaces go with
    # the token before
    assert [row["bytes"] for row in rows] == [len(" film"), len(" é .") + 1, 0]


@pytest.mark.parametrize("length", [4, 7, 30])
def test_bytes_do_not_depend_on_where_a_text_is_cut(llama, length):
    texts = ["the film was good and bright but not of it", "a bad story"]
    rows = features(documents.causal_rows, llama, texts, length=length, layout="blocks")
    assert sum(row["bytes"] for row in rows) == sum(len(t) for t in texts) - len("the") - len("a")


def spans_tokenizer():
    processor = make_tokenizer("t5")
    processor.add_special_tokens(
        {"additional_special_tokens": [AddedToken(f"<extra_id_{i}>") for i in range(10)]}
    )
    return processor


def test_span_corruption_rows():
    processor = spans_tokenizer()
    rows = features(documents.span_rows, processor, layout="rows", masking_rate=0.3, mean_span=2.0)
    batch = collators.span_collator(processor, masking_rate=0.3, mean_span=2.0, seed=1)(rows)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
        ids, labels = [i for i in ids.tolist() if i != 0], [i for i in labels.tolist() if i != -100]
        assert ids[-1] == labels[-1] == processor.eos_token_id
        assert restored(ids[:-1], labels[:-1], collators.sentinels(processor)) == row["input_ids"]


def restored(ids, target, marks):
    """The text again: each sentinel of the input gives way to what the target says of it."""
    parts = {}
    for token in target:
        if token in marks:
            parts[token] = current = []
        else:
            current.append(token)
    return joined([parts.get(token, [token]) for token in ids])


def test_full_blocks_have_the_lengths_of_the_paper():
    processor = spans_tokenizer()
    text = " ".join(WORDS[n % len(WORDS)] for n in range(600))
    row = features(
        documents.span_rows, processor, [text], length=64, layout="blocks", masking_rate=0.15, mean_span=3.0
    )[0]
    batch = collators.span_collator(processor, masking_rate=0.15, mean_span=3.0, seed=0)([row])
    assert batch["input_ids"].shape == (1, 64)
    assert batch["labels"].shape == (1, 14)


def test_too_few_sentinels_are_said():
    processor = spans_tokenizer()
    text = " ".join(WORDS[n % len(WORDS)] for n in range(400))
    rows = features(
        documents.span_rows, processor, [text], length=300, layout="rows", masking_rate=0.15, mean_span=3.0
    )
    with pytest.raises(InputError, match=r"17 spans in a row and 10 sentinels.*--max_length"):
        collators.span_collator(processor, masking_rate=0.15, mean_span=3.0, seed=0)(rows)


def test_infilling_rows():
    processor = make_tokenizer("bart")
    rows = features(documents.sentence_rows, processor)
    collate = collators.infill_collator(
        processor, masking_rate=0.3, mean_span=3.0, permute_sentences=True, deletion_rate=0.0, seed=0
    )
    batch = collate(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert [i for i in labels.tolist() if i != -100] == [*row["input_ids"], processor.eos_token_id]
    assert batch["input_ids"].eq(processor.mask_token_id).sum() >= 2


def test_sentences_end_where_they_do(bert):
    text = 'i hated it . "the film was bad !" but the actor\nwas good'
    (document,) = documents.tokenised([text], bert)
    ends = [0, *documents.sentence_ends(document)]
    parts = [words(bert, document.ids[a:b]) for a, b in itertools.pairwise(ends)]
    assert parts == ["i hated it [UNK]", "[UNK] the film was bad [UNK]", "but the actor", "was good"]


def test_sentences_end_where_no_space_follows():
    text = "你好。他说：“走！”然后呢？好"
    letters = documents.Document(
        text, list(range(len(text))), list(range(len(text))), [place + 1 for place in range(len(text))]
    )
    ends = [0, *documents.sentence_ends(letters)]
    assert [text[a:b] for a, b in itertools.pairwise(ends)] == ["你好。", "他说：“走！”", "然后呢？", "好"]


def test_pairs_are_neighbours_and_strangers(bert):
    texts = ["i hated it . the film was bad . dull .", "we loved it . the actor was great . fine ."]
    rows = features(documents.pair_rows, bert, texts, sentence_order=False)
    own = [[bert.convert_tokens_to_ids(w) for w in text.split()] for text in texts]
    for row, ids, strangers in zip(rows, own, own[::-1], strict=True):
        assert row["first"] + row["second"] == [bert.unk_token_id if i is None else i for i in ids]
        assert row["other"] == strangers[-len(row["other"]) :]
    seen = set()
    for epoch in range(20):
        batch = collators.pair_collator(
            bert, masking_rate=0.01, whole_words=False, sentence_order=False, seed=0
        )([rows[0] | {"epoch": epoch}])
        wrong = int(batch["labels"][0, 0])
        segment = batch["input_ids"][0][batch["token_type_ids"][0] == 1]
        assert len(segment) == len(rows[0]["other" if wrong else "second"]) + 1
        seen.add(wrong)
    assert seen == {0, 1}


def test_sentence_order_swaps(bert):
    rows = features(documents.pair_rows, bert, ["i hated it . the film was bad ."], sentence_order=True)
    for epoch in range(10):
        batch = collators.pair_collator(
            bert, masking_rate=0.01, whole_words=False, sentence_order=True, seed=0
        )([rows[0] | {"epoch": epoch}])
        ids = torch.where(batch["labels"][0, 1:] != -100, batch["labels"][0, 1:], batch["input_ids"][0])
        parts = "i hated it [UNK]", "the film was bad [UNK]"
        one, two = parts[::-1] if batch["labels"][0, 0] else parts
        assert words(bert, ids) == f"[CLS] {one} [SEP] {two} [SEP]"


def test_one_text_alone_has_no_strangers(bert):
    texts = ["i hated it . the film was bad . dull ."]
    assert features(documents.pair_rows, bert, texts, sentence_order=False) == []
    assert len(features(documents.pair_rows, bert, texts, sentence_order=True)) == 1


def test_runs_of_sentences():
    assert documents.groups([3, 3, 3, 9, 2, 2], 8) == [(0, 2), (4, 6)]
    assert documents.groups([9], 8) == []


def test_a_text_alone_comes_twice(bert):
    rows = features(documents.view_rows, bert)
    batch = collators.view_collator(bert, seed=0)(rows)
    assert batch["input_ids"].shape[0] == 6
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert batch["labels"].isnan().all()


def test_noise_is_new_in_each_epoch_and_the_same_for_any_batch(bert):
    rows = features(documents.masked_rows, bert, layout="rows")
    collate = collators.mask_collator(bert, masking_rate=0.3, whole_words=False, seed=0)
    at = lambda epoch: [row | {"epoch": epoch} for row in rows]  # noqa: E731
    whole = collate(at(0))
    alone = collate(at(0)[1:2])
    assert torch.equal(whole["labels"][1], alone["labels"][0])
    assert any(not torch.equal(collate(at(0))["labels"], collate(at(n))["labels"]) for n in range(1, 4))
    assert torch.equal(collate(rows)["labels"], collate(rows)["labels"])  # evaluation: always the same
    other = partial(collators.mask_collator, bert, masking_rate=0.3, whole_words=False)
    assert any(
        not torch.equal(other(seed=0)(rows)["labels"], other(seed=n)(rows)["labels"]) for n in range(1, 4)
    )
