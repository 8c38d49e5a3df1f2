"""Further figures by `evaluate`: own metrics, a local folder's, and clear words where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Features, Sequence, Value

from finetune.errors import InputError
from finetune.metrics.further import load_metric, load_metrics, measure, with_metrics
from finetune.metrics.own import OWN

evaluate = pytest.importorskip("evaluate")
SCRIPT = """
import datasets
import evaluate

class Share(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("{kind}")
        return evaluate.MetricInfo(description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": kind, "references": kind}}))

    def _compute(self, predictions, references):
        return {{"accuracy": sum(p == r for p, r in zip(predictions, references)) / {divisor}}}
"""
ANSWERS = [
    {"gold": gold, "prediction": said} for gold, said in [("neg", "neg"), ("pos", "neg"), ("pos", "pos")]
]


@pytest.fixture
def folder(tmp_path: Path):
    def write(name: str, kind: str = "int32", divisor: str = "len(references)") -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(SCRIPT.format(kind=kind, divisor=divisor))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("kind", ["int32", "string"])
def test_a_local_metric_gets_classes_as_it_wants_them(folder, kind, caplog):
    path = folder(f"share_{kind}", kind)
    figures = with_metrics(None, [path])
    assert f"--metrics {path} runs the code of" in caplog.text
    assert figures(ANSWERS, ["neg", "pos"]) == {"accuracy": pytest.approx(2 / 3)}
    assert figures(ANSWERS[:1], ["neg", "pos"]) == {"accuracy": 1.0}  # and keeps nothing from before


def test_a_figure_never_takes_the_place_of_another(folder):
    own = with_metrics(lambda answers, labels: {"accuracy": 0.5}, [folder("other")])
    assert own(ANSWERS, ["neg", "pos"]) == {"accuracy": 0.5, "other_accuracy": pytest.approx(2 / 3)}
    assert with_metrics(None, []) is None


def test_label_sets_numbers_tags_and_texts_reach_the_own_metrics():
    labels = ["a", "b"]
    sets = [{"gold": ["a", "b"], "prediction": ["a"]}, {"gold": [], "prediction": []}]

    class Exact(OWN["class_figures"]):
        features = Features({"predictions": Sequence(Value("int64")), "references": Sequence(Value("int64"))})
        figures = staticmethod(
            lambda said, gold: {"said": list(map(list, said)), "gold": list(map(list, gold))}
        )

    assert measure("x", Exact(), sets, labels) == {"said": [[1, 0], [0, 0]], "gold": [[1, 1], [0, 0]]}
    numbers = [{"gold": 1.0, "prediction": 1.5}, {"gold": 2.0, "prediction": 2.5}]
    assert measure("x", load_metric("number_figures"), numbers, None)["mae"] == 0.5
    tags = [{"gold": ["B-X", "O"], "prediction": ["B-X", "O"]}]
    assert measure("x", load_metric("entity_figures"), tags, ["O", "B-X", "I-X"])["f1"] == 1.0
    texts = [{"gold": "a film", "prediction": "a film"}]
    assert measure("x", load_metric("text_figures"), texts, None)["exact_match"] == 1.0
    found = [{"gold": ["a film", "film"], "prediction": "the film"}]
    assert measure("x", load_metric("answer_figures"), found, None)["exact_match"] == 1.0


def test_own_metrics_combine_with_any_other(folder):
    both = evaluate.combine([load_metric("class_figures"), load_metric(folder("mine"))])
    found = both.compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert found["matthews"] == pytest.approx(0.5) and len(found) == 5


def test_what_can_not_be_had_is_said(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"--metrics no_such_metric_here: it is no folder here, and the hub has no"
    ):
        load_metrics(["no_such_metric_here"])
    with pytest.raises(InputError, match="there is no missing"):
        load_metric("./missing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match="its script could not be run"):
        load_metric(str(tmp_path / "broken"))
    with pytest.raises(InputError, match="fails on the answers: ZeroDivisionError"):
        measure("x", load_metric(folder("none", divisor="0")), ANSWERS, ["neg", "pos"])
    with pytest.raises(InputError, match="can't take this task's answers, as 'neg'"):
        measure("x", load_metric("number_figures"), ANSWERS, None)
    with pytest.raises(InputError, match="gives no answers to rows"):
        measure("x", load_metric("class_figures"), [], None)
