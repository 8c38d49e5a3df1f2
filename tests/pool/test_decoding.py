"""Rows that come and go, beginnings read once, and what is noted beside each token: against one text at a
time."""

import random

import pytest
import torch
from bounds import near
from conftest import WORDS
from test_pool import make, pool_of

from finetune.pool.prefixes import SHORTEST, Prefixes
from finetune.pool.sampling import Sampling, adjusted, draw


def prompts(count: int, shortest: int, longest: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [
        " ".join(chance.choice(WORDS) for _ in range(chance.randint(shortest, longest))) for _ in range(count)
    ]


def test_rows_that_come_and_go_write_what_each_writes_alone(tmp_path):
    pool = pool_of("llama", writes=True)
    # Several low-rank ones, so that their stacks are filled, left and moved into.
    kinds = {"ia3": "ia3", "prefix": "prefix"} | {f"lora{i}": "lora" for i in range(5)} | {"rs": "rslora"}
    for seed, (name, kind) in enumerate(kinds.items()):
        make(tmp_path / name, "llama", "CAUSAL_LM", kind, seed)
        pool.add(name, tmp_path / name)
    chance = random.Random(1)
    texts = prompts(24, 1, 30)
    names = [chance.choice([None, *kinds]) for _ in texts]
    lengths = [chance.randint(1, 20) for _ in texts]
    asked = zip(texts, names, lengths, strict=True)
    alone = [pool.generate([text], [name], max_new_tokens=size)[0] for text, name, size in asked]
    rows = [
        pool.rows([text], [name], Sampling(size))[0]
        for text, name, size in zip(texts, names, lengths, strict=True)
    ]
    writing, waiting = pool.writing(), list(rows)
    while waiting or writing.rows:
        if waiting and chance.random() < 0.5:
            count = chance.randint(1, 4)
            writing.join(waiting[:count])
            waiting = waiting[count:]
        elif writing.rows and chance.random() < 0.05:
            writing.leave([row for row in writing.rows if row is None])  # nobody: nothing may move
        elif writing.rows:
            writing.step()
    assert [row.text for row in rows] == alone


def test_a_beginning_that_prompts_share_is_read_once(tmp_path):
    pool, plain = pool_of("llama", writes=True), pool_of("llama", writes=True, prefix_cache_mb=0)
    for one in (pool, plain):
        for name in ("lora", "prefix"):
            make(tmp_path / name, "llama", "CAUSAL_LM", name, 1)
            one.add(name, tmp_path / name, replace=True)
    start = " ".join(WORDS[i % len(WORDS)] for i in range(SHORTEST + 4))
    texts = [f"{start} {end}" for end in ("film story", "actor", "was very good", "film story it", "i")]
    for name in ("lora", None, "prefix"):
        for text in texts:  # one after the other, so that later ones find what earlier ones left
            options = {"max_new_tokens": 8}
            assert pool.generate([text], [name], **options) == plain.generate([text], [name], **options)
    assert pool.prefixes.hits >= 6
    assert plain.prefixes.hits == 0


def test_beginnings_that_no_adapter_needs_any_more_are_let_go():
    class Held:
        pass

    prefixes, adapter = Prefixes(10**6), Held()
    prompt = list(range(SHORTEST + 8))
    assert prefixes.worth([adapter], prompt) == 0
    assert prefixes.worth([adapter], prompt) == len(prompt) - 1
    assert prefixes.worth([Held()], prompt) == 0, "another adapter's prompt shares nothing"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probabilities_of_prompt_and_answer_are_the_models_own(family):
    pool = pool_of(family, writes=True)
    texts = prompts(5, 2, 12)
    rows = pool.rows(texts, [None] * 5, Sampling(4, logprobs=3, echo=True))
    writing = pool.writing()
    writing.join(rows)
    while writing.rows:
        writing.step()
    for row in rows:
        whole = torch.tensor([row.prompt + row.ids])
        with torch.no_grad():
            right = pool.network(whole).logits[0].double().log_softmax(-1)
        assert [noted.token for noted in row.noted] == row.prompt + row.ids
        assert row.noted[0].logprob is None
        for place, noted in enumerate(row.noted[1:]):
            assert near(noted.logprob, float(right[place, noted.token]))
            assert near([value for _, value in noted.top], right[place].topk(3).values.tolist())


def test_a_prompt_alone_can_be_scored_without_writing():
    pool = pool_of("llama", writes=True)
    rows = pool.rows(["the film was great"], [None], Sampling(0, logprobs=0, echo=True))
    assert pool.writing().join(rows) == [(rows[0], "")]
    assert rows[0].ended == "length" and len(rows[0].noted) == len(rows[0].prompt) and not rows[0].ids


def test_penalties_and_biases_as_their_authors_define_them():
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    how = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted(logits, how, [0, 0], [2, 2, 3]).tolist() == [2.0, -1.0, 0.5 - 1.25, -0.75]
    how = Sampling(repetition_penalty=2.0)
    assert adjusted(logits, how, [0], [1]).tolist() == [1.0, -2.0, 0.5, 0.0]
    assert adjusted(logits, Sampling(logit_bias={3: 5.0}), [], []).tolist() == [2.0, -1.0, 0.5, 5.0]


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (Sampling(temperature=1.0, min_p=0.4), {0, 1}),  # 0.3 is more than 0.4 of 0.5, 0.15 less
        (Sampling(temperature=1.0, top_k=1), {0}),
        (Sampling(temperature=1.0, top_p=0.7), {0, 1}),
    ],
)
def test_only_what_is_let_in_is_drawn(how, wanted):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    assert {draw(logits, how, generator) for _ in range(200)} == wanted
