"""Written answers: what is taken out of them, how they are compared, judged, drawn, and what a run keeps of
them."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from finetune.metrics.bootstrap import draws
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.generate import Drawing, generate
from prompts.scoring.load import ScoringArguments
from prompts.scoring.score import Request, Scorer
from prompts.study import again
from prompts.study.again import compare_runs, rescore
from prompts.study.archive import read_table
from prompts.study.asking import Notes
from prompts.study.instruct import InstructArguments
from prompts.study.judge import Judging
from prompts.study.measures import of_evaluate, of_texts
from prompts.study.options import AnswerArguments, StudyArguments, StudyRunArguments
from prompts.study.run import Options
from prompts.study.suite import one_study, run_suite
from prompts.study.tune import TuneArguments
from prompts.templates.entries import Ending, Judge
from prompts.templates.filters import NORMALISERS, extracted, normalised, read_filters, read_steps
from prompts.templates.reading import read_entry
from prompts.templates.template import Template

HERE = Path("entry.yaml")


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("The answer is 460.", "460", 1), ("Paris.", "Paris", 1), ("paris", "Paris", 1), ("The Paris",
        "Paris", 1),
        ("1,234 pens", "1234", 1), ("It is 12, no: 13.", "13", 1), ("46", "460", 0), ("", "Paris", 0), ("-5",
        "5", 0),
        ("costs $5", "$5", 1), ("no", "7", 0), ("Paris and Rome", "Paris", 0),
        # an article that is the whole answer, as a choice's letter, is none; signs as people type them
        ("", "A", 0), ("the.", "A", 0), ("a.", "A", 1), ("B", "A", 0), ("“Paris”", "Paris", 1),
        ("-7", "\u22127", 1),
    ],
)  # fmt: skip
def test_short_answers_say_the_same(said: str, wanted: str, right: int) -> None:
    assert of_texts([said], [[wanted]], ["same_answer"])["same_answer"].value == right


def test_filters_are_lm_evaluation_harness_s() -> None:
    filters = read_filters(HERE, {
        "strict": [{"regex": r"#### (\-?[0-9\.\,]+)"}],
        "last": [{"regex": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "take": "last"}],
        "group": [{"regex": r"(\w+) is (\w+)", "group": "2"}], "number": ["number"],
        "letter": [{"map": {"A": "yes"}}],
        "vote": ["lower", "majority_vote"], "line": ["first_line"],
    })  # fmt: skip
    assert extracted(filters["strict"], ["so #### 12 and #### 13"]) == ["12"]
    assert extracted(filters["strict"], ["nothing"]) == ["[invalid]"]
    assert extracted(filters["last"], ["12 or 3 or $1,400"]) == ["$1,400"]
    assert extracted(filters["group"], ["it is good"]) == ["good"]
    assert extracted(filters["number"], ["1,200 then 7.50"]) == ["7.5"]
    assert extracted(filters["letter"], ["A", "B"]) == ["yes", "B"]
    assert extracted(filters["vote"], ["Yes", "no", "YES"]) == ["yes"]
    assert extracted(filters["line"], ["\na\nb"]) == ["a"]
    steps = read_steps(HERE, "normalise", ["lower", "punctuation", "articles", "space"], NORMALISERS)
    assert normalised(steps, " The  Cat, a dog! ") == "cat dog"
    for given, message in (
        ({"a": [{"regex": "("}]}, "no regular expression"),
        ({"a": ["shout"]}, "wanted one of"),
        ({"a": [{"regex": "x", "take": "middle"}]}, "wanted take"),
        ({"a": [{"regex": "x", "group": "1"}]}, "fewer"),
        ({"a": "lower"}, "wanted a list"),
    ):
        with pytest.raises(InputError, match=message):
            read_filters(HERE, given)
    slow = read_filters(HERE, {"a": [{"regex": r"(x+x+)+y"}]})["a"]
    with pytest.raises(InputError, match="takes more than"):
        extracted(slow, ["x" * 5000])


def test_figures_against_several_references() -> None:
    said = ["a cat sat", "dogs", ""]
    wanted = [["the cat sat down", "a cat sat"], ["cats", "big dogs"], ["x"]]
    found = of_texts(said, wanted, ["exact_match", "token_f1", "rougeL", "bleu", "chrf"])
    assert found["exact_match"].each.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found["token_f1"].each, [1, 2 / 3, 0])
    streams = [[row[0] for row in wanted], [row[-1] for row in wanted]]
    assert found["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(said, streams).score)
    assert found["chrf"].value == pytest.approx(sacrebleu.corpus_chrf(said, streams).score)
    counts = np.array([[2, 1, 0]])  # one bootstrap sample
    again = [said[0], said[0], said[1]], [[s[0], s[0], s[1]] for s in streams]
    assert found["bleu"].values(counts)[0] == pytest.approx(sacrebleu.corpus_bleu(*again).score)
    low, high = found["token_f1"].interval(draws(3, 200, 0))
    assert low <= found["token_f1"].value <= high


def test_a_metric_of_evaluate_is_computed_by_its_own_code(tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    folder.mkdir()
    (folder / "longer.py").write_text(
        "import datasets\nimport evaluate\n\n\nclass Longer(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='', "
        "features=datasets.Features({'predictions': text, 'references': text}))\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'longer': sum(len(p) > len(r) for p, r in zip(predictions, references)) / "
        "len(predictions)}\n"
    )
    measure = of_evaluate(f"evaluate:{folder}", ["abc", "a"], [["ab"], ["ab"]])
    assert measure.value == 0.5 and measure.of(np.array([0])).value == 1.0
    assert set(measure.values(np.array([[2, 0], [0, 2]]))) == {0.0, 1.0}
    with pytest.raises(InputError, match="can't be had"):
        of_evaluate(f"evaluate:{tmp_path / 'nowhere'}", ["a"], [["a"]])
    sys.modules.pop("longer", None)


def test_drawn_texts_follow_from_seed_and_row_alone() -> None:
    scorer = Scorer(make_model("llama", AutoModelForCausalLM, initializer_range=0.3), make_tokenizer("llama"))
    asked = [Request(text, ("",)) for text in ("the film was", "we loved the story of a", "it")]
    ending = Ending("line", ("\n",), 5)
    drawn = [generate(scorer, asked, ending, Drawing(1.0, 0.9, 0, repeat)) for repeat in range(4)]
    assert len({tuple(texts) for texts in drawn}) > 1
    # whoever stands beside
    assert generate(scorer, asked[1:2], ending, Drawing(1.0, 0.9, 0, 2)) == drawn[2][1:2]
    scorer.batch_tokens = 8
    assert generate(scorer, asked, ending, Drawing(1.0, 0.9, 0, 1)) == drawn[1]
    # cold is greedy
    assert generate(scorer, asked, ending, Drawing(1e-4, 1.0)) == generate(scorer, asked, ending)


class Fixed:
    """A judge that prefers what stands first, unless one of the two is "good"."""

    exact = True

    class scorer:
        tokenizer, longest = None, 10**9

    def __call__(self, requests: list[Request]) -> list[list[np.ndarray] | None]:
        def one(request: Request) -> list[np.ndarray] | None:
            first, second = request.context.split("|")[:2]
            if "silent" in request.context:
                return [np.array([-9.0]), np.array([-9.0])]
            best = "first" if "good" in first or "good" not in second else "second"
            return [np.log([0.8 if label == best else 0.2]) for label in ("first", "second")]

        return [one(request) for request in requests]


def test_a_judge_is_asked_in_both_orders(tmp_path: Path) -> None:
    judge = Judge(
        "j",
        Template("e/judge", "{{ first }}|{{ second }}| better: {{ mask }}"),
        {"first": "A", "second": "B"},
        "first",
    )
    notes = Notes()
    judging = Judging(judge, Fixed(), notes)  # type: ignore[arg-type]
    rows = [({}, "good", "bad"), ({}, "bad", "good"), ({}, "bad", "bad"), ({}, "silent", "x")]
    found = judging.verdicts(rows, "p")
    np.testing.assert_array_equal(found.scores, [1, 0, 0.5, np.nan])  # the third is judged by its place alone
    assert found.labels[:2] == ["first", "second"] and found.labels[3] is None
    assert found.consistent == pytest.approx(2 / 3)
    assert [what for _, _, what in notes.troubles] == ["the judge named none of its labels"]
    file = tmp_path / "known.jsonl"
    file.write_text("\n".join(json.dumps({"written": w, "wanted": x, "label": y})
                              for w, x, y in (("good", "bad", "first"), ("bad", "good", "second"),
                              ("good", "bad", "second"))))  # fmt: skip
    known = judging.agreement(str(file))
    assert known["rows"] == 3 and known["agreement"] == pytest.approx(2 / 3)
    file.write_text(json.dumps({"written": "x", "label": "third"}))
    with pytest.raises(InputError, match="the label 'third'"):
        judging.agreement(str(file))


ENTRY = """
metric: exact_match
target: "{{ end }}"
templates: {a: "{{ text }} {{ mask }}", b: "{{ text }} and {{ mask }}"}
endings: {line: {until: ["."], tokens: 3}}
filters: {first: [{regex: "\\\\w+"}], digits: [{regex: "[0-9]+"}]}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("test", 8)):
        texts = [
            {"id": f"r{i}", "text": f"the film {'very ' * (i % 3)}was", "end": ["good", "bad"][i % 2]}
            for i in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return tmp_path


def options(
    folder: Path, model: Path, entry: str = ENTRY, run: StudyRunArguments | None = None, **answers: object
) -> Options:
    (folder / "own.yaml").write_text(entry)
    study = StudyArguments(
        prompts=[str(folder / "own.yaml")], models=[str(model)], choose_rows=4, output_dir=str(folder / "out")
    )
    return Options(
        study, ScoringArguments(dtype="float32"), AnswerArguments(**answers), run=run or StudyRunArguments()
    )  # type: ignore[arg-type]


def test_written_answers_get_all_that_labels_get(saved, rows: Path) -> None:
    given = options(rows, saved("llama", AutoModelForCausalLM, initializer_range=0.3), repeats=2)
    found = one_study(given, ColumnArguments(dataset_name=str(rows)), TuneArguments(), InstructArguments())[0]
    assert {one.how for one in found.outcomes} == {"first", "digits"} and found.chosen is not None
    assert all(line["nothing_found"] == 8 for line in found.lines if line["calibration"] == "digits")
    assert {line["repeats"] for line in found.lines} == {2} and len(found.tests) == 3
    folder = rows / "out"
    report = (folder / "report.md").read_text()
    for part in (
        "exact_match",
        "Chosen on training rows",
        "more than chance",
        "drawn answers a row",
        "own/a (",
    ):
        assert part in report
    assert (folder / "spread.png").stat().st_size > 4000
    table = [line for line in read_table(folder) if line["part"] == "unseen"]
    assert len(table) == 16 and {line["id"] for line in table} == {f"r{i}" for i in range(8)}
    for line in table:
        assert (
            line["prompt"].startswith("the film")
            and line["row"] == int(line["id"][1:])
            and line["text"] in line["prompt"]
        )
    known = json.loads((folder / "findings.json").read_text())
    assert (
        known["metric"] == "exact_match" and known["population"]["rows"] == 8 and len(known["templates"]) == 2
    )
    assert len({one["hash"] for one in known["templates"]}) == 2


def test_a_run_is_judged_again_without_asking(saved, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = options(rows, saved("llama", AutoModelForCausalLM, initializer_range=0.3))
    one_study(given, ColumnArguments(dataset_name=str(rows)), TuneArguments(), InstructArguments())
    from prompts.study import run

    (rows / "own.yaml").write_text(
        ENTRY.replace("first: [", "other: [lower, ").replace("metric: exact_match", "metric: token_f1")
    )
    monkeypatch.setattr(run, "load_asked", None)
    kept = again.stored_findings(rows / "out", as_kept=True)
    assert kept.metric == "exact_match" and {one.how for one in kept.outcomes} == {"first", "digits"}
    told = Options(StudyArguments(), run=StudyRunArguments(rescore=str(rows / "out")))
    assert rescore(told) is False
    with pytest.raises(InputError, match="--show_rows has nothing to show"):
        rescore(replace(told, run=replace(told.run, show_rows=2)))
    # what a run that asks nothing wouldn't read is refused, of each group of options
    for option, others in (
        ({"study": StudyArguments(models=["other"])}, ()),
        ({"answers": AnswerArguments(judge="smollm2")}, ()),
        ({"run": replace(told.run, suite="suite.yaml")}, ()),
        ({}, (ColumnArguments(max_eval_rows=3),)),
    ):
        with pytest.raises(InputError, match="--(models|judge|suite|max_eval_rows) has nothing to change"):
            rescore(replace(told, **option), *others)
    found = again.stored_findings(rows / "out")
    assert found.metric == "token_f1" and {one.how for one in found.outcomes} == {"other", "digits"}
    # the folder is enough, and one that it was judged into
    (rows / "own.yaml").unlink()
    assert not rescore(replace(told, study=StudyArguments(output_dir=str(rows / "again"))))
    for folder in (rows / "out", rows / "again"):
        assert [one.said for one in again.stored_findings(folder).outcomes] == [
            o.said for o in found.outcomes
        ]
        assert "token f1" in (folder / "report.html").read_text()


def test_two_runs_are_compared_by_row(saved, rows: Path) -> None:
    models = [saved("llama", AutoModelForCausalLM, initializer_range=0.3, seed=seed) for seed in (0, 1)]
    for number, model in enumerate(models):
        given = options(rows, model)
        given.study.output_dir = str(rows / f"run{number}")
        one_study(given, ColumnArguments(dataset_name=str(rows)), TuneArguments(), InstructArguments())
    found, metric, told = compare_runs(rows / "run0", rows / "run1")
    assert metric == "exact_match" and told["rows"] == 8 and found.rows == 8
    assert found.difference == pytest.approx(told["first_value"] - told["second_value"])
    with pytest.raises(InputError, match="is no run of prompts"):
        compare_runs(rows, rows / "run1")


def test_a_suite_goes_on_behind_what_fails(saved, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options(rows, saved("llama", AutoModelForCausalLM))
    (rows / "bad.yaml").write_text("templates: {a: x}")
    suite = rows / "suite.yaml"
    suite.write_text(
        f"runs:\n- {{name: one, prompts: {rows}/own.yaml/a}}\n- {{name: broken, prompts: {rows}/bad.yaml}}\n"
        f"- {{prompts: [{rows}/own.yaml/b], models: [{given.study.models[0]}], metric: token_f1}}\n"
    )
    given = replace(given, run=StudyRunArguments(suite=str(suite)))
    data = ColumnArguments(dataset_name=str(rows))
    assert run_suite(given, data, TuneArguments(), InstructArguments()) is True
    table = (rows / "out" / "report.md").read_text()
    assert "**failed**" in table and "token_f1" in table and table.count("\n|") == 5
    page = (rows / "out" / "report.html").read_text()
    assert "1 of 3 failed" in page and "**" not in page
    links = re.findall(r'<td><a href="([^"]*)">', page)
    assert len(links) == 2 and all((rows / "out" / link).is_file() for link in links)
    suite.write_text("- {prompt: x}")
    with pytest.raises(InputError, match="unknown option 'prompt'"):
        run_suite(given, data, TuneArguments(), InstructArguments())


def test_a_judged_entry_says_what_its_judge_is_worth(saved, rows: Path) -> None:
    entry = ENTRY.replace("metric: exact_match", "metric: judge") + (
        'judge: {model: MODEL, template: "{{ written }} is {{ wanted }}: {{ mask }}", labels: {right: good, '
        "wrong: bad}, good: right}\n"
    )
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.3)
    given = options(rows, model, entry.replace("MODEL", str(model)))
    found = one_study(given, ColumnArguments(dataset_name=str(rows)), TuneArguments(), InstructArguments())[0]
    report = (rows / "out" / "report.md").read_text()
    assert found.metric == "judge" and "unmeasured (--judge_rows)" in report
    assert "no places were swapped" in report and "label stayed" not in report
    assert all(0 <= line["judge"] <= 1 for line in found.lines)
    # judged again by its own figure without a judge, but not where it would see other answers
    assert again.stored_findings(rows / "out").lines == found.lines
    own = (rows / "own.yaml").read_text()
    (rows / "own.yaml").write_text(own.replace("first: [", "first: [upper, "))
    with pytest.raises(InputError, match="the judge didn't see these answers"):
        again.stored_findings(rows / "out")
    assert again.stored_findings(rows / "out", "token_f1").metric == "token_f1"


def test_entries_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    base = 'target: "{{ x }}"\ntemplates: {a: "{{ y }} {{ mask }}"}\n'
    for text, message in (
        (base + "keys: '{{ k }}'", "`keys` is read by no template"),
        (base + "judge: {model: m}", "`judge` holds"),
        (base + "judge: {model: m, template: t, labels: {a: b, c: d}, good: e}", "good: e"),
        (base + "description: [a]", "`description` holds"),
        (base + "filters: {a: [shout]}", "has the step 'shout'"),
        ("templates: {a: x}\nchoices: '{{ c }}'", "no `target`"),
        (
            base + "choices: '{{ c }}'\nendings: {e: {until: ['x'], tokens: 3}}",
            "`endings` is read by no template",
        ),
        (base + "choices: '{{ c }}'\ntarget_is: number", "target_is 'number'"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_entry(str(path))


@pytest.mark.parametrize(
    ("study", "answers", "endpoint", "named"),
    [
        ({}, {"repeats": 3}, {}, "--repeats is read with an entry whose answers are written"),
        ({}, {"judge": "m"}, {}, "--judge is read with"),
        ({}, {}, {"base_url": "http://x"}, "--base_url is read with --models openai:NAME"),
        ({"shot_choice": "nearest"}, {}, {}, "--shot_choice is read with --shots above 0"),
        ({"shots": [1], "embedder": "x"}, {}, {}, "--embedder is read with --shot_choice nearest"),
        ({"search_rows": 3}, {}, {}, "--search_rows is read with --search"),
        ({}, {"on_long": "keep"}, {}, "--on_long keep; wanted one of"),
        ({}, {"top_p": 0.0}, {}, "--top_p above 0"),
        ({"models": ["openai:m", "x"], "max_length": 9}, {}, {}, "openai:m behind an address doesn't show"),
        ({"models": ["openai:m"]}, {"on_long": "drop"}, {}, "--on_long is read with a local model"),
    ],
)
def test_options_that_nothing_reads_are_refused(
    study: dict, answers: dict, endpoint: dict, named: str
) -> None:
    given = Options(
        StudyArguments(prompts=["sentiment"], **study),
        answers=AnswerArguments(**answers),
        endpoint=EndpointArguments(**endpoint),
    )
    with pytest.raises(InputError, match=named):
        one_study(given, ColumnArguments(), TuneArguments(), InstructArguments())


def test_options_of_what_is_not_done_are_refused() -> None:
    given = Options(StudyArguments(prompts=["sentiment"]))
    with pytest.raises(InputError, match="--tune_rows is read with --tune alone"):
        one_study(given, ColumnArguments(), TuneArguments(tune_rows=3), InstructArguments())
    with pytest.raises(InputError, match="--instruct_rounds is read with --instruct alone"):
        one_study(given, ColumnArguments(), TuneArguments(), InstructArguments(instruct_rounds=3))
