"""What a study is made of: calibration, ensembles, examples, tests between prompts, the memory of answers,
searches, tuning."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bounds import assert_near
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from finetune.errors import InputError
from finetune.methods import attach
from prompts.scoring.cache import BLOCK, Memory
from prompts.scoring.generate import cut, generate
from prompts.scoring.load import ScoringArguments, load_prompt_scorer, model_fingerprint
from prompts.scoring.score import Request, Scorer
from prompts.study import calibrate, ensemble
from prompts.study.asking import Cell
from prompts.study.search import balanced_accuracy, compositions, search_words, whole_words
from prompts.study.shots import Pool, choose
from prompts.study.soft import soft_verbalizer
from prompts.study.tune import TuneArguments, tune
from prompts.study.weighed import Answers
from prompts.templates.entries import Ending
from prompts.templates.prompt import Prompt
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, make_verbalizer, probabilities

WORDS = make_verbalizer("t/w", ["neg", "pos"], {"neg": "bad", "pos": "good"})


def logs(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows))


def test_calibrations_by_eye() -> None:
    scores = logs([0.8, 0.2], [0.6, 0.4])
    np.testing.assert_allclose(
        probabilities(calibrate.contextual(scores, logs([0.8, 0.2], [0.6, 0.4]))),
        [[12 / 19, 7 / 19 * 1.0], [9 / 23, 14 / 23]],
    )
    np.testing.assert_allclose(
        probabilities(calibrate.pmi(scores, logs([0.8, 0.2]))), [[0.5, 0.5], [3 / 11, 8 / 11]]
    )
    batch = probabilities(calibrate.batch(scores))  # the rows say 0.7 : 0.3 on average
    np.testing.assert_allclose(batch, [[12 / 19, 7 / 19], [9 / 23, 14 / 23]])
    assert batch.argmax(1).tolist() == [0, 1]  # raw says 0 twice
    np.testing.assert_allclose(calibrate.domain(scores, scores), calibrate.contextual(scores, scores))
    for answer in (
        calibrate.batch(scores),
        calibrate.contextual(scores + 7.0, scores),
    ):  # a constant over labels changes nothing
        np.testing.assert_allclose(probabilities(answer), batch)


def test_the_prior_of_each_word_is_taken_away_before_words_are_joined() -> None:
    words = logs([0.4, 0.1, 0.2], [0.2, 0.1, 0.6])
    verbalizer = Verbalizer("v", ("a", "b"), (("x", "y"), ("z",)))
    answers = Answers(Cell("m", "t", "v", 0, 0), {"unseen": words[:, :2]}, [], verbalizer, {"unseen": words})
    # means of the words: 0.3, 0.1, 0.4
    np.testing.assert_allclose(
        np.exp(answers.scores("prior")), [[(4 / 3 + 1) / 2, 0.5], [(2 / 3 + 1) / 2, 1.5]]
    )


def test_random_inputs_are_of_the_rows_own_words() -> None:
    drawn = calibrate.random_inputs(["a b c", "d e f g h"], 3, seed=0)
    assert (
        drawn
        == calibrate.random_inputs(["a b c", "d e f g h"], 3, seed=0)
        != calibrate.random_inputs(["a b c", "d e f g h"], 3, seed=1)
    )
    assert all(len(text.split()) == 4 and set(text.split()) <= set("abcdefgh") for text in drawn)


def test_ensembles_by_eye() -> None:
    scores = np.stack([logs([0.9, 0.1]), logs([0.4, 0.6]), logs([0.4, 0.6])])
    np.testing.assert_allclose(np.exp(ensemble.mean(scores)), [[1.7 / 3, 1.3 / 3]])
    np.testing.assert_allclose(np.exp(ensemble.weighted_mean(scores, np.array([0, 1, 1]))), [[0.4, 0.6]])
    assert ensemble.vote(scores).argmax() == 1 and ensemble.mean(scores).argmax() == 0
    assert ensemble.vote(scores[:2]).argmax() == 0  # one each: the mean probability decides
    with pytest.raises(ValueError, match="not all 0"):
        ensemble.weighted_mean(scores, np.zeros(3))


def test_examples_follow_from_seed_and_row_alone() -> None:
    pool = Pool([i % 3 for i in range(30)], [f"text {i}" for i in range(30)], np.eye(30))
    for way in ("random", "balanced", "nearest"):
        own = [choose(way, pool, 6, 0, text=f"text {i}", vector=np.eye(30)[i]) for i in range(10)]
        backwards = [
            choose(way, pool, 6, 0, text=f"text {i}", vector=np.eye(30)[i]) for i in reversed(range(10))
        ][::-1]
        assert own == backwards and len({tuple(o) for o in own}) > 5
        assert all(i not in chosen for i, chosen in enumerate(own))  # a row is never its own example
        assert own != [choose(way, pool, 6, 1, text=f"text {i}", vector=np.eye(30)[i]) for i in range(10)]
    assert (
        choose("fixed", pool, 4, 0, text="a")
        == choose("fixed", pool, 4, 0, text="b")
        != choose("fixed", pool, 4, 1, text="a")
    )
    assert sorted(pool.labels[i] for i in choose("fixed", pool, 6, 3, text="a")) == [0, 0, 1, 1, 2, 2]
    assert sorted(pool.labels[i] for i in choose("balanced", pool, 3, 3, text="a")) == [0, 1, 2]
    vector = np.zeros(30)
    vector[[4, 7]] = 0.9, 0.5
    assert choose("nearest", pool, 2, 0, text="new", vector=vector) == [
        7,
        4,
    ]  # the nearest stands beside the question
    assert choose("none", pool, 4, 0, text="a") == choose("random", pool, 0, 0, text="a") == []
    for way, message in (("best", "Unknown way"), ("nearest", "need embeddings")):
        with pytest.raises(InputError, match=message):
            choose(way, pool, 2, 0, text="a")
    with pytest.raises(InputError, match="30 rows to draw examples from, 31 wanted"):
        choose("random", pool, 31, 0, text="a")


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(make_model("llama", AutoModelForCausalLM, initializer_range=0.2), make_tokenizer("llama"))


class Counting:
    """A scorer that counts what it is asked."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.asked = scorer, 0

    def __call__(self, requests: list[Request]) -> list[list[np.ndarray]]:
        self.asked += sum(len(r.answers) for r in requests)
        return self.scorer(requests)


