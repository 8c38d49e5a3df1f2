"""Calibration, ensembles, examples, tests between prompts, the memory of answers, and a whole study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_model, make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from scipy.stats import binomtest
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from finetune import metrics
from finetune.adapters.passport import write_passport
from finetune.data.sources import DataArguments
from finetune.errors import InputError
from finetune.methods import attach
from finetune.options import parse_into
from prompts import calibrate, ensemble
from prompts.asked import ScoringArguments, embed, fingerprint, load_scorer
from prompts.entries import Ending
from prompts.generate import cut, generate
from prompts.memory import BLOCK, Memory
from prompts.paired import compare, intervals, mcnemar
from prompts.prompt import Prompt
from prompts.run import check, generate_all, keep_options, read_parts, study_prompts, tune_first
from prompts.score import Request, Scorer
from prompts.search import balanced_accuracy, compositions, search_words, whole_words
from prompts.shots import Pool, choose
from prompts.soft import soft_verbalizer
from prompts.study import CALIBRATIONS, Answers, Asking, Cell, StudyArguments
from prompts.template import Template
from prompts.tune import TuneArguments, tune
from prompts.verbalizer import Verbalizer, make_verbalizer, probabilities

ROOT = Path(__file__).parent.parent
WORDS = make_verbalizer("t/w", ["neg", "pos"], {"neg": "bad", "pos": "good"})
ENTRY = """
labels: [neg, pos]
templates:
  is: {text: "{{ text }} it was {{ mask }}", follows: own}
  film: {text: "the film was\\n{{ text }} it is {{ mask }}", follows: own}
verbalizers:
  plain: {neg: bad, pos: good}
  strong: {neg: [awful, dull], pos: [great, fine]}
