"""`report`, `board`, `compare-runs` and `import-task` as verbs: what they write, print and end with."""

from __future__ import annotations

import random

import pytest
import yaml
from laid_out import train_run
from scripted import run
from test_run_page import lay_out

from finetune.errors import InputError
from finetune.metrics.significance import Comparison
from finetune.reports.plots import draw_assessment


def test_a_report_of_one_run_stands_in_its_folder_and_of_two_where_it_is_told(tmp_path, capsys):
    one, two = lay_out(tmp_path / "one"), lay_out(tmp_path / "two")
    run("report", f"{one} --tables true")
    assert "Confusion" in (one / "report.html").read_text() and list((one / "tables").glob("*.tex"))
    assert "each table as CSV and LaTeX" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 runs on one page; set --output_file"):
        run("report", f"{one} {two}")
    run("report", f"{one} {two} --output_file {tmp_path}/pages/both.html")
    assert (tmp_path / "pages" / "both.html").read_text().count("<article>") == 2
    with pytest.raises(InputError, match="No run; wanted `finetune report FOLDER`"):
        run("report")


def test_a_board_says_where_it_listens_and_ends_when_it_is_stopped(tmp_path, monkeypatch, capsys):
    def stopped(server) -> None:
        raise KeyboardInterrupt

    lay_out(tmp_path / "runs" / "x")
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", stopped)
    run("board", f"{tmp_path}/runs --port 0")
    said = capsys.readouterr().out
    assert said.startswith("http://127.0.0.1:") and not said.startswith("http://127.0.0.1:0")


@pytest.mark.parametrize(
    ("least", "word", "status"),
    [("-0.5", "held, and so is its whole interval", 0), ("0.1", "held by the figure", 0),
     ("0.9", "missed", 1)],
)  # fmt: skip
def test_two_runs_are_compared_and_the_status_follows_the_figure(least, word, status, monkeypatch, capsys):
    def read(first, second, metric):
        told = {"first": "a", "second": "b", "first_value": 0.6, "second_value": 0.4}
        found = Comparison(0.2, low=-0.05, high=0.45, only_first=8, only_second=4, p=0.39)
        return found, "accuracy", told | {"rows": 20, "only in one": 0}

    monkeypatch.setattr("prompts.study.again.compare_runs", read)
    if status:
        with pytest.raises(SystemExit, match="1"):
            run("compare_runs", f"one two --at_least {least}")
    else:
        run("compare_runs", f"one two --at_least {least}")
    said = capsys.readouterr().out
    assert "difference 0.200" in said and word in said and "20 rows of both" in said
    with pytest.raises(InputError, match="Two folders of runs are wanted"):
        run("compare_runs", "one")


def test_a_task_is_imported(tmp_path, capsys):
    task = {
        "task": "own", "output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "answer", "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
    run("import_task", f"{tmp_path}/own.yaml --output {tmp_path}/made.yaml")
    assert "made.yaml" in capsys.readouterr().out and "question" in (tmp_path / "made.yaml").read_text()


def test_of_many_classes_the_weakest_are_drawn(tmp_path):
    rng = random.Random(0)
    names = [f"class {n}" for n in range(30)]
    figures = {
        "accuracy": 0.5, "intervals": {"accuracy": (0.4, 0.6), "loss": (1, 2)}, "rows": 90, "labels": names,
        "per_class": {name: {"f1": rng.random()} for name in names},
    }  # fmt: skip
    draw_assessment(figures, tmp_path / "many.png")
    few = figures | {"labels": names[:2], "confusion": [[3, 0], [0, 0]]}
    draw_assessment(few, tmp_path / "few.png")
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("many", "few"))


def test_many_classes_stand_on_a_page(tmp_path):
    run("report", str(train_run(tmp_path / "run")))
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") >= 4