def test_a_stale_answer_is_never_given(scorer: Scorer, tmp_path: Path) -> None:
    asked = [Request("the film was", (" good", " bad")), Request("the film was", (" bad", " great"))]

    def ask(requests: list[Request], own: Scorer = scorer) -> tuple[int, list[list[np.ndarray]]]:
        counting = Counting(own)
        # type: ignore[arg-type]
        answers = Memory(counting, model_fingerprint(own), tmp_path / "cache.sqlite")(requests)
        for row, expected in zip(answers, own(requests), strict=True):
            assert_near(np.concatenate(row), np.concatenate(expected))
        return counting.asked, answers

    assert ask(asked)[0] == 3  # " bad" once
    assert ask(asked)[0] == 0
    assert ask([replace(asked[0], context="the film is")])[0] == 2
    assert ask([replace(asked[0], answers=(" good", " dull"))])[0] == 1
    assert ask([replace(asked[0], special=False)])[0] == 2
    other = Scorer(make_model("llama", AutoModelForCausalLM, initializer_range=0.2), scorer.tokenizer)
    with torch.no_grad():
        other.network.model.norm.weight[3] += 1e-3  # one number of all weights
    assert ask(asked, other)[0] == 3
    half = Scorer(
        make_model("llama", AutoModelForCausalLM, initializer_range=0.2).to(torch.bfloat16), scorer.tokenizer
    )
    assert (
        model_fingerprint(half)
        != model_fingerprint(scorer)
        != model_fingerprint(Scorer(scorer.network, scorer.tokenizer, share=False))
    )


