"""lm-evaluation-harness 0.4.13 beside this project, on the same rows and model: the same log-likelihoods and
figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from finetune.data.sources import ColumnArguments
from prompts.scoring.load import ScoringArguments, load_prompt_scorer
from prompts.study.archive import read_table
from prompts.study.instruct import InstructArguments
from prompts.study.options import StudyArguments
from prompts.study.run import Options
from prompts.study.suite import one_study
from prompts.study.tune import TuneArguments
from prompts.templates.importing import import_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # theirs
]
PLACES = [
    ("Oslo", "Norway"),
    ("Lima", "Peru"),
    ("Cairo", "Egypt"),
    ("Rome", "Italy"),
    ("Accra", "Ghana"),
    ("Quito", "Ecuador"),
]
ACTS = [
    ("A man sits at a piano. He",
    ["plays a slow song.", "eats the keys.", "swims away quickly.", "is a piano, too."], 0),
    ("She cracks two eggs into a bowl and",
    ["drives to town.", "beats them with a fork.", "reads the eggs a story.", "wins."], 1),
    ("The dog hears the door bell. It",
    ["writes a letter.", "votes.", "barks and runs to the door.", "melts."], 2),
    ("Two boys stand on a beach with a kite. They",
    ["bake.", "sell it to a whale.", "sleep under water.", "let it fly."], 3),
]  # fmt: skip
FILMS = [
    "a gripping, funny film",
    "dull and far too long",
    "the cast is wonderful",
    "a waste of two hours",
    "I loved it",
]
SST = {
    "task": "sst2_like", "output_type": "multiple_choice", "doc_to_text": "{{sentence}}\nQuestion: Is "
    "this sentence positive or "
    "negative?\nAnswer:", "doc_to_target": "label", "doc_to_choice": ["negative", "positive"],
    "metric_list": [{"metric": "acc"}],
}  # fmt: skip
ARC = {
    "task": "arc_like", "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
HELLA = {
    "task": "hellaswag_like", "output_type": "multiple_choice", "doc_to_text": "{{query}}",
    "doc_to_target": "{{label}}",
    "doc_to_choice": "endings", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
GSM = {
    "task": "gsm_like", "output_type": "generate_until", "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["Question:", "</s>"], "do_sample": False,
    "max_gen_toks": 24},
    "metric_list": [{"metric": "exact_match", "ignore_case": True,
                     "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}],
    "filter_list": [
        {"name": "strict-match",
        "filter": [{"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
        {"function": "take_first"}]},
        {"name": "flexible-extract", "filter": [
            {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
            {"function": "take_first"}]},
    ],
}  # fmt: skip


def rows_of(name: str) -> list[dict[str, Any]]:
    if name == "sst2_like":
        return [{"sentence": text, "label": int(i in (0, 2, 4))} for i, text in enumerate(FILMS)]
    if name == "arc_like":
        countries = [country for _, country in PLACES]
        return [
            {"question": f"In which country is {town}?", "answerKey": "AB"[i % 2], "choices": {
                "text": [country, countries[i - 1], "nobody knows"] if i % 2 == 0 else [countries[i - 1],
                country, "nobody knows"],
                "label": ["A", "B", "C"]}}
            for i, (town, country) in enumerate(PLACES)
        ]  # fmt: skip
    if name == "hellaswag_like":
        return [{"query": query, "endings": endings, "label": str(label)} for query, endings, label in ACTS]
    return [{"question": f"Ann has {a} pens and buys {b}. How many pens has she?",
             "answer": f"{a}+{b}={a + b}\n#### {a + b}"}
            for a, b in ((3, 20), (4, 7), (10, 5))]  # fmt: skip


@pytest.fixture(scope="module")
def peer() -> Any:
    pytest.importorskip("lm_eval", reason="the peer needs the extra 'benchmarks'")
    from lm_eval.models.huggingface import HFLM

    scorer = load_prompt_scorer("smollm2", ScoringArguments(dtype="float32"))
    return HFLM(pretrained=scorer.network, tokenizer=scorer.tokenizer, batch_size=4)


def theirs(peer: Any, task: dict[str, Any], file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask

    config = task | {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    found = simple_evaluate(
        model=peer, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0, log_samples=True
    )
    return found["results"][task["task"]], found["samples"][task["task"]]


def ours(task: dict[str, Any], file: Path, folder: Path):
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    import_task(str(folder / "task.yaml"), str(folder / "entry.yaml"))
    study = StudyArguments(
        prompts=[str(folder / "entry.yaml")],
        models=["smollm2"],
        choose_rows=0,
        output_dir=str(folder / "out"),
    )
    data = ColumnArguments(dataset_name=str(file))
    options = Options(study, ScoringArguments(dtype="float32"))
    return one_study(options, data, TuneArguments(), InstructArguments())[0]


@pytest.mark.parametrize("task", [SST, ARC, HELLA], ids=lambda task: task["task"])
def test_choices_weigh_as_lm_eval_weighs_them(peer: Any, task: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows_of(task["task"]))))
    results, samples = theirs(peer, task, file)
    found = ours(task, file, tmp_path)
    table = {line["row"]: line for line in read_table(tmp_path / "out")}
    for sample in samples:
        their_sums = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(table[sample["doc_id"]]["scores_sum"], their_sums, atol=1e-4)
    figures = {line["calibration"]: line["accuracy"] for line in found.lines}
    assert figures["sum"] == pytest.approx(results["acc,none"])
    if "acc_norm,none" in results:
        assert figures["characters"] == pytest.approx(results["acc_norm,none"])


def test_written_answers_match_as_lm_evals(peer: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows_of("gsm_like"))))
    results, samples = theirs(peer, GSM, file)
    found = ours(GSM, file, tmp_path)
    written = {line["row"]: json.loads(line["written"])
               if isinstance(line["written"], str) else line["written"]
               for line in read_table(tmp_path / "out")}  # fmt: skip
    for sample in samples:
        assert written[sample["doc_id"]] == sample["resps"][0]
    figures = {line["calibration"]: line["exact_match"] for line in found.lines}
    for name in ("strict-match", "flexible-extract"):
        assert figures[name] == pytest.approx(results[f"exact_match,{name}"])
