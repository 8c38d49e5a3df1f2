"""The ladder: which rows are drawn, what a page says of figures that are known, and that what is done stays
done."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WORDS
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from finetune.cli.parser import parse
from finetune.errors import InputError
from finetune.metrics.learning_curve import interval_of_means, outlook, power_law
from finetune.reports.ladder import LadderPage, LadderPoint, advice, ladder_page
from prompts.ladder import asked, run, tuned
from prompts.ladder.asked import ladder_prompt
from prompts.ladder.budget import BudgetSpent, StopInTime, TimeBudget
from prompts.ladder.options import WAYS, LadderArguments
from prompts.ladder.rows import drawn, settled_counts

ROOT = Path(__file__).parents[2]


def test_few_labels_hold_each_class_and_more_hold_the_fewer():
    classes = np.array([0] * 40 + [1] * 8 + [2] * 2)
    few, more = drawn(classes, 5, seed=1), drawn(classes, 20, seed=1)
    assert set(classes[few]) == {0, 1, 2} and more[:5] == few and len(set(more)) == 20
    assert drawn(classes, 5, seed=2) != few


def test_numbers_of_labels():
    assert settled_counts(None, 1528) == [16, 64, 256, 1024, 1528]
    assert settled_counts(None, 270) == [16, 64, 270] and settled_counts(None, 9999)[-1] == 4096
    assert settled_counts([64, 16, 64], 100) == [16, 64]
    with pytest.raises(InputError, match=r"--label_counts 500 and there are 100 rows"):
        settled_counts([500], 100)


def test_a_power_law_is_found_again():
    sizes = np.array([16, 64, 256])
    a, b = power_law(sizes, 0.8 * sizes**-0.35)
    assert (a, b) == (pytest.approx(0.8), pytest.approx(0.35))
    assert power_law(sizes, np.array([0.1, 0.2, 0.3]))[1] == 0.0  # labels do no harm


def test_what_more_labels_bring_with_its_doubt():
    rng, sizes = np.random.default_rng(0), (16, 64, 256, 1024)
    scores = {n: (rng.random((3, 4000)) > 0.9 * n**-0.3).astype(float) for n in sizes}
    found = outlook(scores, 1024)
    true = 0.9 * (1024**-0.3 - 2048**-0.3)
    assert found.low < true < found.high and found.gain == pytest.approx(true, rel=0.3)
    fewer = outlook({n: one[:, :100] for n, one in scores.items()}, 1024)
    assert fewer.high - fewer.low > found.high - found.low
    assert outlook({16: scores[16], 64: scores[64]}, 500) is None


def accuracies(*shares, rows=400, draws=2, noise=0):
    """A page of one way whose accuracies at 16, 64, 256, ... labels are these; `noise` lies between draws."""
    points = [
        point("way", 16 * 4**place, right(share + noise * (-1) ** (place + draw), rows, seed=7), seed=draw)
        for place, share in enumerate(shares)
        for draw in range(draws)
    ]
    return page(*points, rows=rows)


@pytest.mark.parametrize(
    ("shares", "noise", "said"),
    [
        ((0.5, 0.7, 0.8, 0.87), 0, "would likely bring way +0."),
        ((0.8, 0.8, 0.8, 0.8), 0, "Nothing says that another 500 labels would bring way more"),
        # steep at first, and then no more
        ((0.5, 0.85, 0.85, 0.85), 0, "Nothing says that another 500 labels would bring way more"),
        ((0.9, 0.85, 0.8, 0.7), 0, "way became worse with more labels: from 256 to 1024 labels"),
        ((0.5, 0.9, 0.9, 0.75), 0, "way became worse with more labels"),
        ((0.6, 0.62, 0.61, 0.63), 0.15, "Nothing says that another 500 labels"),
        ((0.6, 0.9, 1.0), 0, "way is right on all 400 unseen rows"),
        ((0.5, 0.8), 0, "too few numbers of labels were tried"),
        ((0.5,), 0, "too few numbers of labels were tried"),
    ],
)
def test_more_labels_are_promised_nothing_where_the_curve_does_not_rise(shares, noise, said):
    made = accuracies(*shares, noise=noise)
    words, html = " ".join(advice(made)), ladder_page(made)
    assert said in words and ("would likely bring" in words) == ("likely bring" in said)
    # the table says the same as the words
    assert ("no gain that is likely" in html) == (len(shares) > 2 and "likely bring" not in said)


def test_intervals_know_rows_and_draws():
    alike = np.tile((np.arange(100) < 60).astype(float), (3, 1))
    apart = np.stack([np.full(100, 0.0), np.full(100, 0.5), np.full(100, 1.0)])
    narrow, wide = interval_of_means(alike), interval_of_means(apart)
    # all right: the doubt that is left is that of 100 rows, whatever the number of draws
    assert interval_of_means(np.ones((3, 100))) == (pytest.approx(0.025 ** (1 / 100)), 1.0)
    assert 0.45 < narrow[0] < 0.6 < narrow[1] < 0.75 and wide[1] - wide[0] > 0.5


def point(way, labels, right, row_ms=1.0, grows=True, seed=0):
    gold = np.arange(len(right)) % 2
    said = np.where(right, gold, 1 - gold).tolist()
    return LadderPoint(way, labels, seed, list(right), said, 2.0, row_ms, 100.0, 1.0, 50.0, grows)


def right(share, rows=200, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(rows) < share * rows)


def page(*points, rows=200, **further):
    return LadderPage("x.csv", points, (np.arange(rows) % 2).tolist(), ["a", "b"], **further)


def test_the_commonest_class_stands_beside_few_labels_too():
    few = right(0.5, seed=3)
    few[np.flatnonzero(~few)[:2]] = True  # two of 200 rows better than to guess
    made = page(
        point("guess", 256, right(0.5, seed=3), 0.1, grows=False),
        point("bag", 16, few, 1.0), point("bag", 256, right(0.9), 1.0),
    )  # fmt: skip
    assert f"With 16 labels: bag ({few.mean():.3f}); not significantly behind: guess." in advice(made)


def test_the_cheapest_of_those_that_are_alike_is_taken():
    best, near = right(0.90), right(0.90)
    near[np.flatnonzero(near)[:3]] = False  # three of 200 rows apart
    made = page(
        point("guess", 256, right(0.5, seed=3), 0.1, grows=False),
        point("slow", 256, best, 50.0), point("quick", 256, near, 2.0),
        point("worse", 256, right(0.6, seed=5), 0.5),
        commands={"quick": "finetune train --method quick"}, missing=["slow, 1024 labels: no time left"],
    )  # fmt: skip
    assert made.taken.way == "quick" and {cell.way for cell in made.alike} == {"slow", "quick"}
    said = " ".join(advice(made))
    assert "Take quick: accuracy 0.885" in said and "takes 25 times as long a row" in said
    assert "With 256 labels: slow (0.900); not significantly behind: quick." in said
    assert "too few numbers of labels" in said and "1 run is not in this page" in said
    html = ladder_page(made)
    assert "finetune train --method quick" in html and "no time left" in html and "<svg" in html
    assert not any(sign in html for sign in ("<script", "<link", " src=", 'href="http'))


def test_ways_that_came_less_far_are_named():
    made = page(point("a", 16, right(0.7)), point("a", 64, right(0.8)), point("b", 16, right(0.75, seed=2)))
    assert any(
        "Not tried with as many labels as others" in text and "b (16)" in text for text in advice(made)
    )
    # the commonest class is told by all labels at once, and is nobody ahead
    made = page(point("guess", 256, right(0.5, seed=3), grows=False), point("a", 64, right(0.8)))
    assert not any("Not tried with as many" in text for text in advice(made))


def test_nothing_better_than_the_commonest_class_is_said():
    made = page(
        point("guess", 64, right(0.60), 0.1, grows=False), point("tuned", 64, right(0.62, seed=1), 9.0)
    )
    assert advice(made)[0].startswith("Nothing is significantly better than guess (0.600) on 200 unseen rows")


def test_tests_are_corrected_together():
    made = page(point("a", 16, right(0.9)), *(point(f"b{i}", 16, right(0.8, seed=i + 1)) for i in range(6)))
    assert len(made.tests) == 12
    assert all(one.adjusted >= one.p for *_, one in made.tests)


def climb(*given):
    spec = importlib.util.spec_from_file_location("ladder", ROOT / "scripts" / "ladder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, [str(one) for one in given]))


def test_from_rows_to_page_and_never_twice(saved, review_file, tmp_path, monkeypatch):
    model, folder = saved("bert", AutoModelForMaskedLM), tmp_path / "ladder"
    options = ["--dataset_name", review_file, "--output_dir", folder, "--model_name_or_path", model,
               "--label_counts", 8, 24, 48, "--max_length", 16, "--budget", "5min"]  # fmt: skip
    ways = ["--ways", "majority", "bag_of_words", "lora"]
    monkeypatch.setattr(tuned, "epochs_for", lambda way, count: 1)
    climb(*options, *ways, "--label_seeds", 1)
    names = {file.stem for file in (folder / "runs").glob("*.json")}
    assert names == {"majority-48-0", *(f"{way}-{n}-0" for way in ways[2:] for n in (8, 24, 48))}
    one = json.loads((folder / "runs" / "lora-24-0.json").read_text())
    assert len(one["said"]) == 24 and one["own_mb"] > 0 and one["kept_rows"] == 24
    text = (folder / "report.html").read_text()
    assert "Take " in text and "bag of words" in text

    def again(*_):
        raise AssertionError("run twice")

    monkeypatch.setattr(run, "fit", again)
    monkeypatch.setattr(run, "learn", again)
    climb(*options, *ways, "--label_seeds", 1)
    with pytest.raises(InputError, match=r"holds another ladder \(max_length: 16 there, 12 now"):
        climb(*options, *ways, "--max_length", 12)


@pytest.mark.parametrize("way", ["lora", "lstm"])
def test_all_but_a_handful_of_labels_get_their_steps(way):
    counts = (4, 16, 64, 65, 256, 257, 1024, 4096)
    steps = [math.ceil(count / tuned.batch_for(count)) * tuned.epochs_for(way, count) for count in counts]
    assert min(steps[2:]) >= tuned.STEPS > steps[1] > steps[0]


def test_prompts_are_rungs_too(saved, review_file, tmp_path, monkeypatch):
    model = saved("gpt2", AutoModelForCausalLM, n_positions=256)
    monkeypatch.setattr(
        asked, "embed", lambda name, texts: np.eye(64, dtype=np.float32)[[len(text) % 64 for text in texts]]
    )
    climb("--dataset_name", review_file, "--output_dir", tmp_path / "ladder", "--prompt_model", model,
          "--label_counts", 8, "--ways", "zero_shot", "few_shot", "calibrated", "nearest", "--label_seeds", 1,
          "--shots", 2)  # fmt: skip
    names = {file.stem for file in (tmp_path / "ladder" / "runs").glob("*.json")}
    assert names == {"zero_shot-0-0", "few_shot-2-0", "calibrated-2-0", "nearest-8-0"}
    one = json.loads((tmp_path / "ladder" / "runs" / "nearest-8-0.json").read_text())
    assert len(one["said"]) == 24 and set(one["said"]) <= {0, 1}


def test_a_budget_that_ends_leaves_the_page_of_what_is_there(review_file, tmp_path, monkeypatch):
    def ends(*_):
        raise BudgetSpent

    monkeypatch.setattr(run, "learn", ends)
    climb("--dataset_name", review_file, "--output_dir", tmp_path / "ladder", "--label_counts", 8, "--ways",
          "majority", "lora", "--budget", "90s")  # fmt: skip
    text = (tmp_path / "ladder" / "report.html").read_text()
    assert "LoRA, 8 labels, draw 1: the budget ended while it ran" in text
    with pytest.raises(BudgetSpent):
        TimeBudget(0).check()
    clock = TimeBudget(100)
    clock.check(50)
    with pytest.raises(BudgetSpent):
        clock.check(200)
    slow, state = StopInTime(clock), SimpleNamespace(global_step=10, max_steps=10**9)
    slow.start -= 1
    with pytest.raises(BudgetSpent):
        slow.on_step_end(None, state, None)


def test_a_way_that_can_not_be_is_said_and_ends_nothing(review_file, tmp_path):
    climb("--dataset_name", review_file, "--output_dir", tmp_path / "ladder", "--label_counts", 8, "--ways",
          "majority", "lora", "--model_name_or_path", tmp_path / "no_such_model")  # fmt: skip
    assert "Cannot load the model" in (tmp_path / "ladder" / "report.html").read_text()


def test_bad_options_are_named(review_file, tmp_path):
    with pytest.raises(InputError, match=r"--ways bag; wanted some of: majority, bag_of_words"):
        LadderArguments(ways=["bag"])
    with pytest.raises(InputError, match=r"--shots 0; wanted 1 or more"):
        LadderArguments(shots=0)
    with pytest.raises(InputError, match=r"Got --budget soon; wanted a time"):
        climb("--dataset_name", review_file, "--output_dir", tmp_path / "x", "--budget", "soon")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that are no ladder's"):
        climb("--dataset_name", review_file, "--output_dir", tmp_path / "full")
    prompt, _ = ladder_prompt("sentiment/review/good_bad", ["pos", "neg"], "data/imdb")
    assert [prompt.verbalizer.answer(0), prompt.verbalizer.answer(1)] == ["good", "bad"]
    with pytest.raises(InputError, match=r"the rows have a, b"):
        ladder_prompt("sentiment", ["a", "b"])


def test_the_plain_prompt_names_the_classes():
    prompt, layout = ladder_prompt(None, ["Straße_neu", WORDS[0]])
    assert layout.description.text == f"Categories: Straße neu, {WORDS[0]}."
    assert prompt.verbalizer.flat == ("Straße neu", WORDS[0])
    assert next(iter(WAYS)) == "majority"
