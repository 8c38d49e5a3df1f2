"""Log-probabilities of answers: by hand, and the same however the work is shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from finetune.errors import InputError
from finetune.methods import attach
from prompts.scoring.prefix_tree import Scored, Tree, ancestors, batches, common, segments, trees
from prompts.scoring.score import Request, Scorer, family
from prompts.scoring.tokens import encode_pairs

CAUSAL, MASKED, PAIRED = AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
FAMILIES = {
    "llama": CAUSAL,
    "gpt2": CAUSAL,
    "bert": MASKED,
    "roberta": MASKED,
    "distilbert": MASKED,
    "t5": PAIRED,
    "bart": PAIRED,
}
ANSWERS = (" great", " not very good", " dull and slow", " bad")


def scorer_of(name: str, **options: object) -> Scorer:
    # weights large enough that what a token sees matters
    spread = {} if name in ("t5", "bart") else {"initializer_range": 0.2}
    return Scorer(make_model(name, FAMILIES[name], **spread), make_tokenizer(name), **options)


def requests(count: int = 7, head: str = "") -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    words = ["the", "a", "film", "story", "actor", "was", "is", "in", "it", "i", "we", "loved", "hated"]
    found = []
    for _ in range(count):
        length = int(torch.randint(1, 12, (1,), generator=generator))
        text = " ".join(words[int(i)] for i in torch.randint(0, len(words), (length,), generator=generator))
        found += [
            Request(head + text + tail, ANSWERS) for tail in (" it was", " the film is", " we loved it")
        ]
    return found


def flat(scored: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([tokens for row in scored for tokens in row])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_causal_score_is_the_sum_over_tokens_computed_by_hand(name: str) -> None:
    scorer = scorer_of(name)
    got = scorer([Request("the film was", (" not very good", " great"))])[0]
    tokenizer = scorer.tokenizer
    for answer, values in zip((" not very good", " great"), got, strict=True):
        ids = tokenizer("the film was" + answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logs = scorer.network(input_ids=ids).logits.log_softmax(-1)
        expected = [float(logs[0, t - 1, ids[0, t]]) for t in range(3, ids.shape[1])]
        assert_near(values, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("head", ["", "the film was bad and i hated it very dull slow story " * 3])
def test_sharing_prefixes_changes_no_score(name: str, head: str) -> None:
    scorer = scorer_of(name, batch_tokens=96)
    assert scorer.model.share  # the model's own forward agreed with shared passes
    whole = scorer_of(name, share=False)
    assert_near(flat(scorer(requests(head=head))), flat(whole(requests(head=head))))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("head", [0, 200])
@pytest.mark.parametrize("answers", [ANSWERS, (" great", " bad")])  # trees and chains
def test_rows_are_padded_to_whole_blocks_of_keys_up_to_the_models_positions(
    name: str, head: int, answers: tuple[str, ...]
) -> None:
    words = ("the film was bad and i hated it very dull slow story " * 40).split()
    long = [Request(" ".join(words[:head] + words[i : i + 140 + 3 * i]), answers) for i in range(1, 6)]
    tokenizer = make_tokenizer(name)
    tokenizer.model_max_length = 1024
    positions = max(
        len(pair.ids) for pair in scorer_of(name)._encode(long)
    )  # none is left for padding behind the longest row
    assert positions % 16

    def scores(share: bool) -> np.ndarray:
        size = {"n_positions" if name == "gpt2" else "max_position_embeddings": positions}
        network = make_model(name, CAUSAL, initializer_range=0.2, **size)
        scorer = Scorer(network, tokenizer, 1024, share)
        scorer.model.block = 16  # as in 16 bits, whose rounding would hide what is looked for
        return flat(scorer(long))

    assert_near(scores(True), scores(False))


@pytest.mark.parametrize("name", FAMILIES)
def test_neither_batches_nor_padding_side_nor_order_change_a_score(name: str) -> None:
    reference = flat(scorer_of(name, batch_tokens=2048)(requests()))
    for tokens in (1, 40, 120):
        for side in ("left", "right"):
            scorer = scorer_of(name, batch_tokens=tokens)
            scorer.tokenizer.padding_side = side
            assert_near(flat(scorer(requests())), reference)
    backwards = scorer_of(name)(requests()[::-1])[::-1]
    assert_near(flat(backwards), reference)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_masked_words_fill_left_to_right_or_together(name: str) -> None:
    scorer = scorer_of(name)
    tokenizer, mask = scorer.tokenizer, scorer.tokenizer.mask_token_id
    got = scorer([Request("the film was", (" very good",), " and i loved it")])[0][0]
    ids = tokenizer("the film was [MASK] [MASK] and i loved it", return_tensors="pt")["input_ids"]
    first, second = (ids[0] == mask).nonzero().flatten().tolist()
    very, good = tokenizer("very good", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        both = scorer.network(input_ids=ids).logits.log_softmax(-1)[0]
        filled = ids.clone()
        filled[0, first] = very
        last = scorer.network(input_ids=filled).logits.log_softmax(-1)[0]
    assert_near(got, [float(both[first, very]), float(last[second, good])])
    together = scorer_of(name, fill="together")(
        [Request("the film was", (" very good",), " and i loved it")]
    )[0][0]
    assert_near(together, [float(both[first, very]), float(both[second, good])])


def test_a_mask_inside_the_rows_own_text_is_not_the_slot() -> None:
    scorer = scorer_of("bert")
    plain = scorer.model._encode([("the [MASK] film was ", "", 1)])[0]
    assert plain[1] == 5  # [CLS] the [MASK] film was [MASK]


def test_encoder_decoder_scores_by_hand() -> None:
    scorer = scorer_of("t5")
    got = scorer([Request("the film was", (" very good",))])[0][0]
    words = scorer.tokenizer("very good", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = scorer.network(
            **scorer.tokenizer("the film was", return_tensors="pt"),
            decoder_input_ids=torch.tensor([[0, words[0]]]),
        ).logits.log_softmax(-1)[0]
    assert_near(got, [float(logits[i, w]) for i, w in enumerate(words)])


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("method", ["prefix", "prompt", "lora"])
def test_encoder_decoders_are_scored_with_their_adapters(name: str, method: str) -> None:
    bare = scorer_of(name)
    network = attach(make_model(name, PAIRED), method, None, "SEQ_2_SEQ_LM").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if parameter.requires_grad else 0.0)
    scorer = Scorer(network, bare.tokenizer)
    asked = [
        Request("the film was", (" very good",)),
        Request("a story of the actor that we loved is", (" very good",)),
    ]
    words = scorer.tokenizer("very good", add_special_tokens=False)["input_ids"]
    for request, got in zip(asked, scorer(asked), strict=True):
        inputs = scorer.tokenizer(request.context, return_tensors="pt")
        begun = torch.tensor([[network.config.decoder_start_token_id, words[0]]])
        with torch.no_grad():
            logits = network(**inputs, decoder_input_ids=begun).logits.log_softmax(-1)[0]
        assert_near(got[0], [float(logits[i, w]) for i, w in enumerate(words)])
    assert np.abs(flat(scorer(asked)) - flat(bare(asked))).max() > 1e-5  # the adapter is on
    assert scorer.longest == bare.longest - (0 if method == "lora" else 20)


def test_soft_words_and_made_up_tokens_do_not_meet() -> None:
    network = attach(make_model("llama", CAUSAL), "prompt", None, "CAUSAL_LM")
    with pytest.raises(InputError, match=r"behind made-up tokens \(PROMPT_TUNING\). Set --soft_rows 0"):
        Scorer(network, make_tokenizer("llama")).states(requests(1))


def test_bf16_trunk_keeps_a_float32_head() -> None:
    exact = flat(scorer_of("llama")(requests()))
    network = make_model("llama", AutoModelForCausalLM, initializer_range=0.2).to(torch.bfloat16)
    scorer = Scorer(network, make_tokenizer("llama"))
    values = flat(scorer(requests()))
    assert scorer.model.weight.dtype == torch.float32
    assert_near(values, exact, 0.2)
    # a head in bf16 has 8 bits of mantissa: its scores would coincide often
    assert len(np.unique(values.round(6))) > 0.9 * len(np.unique(exact.round(6)))


def test_lora_is_scored_like_its_own_forward_and_prompt_tuning_too() -> None:
    for config in (LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear",
                              task_type="CAUSAL_LM"),
                   PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")):  # fmt: skip
        network = get_peft_model(
            make_model("llama", AutoModelForCausalLM, initializer_range=0.2), config
        ).eval()
        shared, whole = (
            Scorer(network, make_tokenizer("llama")),
            Scorer(network, make_tokenizer("llama"), share=False),
        )
        bare = flat(scorer_of("llama")(requests()))
        assert_near(flat(shared(requests())), flat(whole(requests())))
        assert np.abs(flat(shared(requests())) - bare).max() > 1e-4  # the adapter is on


def test_a_model_that_cannot_share_is_scored_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prompts.scoring.causal import Causal

    monkeypatch.setattr(
        Causal, "_mask", lambda self, batch, cut: None
    )  # as a model that ignores a tree's mask
    scorer = scorer_of("llama")
    assert not scorer.model.share and "scored whole" in caplog.text
    assert_near(flat(scorer(requests())), flat(scorer_of("llama", share=False)(requests())))


def test_examples_before_two_blocks_of_rows_go_through_the_model_once() -> None:
    scorer = scorer_of("llama", batch_tokens=32)
    asked = requests(count=20, head="the film was bad and i hated it " * 5)
    reference = flat(scorer(asked))
    lengths = []
    hook = scorer.model.trunk.register_forward_pre_hook(
        lambda _, args, told: lengths.append(told["input_ids"].numel()), with_kwargs=True
    )
    again = [*scorer(asked[:30]), *scorer(asked[30:])]
    hook.remove()
    assert_near(flat(again), reference)
    assert max(lengths) <= 32  # no pass holds the examples, which are longer


def test_distributions_hold_the_scores_of_all_words() -> None:
    for name in FAMILIES:
        scorer = scorer_of(name)
        asked = [
            Request("the film was", (" great", " bad")),
            Request("i hated the story it was", (" great", " bad")),
        ]
        rows = scorer.distributions(asked)
        ids = [scorer.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("great", "bad")]
        assert_near(rows[:, ids], [[float(v[0]) for v in row] for row in scorer(asked)])
        assert_near(np.exp(rows).sum(axis=1), 1, 1e-4)


def test_families_and_heads() -> None:
    assert [family(make_model(name, auto)) for name, auto in FAMILIES.items()] == ["causal"] * 2 + [
        "masked"
    ] * 3 + ["seq2seq"] * 2
    with pytest.raises(InputError, match="no head that names words"):
        Scorer(make_model("bert", AutoModelForSequenceClassification), make_tokenizer("bert"))


def test_what_cannot_be_asked_is_refused() -> None:
    causal = scorer_of("llama")
    with pytest.raises(InputError, match="after its slot"):
        causal([Request("the film was", (" great",), " and we loved it")])
    with pytest.raises(InputError, match="the model reads 64"):
        causal([Request("the film " * 40, (" great",))])
    with pytest.raises(InputError, match="tokenises to nothing"):
        causal([Request("the film was", ("",))])
    with pytest.raises(InputError, match="unknown to the vocabulary"):
        scorer_of("bert")([Request("the film was", (" zebra",))])
    with pytest.raises(InputError, match="no sentinels"):
        scorer_of("bart")([Request("the film was", (" great",), " and we loved it")])
    with pytest.raises(InputError, match="Unknown way to fill"):
        scorer_of("bert", fill="sideways")


def test_scores_that_are_no_numbers_stop_the_run() -> None:
    scorer = scorer_of("llama")
    with torch.no_grad():
        scorer.network.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"NaN.*--dtype float32"):
        scorer([Request("the film was", (" great",))])


def test_answers_are_found_by_their_characters_in_the_joint_text() -> None:
    tokenizer = make_tokenizer("bert")  # puts [CLS] before and [SEP] after
    assert encode_pairs(tokenizer, [("the film was", " great")]) == [
        Scored((2, *tokenizer("the film was great")["input_ids"][1:5]), 4)
    ]
    empty = encode_pairs(make_tokenizer("llama"), [("", "great")])[0]
    assert (
        empty.ids[0] == 5 and empty.start == 1
    )  # nothing before the answer: the beginning-of-sequence token stands there


def test_further_answers_are_tokenised_as_with_their_whole_context() -> None:
    pieces = bytes_to_pieces()
    contexts = [
        "it was",
        "a film of the story that we loved and the actor was very",
        "the  film ,was of it. And so it was not very\n\nA:",
    ]
    pairs = [(context, answer) for context in contexts for answer in (" good", " very good", "bad", " g")]
    assert encode_pairs(pieces, pairs) == [encode_pairs(pieces, [pair])[0] for pair in pairs]
    words = make_tokenizer("bert")
    assert encode_pairs(words, pairs[4:6]) == [encode_pairs(words, [pair])[0] for pair in pairs[4:6]]


def bytes_to_pieces() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, made in memory."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("o", "o"),
        ("oo", "d"),
        ("g", "ood"),
        ("Ġ", "g"),
        ("Ġg", "ood"),
        ("e", "r"),
        ("v", "er"),
        ("ver", "y"),
        ("Ġ", "very"),
    ]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(a + b for a, b in merges), "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_tree_by_eye() -> None:
    sequences = [
        Scored((1, 2, 3, 7), 3),
        Scored((1, 2, 3, 8, 9), 3),
        Scored((1, 2, 3, 4, 7), 4),
        Scored((5, 6), 1),
    ]
    first, second = trees(sequences, [3, 0, 2, 1], 0, 100)
    assert (first.tokens, first.parents, first.depths) == ([1, 2, 3, 4, 8], [-1, 0, 1, 2, 2], [0, 1, 2, 3, 3])
    assert sorted(first.wanted) == [(2, 7, 0, 0), (2, 8, 1, 0), (3, 7, 2, 0), (4, 9, 1, 1)]
    assert ancestors(first)[4].tolist() == [True, True, True, False, True]
    assert (second.tokens, second.wanted, second.is_chain) == ([5], [(0, 6, 3, 0)], True)


def test_segments_share_what_pays_and_stop_before_the_answers() -> None:
    head, tail = tuple(range(100, 150)), tuple(range(200, 240))
    sequences = [Scored((*head, *tail[: 10 + i], i), len(head) + 10 + i) for i in range(8)]
    top = segments(sequences, worth=10)
    (below,) = top.below
    assert below.tokens[:50] == head and sorted(below.members) == list(range(8)) and not top.members
    assert len(below.tokens) <= min(s.start for s in sequences) - 1
    assert sorted(segments(sequences, worth=10_000).members) == list(
        range(8)
    )  # too little after it: not worth a pass of its own


def test_small_parts() -> None:
    assert [
        common(a, b) for a, b in (((1, 2, 3), (1, 2, 4)), ((), (1,)), ((1, 2), (1, 2, 3)), ((5, 1), (4, 1)))
    ] == [2, 0, 2, 0]
    assert batches([(2, 0), (2, 1), (3, 2), (9, 3)], 6) == [[0, 1], [2], [3]]
    assert batches([(1, i) for i in range(5)], 100, rows=2) == [[0, 1], [2, 3], [4]]
    sized = [(10, 0), (10, 1), (11, 2), (11, 3), (30, 4)]
    assert batches(sized, 1000) == [[0, 1, 2, 3, 4]]
    assert batches(sized, 1000, full=20) == [[0, 1], [2, 3], [4]]  # full, and then no padding
    assert batches(sized, 1000, full=40) == [[0, 1, 2, 3], [4]]  # not yet full: padding costs less than calls
    assert Tree().is_chain