"""


def logs(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows))


def test_calibrations_by_eye() -> None:
    scores = logs([0.8, 0.2], [0.6, 0.4])
    np.testing.assert_allclose(
        probabilities(calibrate.contextual(scores, logs([0.8, 0.2], [0.6, 0.4]))), [[12 / 19, 7 / 19 * 1.0], [9 / 23, 14 / 23]]
    )
    np.testing.assert_allclose(probabilities(calibrate.pmi(scores, logs([0.8, 0.2]))), [[0.5, 0.5], [3 / 11, 8 / 11]])
    batch = probabilities(calibrate.batch(scores))  # the rows say 0.7 : 0.3 on average
    np.testing.assert_allclose(batch, [[12 / 19, 7 / 19], [9 / 23, 14 / 23]])
    assert batch.argmax(1).tolist() == [0, 1]  # raw says 0 twice
    np.testing.assert_allclose(calibrate.domain(scores, scores), calibrate.contextual(scores, scores))
    for answer in (calibrate.batch(scores), calibrate.contextual(scores + 7.0, scores)):  # a constant over labels changes nothing
        np.testing.assert_allclose(probabilities(answer), batch)


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
    np.testing.assert_allclose(np.exp(ensemble.weighted(scores, np.array([0, 1, 1]))), [[0.4, 0.6]])
    assert ensemble.vote(scores).argmax() == 1 and ensemble.mean(scores).argmax() == 0
    assert ensemble.vote(scores[:2]).argmax() == 0  # one each: the mean probability decides
    with pytest.raises(ValueError, match="not all 0"):
        ensemble.weighted(scores, np.zeros(3))


@pytest.mark.parametrize(("one", "other"), [(12, 3), (5, 5), (0, 0), (1, 9)])
def test_mcnemar_is_scipys_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected)


def test_comparisons_say_it_in_words() -> None:
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 58 + [False] * 42)
    near = compare(first, second)
    assert near.difference == pytest.approx(0.02) and (near.only_first, near.only_second) == (2, 0)
    assert near.in_words().startswith("not significant (p = 0.5)") and near.low <= 0.02 <= near.high
    far = compare(first, ~np.array([True] * 100))
    assert far.in_words().startswith("better") and compare(~np.array([True] * 100), first).in_words().startswith("worse")
    # the interval of a mean of differences has the width that its standard error says
    noise = np.random.default_rng(0).random((2, 400)) < 0.5
    result = compare(*noise)
    width = 2 * 1.96 * (noise[0].astype(float) - noise[1]).std() / 20
    assert result.high - result.low == pytest.approx(width, rel=0.1)
    sure = intervals(noise[0].astype(int), noise[1].astype(int), 2, metrics.draws(400, 2000, 0))
    np.testing.assert_allclose(sure["accuracy"], metrics.interval(noise[0] == noise[1]), atol=1e-9)
    np.testing.assert_allclose(
        sure["macro_f1"], metrics.macro_f1_interval(noise[0].astype(int), noise[1].astype(int), 2), atol=1e-9
    )
    with pytest.raises(ValueError, match="wanted the same rows"):
        compare(first, second[:5])


def test_examples_follow_from_seed_and_row_alone() -> None:
    pool = Pool([i % 3 for i in range(30)], [f"text {i}" for i in range(30)], np.eye(30))
    for way in ("random", "balanced", "nearest"):
        own = [choose(way, pool, 6, 0, f"text {i}", np.eye(30)[i]) for i in range(10)]
        backwards = [choose(way, pool, 6, 0, f"text {i}", np.eye(30)[i]) for i in reversed(range(10))][::-1]
        assert own == backwards and len({tuple(o) for o in own}) > 5
        assert all(i not in chosen for i, chosen in enumerate(own))  # a row is never its own example
        assert own != [choose(way, pool, 6, 1, f"text {i}", np.eye(30)[i]) for i in range(10)]
    assert choose("fixed", pool, 4, 0, "a") == choose("fixed", pool, 4, 0, "b") != choose("fixed", pool, 4, 1, "a")
    assert sorted(pool.labels[i] for i in choose("fixed", pool, 6, 3, "a")) == [0, 0, 1, 1, 2, 2]
    assert sorted(pool.labels[i] for i in choose("balanced", pool, 3, 3, "a")) == [0, 1, 2]
    vector = np.zeros(30)
    vector[[4, 7]] = 0.9, 0.5
    assert choose("nearest", pool, 2, 0, "new", vector) == [7, 4]  # the nearest stands beside the question
    assert choose("none", pool, 4, 0, "a") == choose("random", pool, 0, 0, "a") == []
    for way, message in (("best", "Unknown way"), ("nearest", "need embeddings")):
        with pytest.raises(InputError, match=message):
            choose(way, pool, 2, 0, "a")
    with pytest.raises(InputError, match="30 rows to draw examples from, 31 wanted"):
        choose("random", pool, 31, 0, "a")


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
        answers = Memory(counting, fingerprint(own), tmp_path / "cache.sqlite")(requests)  # type: ignore[arg-type]
        for row, expected in zip(answers, own(requests), strict=True):
            np.testing.assert_allclose(np.concatenate(row), np.concatenate(expected), atol=1e-5)
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
    half = Scorer(make_model("llama", AutoModelForCausalLM, initializer_range=0.2).to(torch.bfloat16), scorer.tokenizer)
    assert fingerprint(half) != fingerprint(scorer) != fingerprint(Scorer(scorer.network, scorer.tokenizer, share=False))


def test_what_stands_in_configurations_is_part_of_the_fingerprint(saved, tmp_path: Path) -> None:
    base = saved("llama", AutoModelForCausalLM)

    def of(folder: Path) -> str:
        return fingerprint(load_scorer(str(folder), ScoringArguments(dtype="float32")))

    def changed(folder: Path, file: str, key: str, value: object) -> str:
        other = tmp_path / f"{folder.name}_{key}"
        shutil.copytree(folder, other)
        content = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps(content | {key: value}))
        return of(other)

    shutil.copytree(base, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == of(base)  # the same model in another place
    network = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    network.save_pretrained(tmp_path / "adapter")
    found = [
        of(base), of(tmp_path / "adapter"), changed(base, "config.json", "rms_norm_eps", 0.1),
        changed(base, "generation_config.json", "repetition_penalty", 1.5), changed(tmp_path / "adapter", "adapter_config.json", "lora_alpha", 4),
    ]  # fmt: skip
    assert len(set(found)) == len(found)  # the same weights with other numbers beside them are another model


def test_an_interrupted_run_keeps_its_blocks(scorer: Scorer, tmp_path: Path) -> None:
    asked = [
        Request(f"the film was {'good ' * (i % 7)}{'bad ' * (i // 7 % 5)}{'in ' * (i // 35)}", (" dull",))
        for i in range(3 * BLOCK)
    ]
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


def test_texts_are_written_up_to_their_ending(scorer: Scorer, tmp_path: Path) -> None:
    asked = [Request("the film was", ("",)), Request("we loved the story of a", ("",)), Request("it", ("",))]
    written = generate(scorer, asked, Ending("line", ("\n",), 5))
    scorer.batch_tokens = 8
    assert generate(scorer, asked, Ending("line", ("\n",), 5)) == written and all(written)  # padding changes no text
    memory = Memory(scorer, "x", tmp_path / "cache.sqlite")
    assert memory.written(asked, Ending("line", ("\n",), 5)) == written
    assert memory.written(asked, Ending("line", ("\n",), 5)) == written and memory.computed == 3
    assert cut(" A man. He runs.\n\nB", (". ", "\n")) == "A man." and cut("x\ny", ("\n",)) == "x" and cut("x ", ("\n",)) == "x"
    masked = Scorer(make_model("bert", AutoModelForMaskedLM), make_tokenizer("bert"))
    with pytest.raises(InputError, match="writes no text"):
        generate(masked, asked, Ending("line", ("\n",), 5))
    with pytest.raises(InputError, match="has to stand at the end"):
        generate(scorer, [Request("a", ("",), "b")], Ending("line", ("\n",), 5))
    paired = Scorer(make_model("t5", AutoModelForSeq2SeqLM), make_tokenizer("t5"))
    assert len(generate(paired, asked, Ending("line", ("\n",), 5))) == 3


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT's word on rows that have no padding here
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_padding_changes_no_text_that_is_written(name: str) -> None:
    auto, task = (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM") if name in ("t5", "bart") else (AutoModelForCausalLM, "CAUSAL_LM")
    asked = [Request("the film was", ("",)), Request("a dull story of the actor it was", ("",)), Request("", ("",))]
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
    assert "Review: {{ text }}\nOverall, it was {{ mask }}" in made and "{{ text }}\nSentiment: {{ mask }}" in made
    assert "{{ text }}\nIt was {{ mask }}" in made and not any(
        "In summary, in" in text or "Overall, sentiment" in text for text in made
    )
    assert len(made) == len(set(made)) and not set(made) & {template.text for template in templates}


def test_words_are_found_in_the_vocabulary() -> None:
    vocabulary = ["", "good", "bad", "the", "##x", "Good", "fine"]
    rows = np.log(np.full((4, 7), 0.1))
    rows[:2, 1], rows[2:, 2], rows[:, 3], rows[:2, 5], rows[2:, 6] = -0.1, -0.2, -0.1, -0.15, -1.0
    found = search_words(rows, np.array([0, 0, 1, 1]), vocabulary, ["pos", "neg"], count=2)
    assert found.words == (("good", "the"), ("bad", "fine"))  # "Good" is "good" again; "##x" and "" are no words
    tokenizer = make_tokenizer("llama")
    assert whole_words(tokenizer, 10, " ")[7] == tokenizer.decode([7])
    assert balanced_accuracy(logs([0.9, 0.1], [0.8, 0.2], [0.6, 0.4]), np.array([0, 1, 0])) == 0.25


def test_label_vectors_start_as_words_and_learn(scorer: Scorer) -> None:
    prompt = Prompt(Template("t/a", "{{ text }} it was {{ mask }}"), WORDS)
    rows = [("the film was awful and slow", 0), ("a very bright story", 1), ("awful actor", 0), ("bright and sharp film", 1)]
    requests = [prompt.request(scorer, {"text": text})[0] for text, _ in rows]
    states, gold = scorer.states(requests), np.array([label for _, label in rows])
    start = scorer.word_vectors([" bad", " good"])
    untrained = soft_verbalizer(states, gold, start, decay=1e12)
    words = prompt.scores(scorer, requests)
    np.testing.assert_allclose(np.diff(untrained.label_scores(states) - untrained.bias), np.diff(words), atol=1e-3)
    trained = soft_verbalizer(states, gold, start, decay=1e-3)
    assert (trained.label_scores(states).argmax(1) == gold).all()
    masked = Scorer(make_model("bert", AutoModelForMaskedLM), make_tokenizer("bert"))
    assert masked.states([prompt.request(masked, {"text": "the film"})[0]]).shape == (1, 16)
    with pytest.raises(InputError, match="causal or masked"):
        Scorer(make_model("t5", AutoModelForSeq2SeqLM), make_tokenizer("t5")).states(requests)


@pytest.mark.parametrize("method", ["prompt", "ptuning", "lora"])
def test_tuning_moves_what_the_method_adds_and_nothing_else(scorer: Scorer, method: str) -> None:
    from prompts.rows import Row

    prompt = Prompt(Template("t/a", "{{ text }} it was {{ mask }}"), WORDS)
    rows = [
        Row({"text": text}, label, text)
        for text, label in (("the film was awful", 0), ("a very bright story", 1))
        for _ in range(8)
    ]
    before = {name: value.clone() for name, value in scorer.network.state_dict().items()}
    ask = [prompt.request(scorer, row.columns)[0] for row in rows[:1] + rows[-1:]]
    loss = -prompt.scores(scorer, ask)[[0, 1], [0, 1]].mean()
    network = tune(scorer, prompt, rows, TuneArguments(tune=method, tune_epochs=8, tune_batch_size=4, tune_learning_rate=0.05))
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


def run(model: Path, rows: Path, folder: Path, **options: object) -> tuple[StudyArguments, DataArguments]:
    (folder / "own.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "own.yaml").write_text(ENTRY)
    study = StudyArguments(
        prompts=[str(folder / "own.yaml")], models=[str(model)], choose_rows=12, output_dir=str(folder / "out"), **options
    )  # type: ignore[arg-type]
    return study, DataArguments(dataset_name=str(rows), max_eval_rows=20)


def finish(study: StudyArguments, data: DataArguments, tuning: TuneArguments | None = None):
    tuning = tuning or TuneArguments()
    entry, prompts, parts, labels = read_parts(study, data, tuning)
    if tuning.tune:
        study.models.append(tune_first(prompts[0], parts, study, tuning))
    return study_prompts(entry, prompts, parts, labels, study, ScoringArguments(dtype="float32"))


def test_a_whole_study(saved, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, data = run(
        saved("llama", AutoModelForCausalLM, initializer_range=0.2),
        review_file,
        tmp_path / "a",
        shots=[0, 1],
        search=True,
        search_rows=8,
    )
    found = finish(study, data)
    cells = {answers.cell for answers in found.answers}
    assert len(cells) == len(found.answers) and {cell.shots for cell in cells} == {0, 1}
    assert {cell.verbalizer for cell in cells} == {"plain", "strong", "words"} and any(
        "composed" in cell.template for cell in cells
    )
    folder = Path(study.output_dir)
    table = pq.read_table(folder / "rows.parquet").to_pylist()
    assert len(table) == 20 * len(cells) and {row["prediction"] for row in table} <= {"neg", "pos"}
    report = (folder / "report.md").read_text()
    for part in (
        "Chosen on training rows",
        "Spread over templates",
        "What each calibration does",
        "not significant",
        "All prompts together",
    ):
        assert part in report
    assert report in capsys.readouterr().out and (folder / "spread.png").stat().st_size > 5000
    first = {
        file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".md", ".csv", ".parquet", ".png", ".json")
    }
    finish(study, data)  # from the answers kept
    assert {name: (folder / name).read_bytes() for name in first} == first
    assert {name.rpartition(".")[2] for name in first} == {"md", "csv", "parquet", "png", "json"}
    unseen = {row.identity for row in found.rows}
    parts = read_parts(study, data, TuneArguments())[2]
    pieces = [{row.identity for row in piece} for piece in (parts.training, parts.search, parts.examples)]
    assert len(set.union(*pieces)) == sum(map(len, pieces)) and not unseen & set.union(
        *pieces
    )  # nothing is chosen on what it is measured on


def test_options_are_kept_as_config_takes_them(tmp_path: Path) -> None:
    study = StudyArguments(prompts=["topic"], shots=[0, 4], output_dir=str(tmp_path))
    keep_options(tmp_path, study, DataArguments(), ScoringArguments(), TuneArguments())
    again = parse_into(
        [StudyArguments, DataArguments, ScoringArguments, TuneArguments], ["--config", str(tmp_path / "arguments.yaml")]
    )
    assert again == [study, DataArguments(), ScoringArguments(), TuneArguments()]


def test_a_study_with_a_tuned_prompt(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    found = finish(study, data, TuneArguments(tune="prompt", tune_rows=16))
    assert {answers.cell.model for answers in found.answers} == set(study.models) and len(study.models) == 2
    weights = Path(study.models[1]) / "adapter_model.safetensors"
    assert (Path(study.models[1]) / "passport.json").is_file()

    def trained(**options: object) -> int:
        study.models[:] = study.models[:1]
        finish(study, data, TuneArguments(**{"tune": "prompt", "tune_rows": 16, **options}))
        return weights.stat().st_mtime_ns

    first = weights.stat().st_mtime_ns
    assert trained() == first  # once
    second = trained(tune_epochs=2)
    (tmp_path / "a" / "own.yaml").write_text(ENTRY.replace("it was", "it is"))
    assert first < second < trained(tune_epochs=2)  # what is asked for is another adapter


def test_a_study_with_label_vectors(saved, review_file: Path, tmp_path: Path) -> None:
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.2)
    study, data = run(model, review_file, tmp_path / "a", soft_rows=16, shots=[0, 1])
    found = finish(study, data)
    soft = [answers for answers in found.answers if answers.cell.verbalizer == "soft"]
    templates = {answers.cell.template for answers in found.answers}
    assert {(a.cell.template, a.cell.shots) for a in soft} == {(template, shots) for template in templates for shots in (0, 1)}
    assert soft[0].labels["unseen"].shape == (20, 2) and np.isfinite(soft[0].scores("prior", "training")).all()
    parts = read_parts(study, data, TuneArguments())[2]
    assert len(parts.soft) == 16 and not {r.identity for r in parts.soft} & {r.identity for r in [*parts.training, *parts.unseen]}


def test_the_prior_of_each_word_is_taken_away_before_words_are_joined() -> None:
    words = logs([0.4, 0.1, 0.2], [0.2, 0.1, 0.6])
    verbalizer = Verbalizer("v", ("a", "b"), (("x", "y"), ("z",)))
    answers = Answers(Cell("m", "t", "v", 0, 0), {"unseen": words[:, :2]}, [], verbalizer, {"unseen": words})
    # means of the words: 0.3, 0.1, 0.4
    np.testing.assert_allclose(np.exp(answers.scores("prior")), [[(4 / 3 + 1) / 2, 0.5], [(2 / 3 + 1) / 2, 1.5]])


def test_nearest_examples_and_other_families(saved, review_file: Path, tmp_path: Path) -> None:
    embedder = saved("bert", AutoModel, seed=1)
    vectors = embed(str(embedder), ["the film", "the film", "a dull story"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    for family, auto in (("bert", AutoModelForMaskedLM), ("t5", AutoModelForSeq2SeqLM)):  # and nothing chosen
        study, data = run(
            saved(family, auto), review_file, tmp_path / family, shots=[1], shot_choice="nearest", embedder=str(embedder)
        )
        found = finish(replace(study, choose_rows=0), data)
        assert len(found.answers) == 4 and found.chosen is None


def test_generated_texts_are_measured(saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(
        'metric: rougeL\ntarget: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}", b: "{{ text }} and {{ mask }}"}\n'
        'endings: {line: {until: ["\\n"], tokens: 4}}\n'
    )
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"text": "the film was", "end": "very good"}) for _ in range(3)))
    model = saved("llama", AutoModelForCausalLM)
    study = StudyArguments(prompts=[str(tmp_path / "own.yaml")], models=[str(model)], output_dir=str(tmp_path / "out"))
    entry, _, parts, _ = read_parts(
        study, DataArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl"]), TuneArguments()
    )
    table = generate_all(entry, parts, study, ScoringArguments(dtype="float32"))
    assert [line["prompt"] for line in table] == ["own/a/line", "own/b/line"] and "rougeL" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {line["wanted"] for line in lines} == {"very good"}


def test_texts_are_written_behind_examples_of_texts(saved, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        'target: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}"}\nendings: {line: {until: ["."], tokens: 4}}\n'
    )
    for split, texts in (("test", ["the film", "a story"]), ("train", ["the actor", "the film", "it was"])):
        lines = [json.dumps({"text": text, "end": f"very {'good' if split == 'train' else 'bad'}"}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[str(saved("llama", AutoModelForCausalLM))], shots=[0, 2],
        shot_choice="random", output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    data = DataArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl", "train=train.jsonl"])
    entry, _, parts, _ = read_parts(study, data, TuneArguments())
    table = generate_all(entry, parts, study, ScoringArguments(dtype="float32"))
    assert [line["prompt"] for line in table] == ["own/a/line", "own/a/line 2 shots, seed 0"]
    asking = Asking(Memory(load_scorer(study.models[0]), "x"), study, parts.examples)
    request = asking.text_request(entry.templates["a"], entry.targets["a"], parts.unseen[0], (2, 0), 4)
    assert request.context.endswith("\n\nthe film") and request.context.count("very good\n\n") == 2
    for options, message in (({"search": True}, "leave out --search"), ({"shots": [4]}, "3 training rows for 4 examples")):
        with pytest.raises(InputError, match=message):
            read_parts(replace(study, **options), data, TuneArguments())


def test_calibration_keeps_what_is_no_text(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    (tmp_path / "rows").mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (review_file / f"{split}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row |= {"stars": number % 5 + 1, "words": row["text"].split(), "title": None if number % 3 else "a film"}
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path(study.prompts[0]).write_text(
        ENTRY.replace("{{ text }} it was", "{{ title }} {{ stars + 1 }} {{ words[0] }} {{ words[-1] }} it was").replace(
            "the film was\\n{{ text }} it is {{ mask }}", "{{ text }} {{ mask }}"
        )
    )
    found = finish(study, replace(data, dataset_name=str(tmp_path / "rows")))
    assert len(found.answers) == 4 and all(np.isfinite(a.scores(how)).all() for a in found.answers for how in CALIBRATIONS)


def test_check_passes_good_prompts_and_stops_at_bad_ones(
    saved, review_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a", check=True)
    entry, prompts, parts, _ = read_parts(study, data, TuneArguments())
    assert check(entry, prompts, parts, study, ScoringArguments()) == [] and "nothing wrong" in capsys.readouterr().out
    study.max_length = 6
    with pytest.raises(InputError, match="things are wrong with the prompts of 'own'"):
        check(entry, prompts, parts, study, ScoringArguments())
    assert "rows have more than 6 tokens" in capsys.readouterr().out


def test_check_reads_what_written_texts_are_compared_with(saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(
        'target: "{{ end }}"\ntemplates: {a: "{{ text }} {{ mask }}", b: "{{ txt }} {{ mask }}"}\n'
    )
    rows = [{"text": "the film", "end": ""}, {"text": "", "end": "x"}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(saved("llama", AutoModelForCausalLM))
    study = StudyArguments(prompts=[str(tmp_path / "own.yaml")], models=[model], check=True, output_dir=str(tmp_path / "out"))
    data = DataArguments(dataset_name=str(tmp_path), data_files=["test=test.jsonl"])
    entry, prompts, parts, _ = read_parts(study, data, TuneArguments())
    with pytest.raises(InputError, match="4 things are wrong"):
        check(entry, prompts, parts, study, ScoringArguments())
    told = capsys.readouterr().out
    for fault in (
        "own/a: 1 rows with an empty column", "own/a: 1 rows render to nothing", "own/target: 1 rows have no text to compare with",
        "own/b: no column 'txt'; the rows have text, end",
    ):  # fmt: skip
        assert fault in told


def test_tables_bear_any_label_and_the_cache_any_file(saved, tmp_path: Path) -> None:
    labels = ["a | b", "two\nlines", "gold"]
    (tmp_path / "own.yaml").write_text(
        'labels: data\ntemplates: {a: "{{ text }} it was {{ mask }}", b: "{{ text }} is {{ mask }}"}\n'
        'verbalizers: {w: {"a | b": good, "two\\nlines": bad, gold: dull}}\n'
    )
    for split in ("train", "test"):
        rows = [{"text": f"the film {'|' * i} \r\n was", "label": labels[i % 3]} for i in range(9)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[str(saved("llama", AutoModelForCausalLM))], choose_rows=0,
        output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    finish(study, DataArguments(dataset_name=str(tmp_path)))
    lines = (tmp_path / "out" / "report.md").read_text().split("## Where the first prompt errs")[1].splitlines()
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables} == {5} and sum("gold ↓ said →" in line for line in tables) == 1
    (tmp_path / "out" / "cache.sqlite").write_text("no database" * 99)
    with pytest.raises(InputError, match=r"cache.sqlite can't keep answers: .*Remove it, or set --cache_file"):
        finish(study, DataArguments(dataset_name=str(tmp_path)))


def test_what_a_study_cannot_do_is_named(saved, review_file: Path, tmp_path: Path) -> None:
    study, data = run(saved("llama", AutoModelForCausalLM), review_file, tmp_path / "a")
    with pytest.raises(InputError, match="48 training rows for 60 to choose on"):
        read_parts(replace(study, choose_rows=60), data, TuneArguments())
    for option, wrong in (("choose_rows", -1), ("shots", [0, -1]), ("max_length", 0), ("shots", [])):
        with pytest.raises(InputError, match=f"--{option} .*wanted"):
            read_parts(replace(study, **{option: wrong}), data, TuneArguments())
    with pytest.raises(InputError, match=r"No row of '.*' among the 1 that words are searched on. Set --search_rows"):
        finish(replace(study, search=True, search_rows=1), data)
    same = tmp_path / "same.yaml"
    same.write_text(ENTRY.replace("pos: good", "pos: zebra"))
    with pytest.raises(InputError, match=r"same/is/plain: The answer ' zebra' is unknown to the vocabulary"):
        finish(replace(study, prompts=[str(same)]), data)
    with pytest.raises(InputError, match="was saved as BertModel"):
        load_scorer(str(saved("bert", AutoModel, seed=2)))
    with pytest.raises(InputError, match="text follows the slot"):
        cloze = tmp_path / "cloze.yaml"
        cloze.write_text(
            ENTRY.replace('it was {{ mask }}"', 'it was {{ mask }} ."').replace('it is {{ mask }}"', 'it is {{ mask }} ."')
        )
        finish(replace(study, prompts=[str(cloze)]), data)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "x"})
    )
    save_file({"x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="answers by a head of its own"):
        load_scorer(str(adapter))


def test_processes_know_of_each_other(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "from finetune.training.plan import join_processes\n"
        "state = join_processes()\n"
        "open(f'{state.process_index} of {state.num_processes}', 'w')\n"
    )
    done = launched(["told.py"], tmp_path)
    assert done.returncode == 0 and "gives the same bytes" in done.stderr, done.stderr[-3000:]
    assert {"0 of 2", "1 of 2"} <= {file.name for file in tmp_path.iterdir()}


def launched(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A script in two processes, as the README launches it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    config = str(ROOT / "scripts" / "accelerate" / "two_cpus.yaml")
    launcher = ["accelerate", "launch", "--config_file", config, "--main_process_port", "0"]
    return subprocess.run(
        [*launcher, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_an_adapter_on_a_tuned_model_is_asked_on_the_two_merged(saved, tmp_path: Path) -> None:
    base, folders = saved("llama", AutoModelForCausalLM, initializer_range=0.2), (tmp_path / "sft", tmp_path / "dpo")
    network, tokenizer = AutoModelForCausalLM.from_pretrained(base), make_tokenizer("llama")
    for below, folder in zip((base, folders[0]), folders, strict=True):
        config = LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules="all-linear")
        network = get_peft_model(network, config)
        network.save_pretrained(folder)
        write_passport(folder, network, tokenizer, base=str(below), method="lora", method_kwargs=None, task="sft", labels=None,
                       data_fingerprint=None, metrics=None)  # fmt: skip
        (folder / "arguments.yaml").write_text(f"model_name_or_path: {below}\n")
        network = network.merge_and_unload()
    asked = [Request("the film was", (" good", " bad"))]
    expected = Scorer(network, tokenizer)(asked)[0]
    for dtype, near in (("float32", 1e-4), ("bfloat16", 0.2)):
        found = load_scorer(str(folders[1]), ScoringArguments(dtype=dtype))
        assert next(found.network.parameters()).dtype == getattr(torch, dtype)
        np.testing.assert_allclose(np.concatenate(found(asked)[0]), np.concatenate(expected), atol=near)
    virtual = attach(AutoModelForCausalLM.from_pretrained(base), "prompt", None, "CAUSAL_LM")
    virtual.save_pretrained(folders[0])
    (folders[0] / "passport.json").unlink()
    with pytest.raises(InputError, match=r"PROMPT_TUNING adapter can't be merged"):
        load_scorer(str(folders[1]))


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(saved, review_file: Path, tmp_path: Path) -> None:
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.2)
    (tmp_path / "own.yaml").write_text(ENTRY)
    options = f"--prompts own.yaml --models {model} --dataset_name {review_file} --choose_rows 12 --shots 0 1 --search true"
    further = "--search_rows 8 --soft_rows 8 --tune lora --tune_rows 8 --output_dir out"
    command = [str(ROOT / "scripts" / "prompt.py"), *options.split(), *further.split()]
    done = launched(command, tmp_path)
    assert done.returncode == 0 and done.stdout.count("# own: 24 rows") == 1, done.stderr[-3000:]  # one process reports
    names = ("rows.parquet", "figures.csv", "pairs.csv", "report.md", "findings.json", "spread.png", "arguments.yaml")
    two = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / "out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, timeout=300, check=True)
    assert two == {name: (tmp_path / "out" / name).read_bytes() for name in names}