def test_what_stands_in_configurations_is_part_of_the_fingerprint(saved, tmp_path: Path) -> None:
    base = saved("llama", AutoModelForCausalLM)

    def of(folder: Path) -> str:
        return model_fingerprint(load_prompt_scorer(str(folder), ScoringArguments(dtype="float32")))

    def changed(folder: Path, file: str, key: str, value: object) -> str:
        other = tmp_path / f"{folder.name}_{key}"
        shutil.copytree(folder, other)
        content = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps(content | {key: value}))
        return of(other)

    shutil.copytree(base, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == of(base)  # the same model in another place
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    network.save_pretrained(tmp_path / "adapter")
    found = [
        of(base), of(tmp_path / "adapter"), changed(base, "config.json", "rms_norm_eps", 0.1),
        changed(base, "generation_config.json", "repetition_penalty", 1.5), changed(tmp_path / "adapter",
        "adapter_config.json", "lora_alpha", 4),
    ]  # fmt: skip
    assert len(set(found)) == len(found)  # the same weights with other numbers beside them are another model


def test_an_interrupted_run_keeps_its_blocks(scorer: Scorer, tmp_path: Path) -> None:
    asked = [
        Request(f"the film was {'good ' * (i % 7)}{'bad ' * (i // 7 % 5)}{'in ' * (i // 35)}", (" dull",))
        for i in range(3 * BLOCK)
    ]
    asked.sort(key=lambda request: request.context)  # as blocks are cut: what begins alike stands together
    calls = []

    def until_third(requests: list[Request]) -> list[list[np.ndarray]]:
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scorer(requests)

    with pytest.raises(KeyboardInterrupt):
        Memory(until_third, "x", tmp_path / "cache.sqlite")(asked)  # type: ignore[arg-type]
    counting = Counting(scorer)
    answers = Memory(counting, "x", tmp_path / "cache.sqlite")(asked)  # type: ignore[arg-type]
    assert calls == [BLOCK] * 3 and counting.asked == BLOCK
    np.testing.assert_array_equal(
        np.concatenate([r[0] for r in answers]),
        np.concatenate([r[0] for i in range(3) for r in scorer(asked[i * BLOCK : (i + 1) * BLOCK])]),
    )


def test_prompts_of_one_row_stand_in_one_block_whatever_order_they_come_in() -> None:
    asked = [Request(f"row {i:03} asks {way}", (" dull",)) for way in ("one", "two") for i in range(BLOCK)]
    blocks: list[list[str]] = []

    def seen(requests: list[Request]) -> list[list[np.ndarray]]:
        blocks.append([request.context for request in requests])
        return [[np.zeros(1, dtype=np.float32)] for _ in requests]

    Memory(seen, "x")(asked)  # type: ignore[arg-type]
    assert [len({text[:8] for text in block}) for block in blocks] == [BLOCK // 2, BLOCK // 2]


def test_texts_are_written_up_to_their_ending(scorer: Scorer, tmp_path: Path) -> None:
    asked = [Request("the film was", ("",)), Request("we loved the story of a", ("",)), Request("it", ("",))]
    written = generate(scorer, asked, Ending("line", ("\n",), 5))
    scorer.batch_tokens = 8
    assert generate(scorer, asked, Ending("line", ("\n",), 5)) == written and all(
        written
    )  # padding changes no text
    memory = Memory(scorer, "x", tmp_path / "cache.sqlite")
    assert memory.written(asked, Ending("line", ("\n",), 5)) == written
    assert memory.written(asked, Ending("line", ("\n",), 5)) == written and memory.computed == 3
    assert (
        cut(" A man. He runs.\n\nB", Ending("e", (". ", "\n"), 9)) == "A man."
        and cut("x\ny", Ending("e", ("\n",), 9)) == "x"
        and cut("x ", Ending("e", ("\n",), 9)) == "x"
    )
    masked = Scorer(make_model("bert", AutoModelForMaskedLM), make_tokenizer("bert"))
    with pytest.raises(InputError, match="writes no text"):
        generate(masked, asked, Ending("line", ("\n",), 5))
    with pytest.raises(InputError, match="has to stand at the end"):
        generate(scorer, [Request("a", ("",), "b")], Ending("line", ("\n",), 5))
    paired = Scorer(make_model("t5", AutoModelForSeq2SeqLM), make_tokenizer("t5"))
    assert len(generate(paired, asked, Ending("line", ("\n",), 5))) == 3


@pytest.mark.filterwarnings(
    "ignore:Position ids are not supported"
)  # PEFT's word on rows that have no padding here
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_padding_changes_no_text_that_is_written(name: str) -> None:
    auto, task = (
        (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM")
        if name in ("t5", "bart")
        else (AutoModelForCausalLM, "CAUSAL_LM")
    )
    asked = [
        Request("the film was", ("",)),
        Request("a dull story of the actor it was", ("",)),
        Request("", ("",)),
    ]
    texts: set[str] = set()
    for method in (None, "prompt", "prefix"):
        network = make_model(name, auto, **({} if name in ("t5", "bart") else {"initializer_range": 0.4}))
        network = attach(network, method, None, task) if method else network
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        scorer = Scorer(network, make_tokenizer(name))
        together = generate(scorer, asked, Ending("line", ("\n",), 5))
        scorer.batch_tokens = 1
        assert generate(scorer, asked, Ending("line", ("\n",), 5)) == together
        texts |= set(together)
    assert len(texts) > 1


def test_compositions_are_new_and_read_the_same_columns() -> None:
    templates = [Template("t/a", "{{ text }}\nIn summary, it was {{ mask }}"),
                 Template("t/b", "Review: {{ text }}\nSentiment: {{ mask }}"),
                 Template("t/c", "{{ text }} was {{ mask }}.")]  # fmt: skip
    made = [template.text for template in compositions(templates)]
    assert (
        "Review: {{ text }}\nOverall, it was {{ mask }}" in made
        and "{{ text }}\nSentiment: {{ mask }}" in made
    )
    assert "{{ text }}\nIt was {{ mask }}" in made and not any(
        "In summary, in" in text or "Overall, sentiment" in text for text in made
    )
    assert len(made) == len(set(made)) and not set(made) & {template.text for template in templates}


def test_words_are_found_in_the_vocabulary() -> None:
    vocabulary = ["", "good", "bad", "the", "##x", "Good", "fine"]
    rows = np.log(np.full((4, 7), 0.1))
    rows[:2, 1], rows[2:, 2], rows[:, 3], rows[:2, 5], rows[2:, 6] = -0.1, -0.2, -0.1, -0.15, -1.0
    found = search_words(rows, np.array([0, 0, 1, 1]), vocabulary, ["pos", "neg"], count=2)
    assert found.words == (
        ("good", "the"),
        ("bad", "fine"),
    )  # "Good" is "good" again; "##x" and "" are no words
    tokenizer = make_tokenizer("llama")
    assert whole_words(tokenizer, 10, " ")[7] == tokenizer.decode([7])
    assert balanced_accuracy(logs([0.9, 0.1], [0.8, 0.2], [0.6, 0.4]), np.array([0, 1, 0])) == 0.25


def test_label_vectors_start_as_words_and_learn(scorer: Scorer) -> None:
    prompt = Prompt(Template("t/a", "{{ text }} it was {{ mask }}"), WORDS)
    rows = [
        ("the film was awful and slow", 0),
        ("a very bright story", 1),
        ("awful actor", 0),
        ("bright and sharp film", 1),
    ]
    requests = [prompt.request(scorer, {"text": text}).request for text, _ in rows]
    states, gold = scorer.states(requests), np.array([label for _, label in rows])
    start = scorer.word_vectors([" bad", " good"])
    untrained = soft_verbalizer(states, gold, start, decay=1e12)
    words = prompt.scores(scorer, requests)
    assert_near(np.diff(untrained.label_scores(states) - untrained.bias), np.diff(words), 1e-3)
    trained = soft_verbalizer(states, gold, start, decay=1e-3)
    assert (trained.label_scores(states).argmax(1) == gold).all()
    masked = Scorer(make_model("bert", AutoModelForMaskedLM), make_tokenizer("bert"))
    assert masked.states([prompt.request(masked, {"text": "the film"}).request]).shape == (1, 16)
    with pytest.raises(InputError, match="causal or masked"):
        Scorer(make_model("t5", AutoModelForSeq2SeqLM), make_tokenizer("t5")).states(requests)


@pytest.mark.parametrize("method", ["prompt", "ptuning", "lora"])
def test_tuning_moves_what_the_method_adds_and_nothing_else(scorer: Scorer, method: str) -> None:
    from prompts.study.rows import StudyRow

    prompt = Prompt(Template("t/a", "{{ text }} it was {{ mask }}"), WORDS)
    rows = [
        StudyRow({"text": text}, label, text)
        for text, label in (("the film was awful", 0), ("a very bright story", 1))
        for _ in range(8)
    ]
    before = {name: value.clone() for name, value in scorer.network.state_dict().items()}
    ask = [prompt.request(scorer, row.columns).request for row in rows[:1] + rows[-1:]]
    loss = -prompt.scores(scorer, ask)[[0, 1], [0, 1]].mean()
    network = tune(
        scorer,
        prompt,
        rows,
        TuneArguments(tune=method, tune_epochs=8, tune_batch_size=4, tune_learning_rate=0.05),
    )
    frozen = {
        name.replace(".base_layer", "").removeprefix("base_model.model.").removeprefix("base_model."): p
        for name, p in network.named_parameters()
        if not p.requires_grad
    }
    assert len(frozen) >= len(before) - 1 and all(
        torch.equal(value, before[name]) for name, value in frozen.items() if name in before
    )
    assert -prompt.scores(Scorer(network, scorer.tokenizer), ask)[[0, 1], [0, 1]].mean() < 0.5 * loss
    for options, message in (
        (TuneArguments(tune="full"), "trains the whole model"),
        (TuneArguments(tune="lore"), "Unknown method"),
    ):
        with pytest.raises(InputError, match=message):
            tune(scorer, prompt, rows, options)
    with pytest.raises(InputError, match="0 labelled"):
        tune(scorer, prompt, [], TuneArguments(tune="prompt"))
