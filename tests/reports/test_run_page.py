"""A run's folder → its page: all that the files say is shown, nothing in them runs, nothing is fetched."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml

from finetune.errors import InputError
from finetune.metrics.calibration import expected_calibration_error, reliability
from finetune.reports.blocks import Section, Table, Words
from finetune.reports.following import next_commands
from finetune.reports.page import page_of, sections_page, write_page, write_tables
from finetune.reports.run_folder import find_runs, read_run
from finetune.reports.tables import comma_separated, latex

HOSTILE = '<script>alert(1)</script> $x$ & "größer"'


def lay_out(folder: Path, label: str = "pos", rows: int = 40) -> Path:
    """A finished run of two classes, as its files tell it."""
    folder.mkdir(parents=True)
    labels = ["neg", label]
    (folder / "arguments.yaml").write_text(
        yaml.safe_dump({"task": "classification", "method": "lora", "model_name_or_path": "minilm",
                        "dataset_name": "reviews", "max_length": 64})
    )  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(labels))
    figures = {"accuracy": 0.75, "loss": 0.5, "seconds": 12.0, "intervals": {"accuracy": [0.6, 0.9]}}
    (folder / "metrics.json").write_text(json.dumps(figures))
    history = [{"step": s, "loss": 1 / s, "grad_norm": 1.0, "learning_rate": 1e-3} for s in (1, 2, 3)]
    history += [{"step": s, "eval_loss": 0.9 / s, "eval_accuracy": 0.5 + s / 10} for s in (1, 3)]
    (folder / "history.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in history) + '{"step": 4, "lo'
    )
    predictions = [
        {"id": i, "text": f"row {i} {label}", "gold": labels[i % 2], "prediction": labels[(i // 2) % 2],
         "score": 0.5 + i / 100}
        for i in range(rows)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions))
    (folder / "data.json").write_text(
        json.dumps({"columns": {"text": label}, "rows": {"training": 80}, "classes": {"neg": 40, label: 40}})
    )
    return folder


def test_a_page_shows_what_the_files_say(tmp_path):
    text = write_page(lay_out(tmp_path / "run")).read_text()
    for said in ("accuracy 0.750 (0.600–0.900)", "classification · lora · minilm · reviews", "Learning",
    "Confusion",
                 "Wrong, and surest of it", "Least sure", "Training rows of each class",
                 "calibration error"):  # fmt: skip
        assert said in text, said
    assert text.count("<svg") >= 4


def test_texts_hold_any_sign_that_some_call_an_end_of_line(tmp_path):
    folder = lay_out(tmp_path / "run")
    line = {"id": 40, "text": "wide \x85 and \u2028 apart", "gold": "neg", "prediction": "pos", "score": 0.9}
    with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    assert read_run(folder).predictions[-1] == line


def test_nothing_in_a_page_runs_or_is_fetched(tmp_path):
    text = write_page(lay_out(tmp_path / "run", HOSTILE)).read_text()
    assert "<script" not in text
    assert "größer" in text
    links = re.findall(r"""(?:src|href)=["']([^"'#][^"']*)""", text)
    assert not links, links
    assert "@import" not in text and "url(http" not in text


def test_each_table_is_written_as_csv_and_latex(tmp_path):
    run = read_run(lay_out(tmp_path / "run"))
    written = write_tables(run, tmp_path / "tables")
    assert {file.suffix for file in written} == {".csv", ".tex"}
    figures = list(csv.DictReader((tmp_path / "tables" / "figures_1.csv").read_text().splitlines()))
    assert {"figure": "accuracy", "value": "0.75", "low": "0.6", "high": "0.9"} in figures
    assert (tmp_path / "tables" / "figures_1.tex").read_text().startswith(r"\begin{tabular}")


def test_what_to_type_next_follows_from_the_run(tmp_path):
    folder = lay_out(tmp_path / "run")
    said = "\n".join(next_commands(read_run(folder)))
    assert f"finetune assess --artefact {folder}" in said and "serve" not in said
    (folder / "adapter_config.json").write_text("{}")
    assert f"finetune serve --base minilm --adapters run={folder}" in next_commands(read_run(folder))


def test_two_runs_stand_side_by_side(tmp_path):
    runs = [read_run(lay_out(tmp_path / name)) for name in ("a", "b")]
    assert page_of(runs).count("<article>") == 2


def test_sections_of_no_single_run_make_a_page():
    blocks = [Words(HOSTILE), Table([{"name": HOSTILE, "value": 1}])]
    text = sections_page("a title", "in one line", [Section("first", blocks)])
    assert "<h1>a title</h1>" in text and "in one line" in text and ">first</h2>" in text
    assert "<script>" not in text


def test_a_run_that_goes_on_has_a_page(tmp_path):
    folder = lay_out(tmp_path / "run")
    (folder / "metrics.json").unlink()
    assert "Not finished: step 3." in page_of([read_run(folder)])


def test_ppo_is_warned_of_in_words(tmp_path):
    (tmp_path / "arguments.yaml").write_text("task: ppo\n")
    steps = [
        {
            "step": s,
            "reward": s / 10,
            "kl": 4.0 * s,
            "empty": 0.2 * s,
            "explained_variance": 0.0,
            "entropy": 3.0,
        }
        for s in range(1, 5)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    text = page_of([read_run(tmp_path)])
    for said in ("KL passed 10 nats", "answers are empty", "explains nothing"):
        assert said in text, said


def test_runs_below_a_folder_are_found_once(tmp_path):
    lay_out(tmp_path / "runs" / "x")
    inner = tmp_path / "runs" / "x" / "assessments" / "reviews_test"
    inner.mkdir(parents=True)
    (inner / "metrics.json").write_text("{}")
    lay_out(tmp_path / "runs" / "deep" / "y")
    assert {run.path.name for run in find_runs(tmp_path / "runs")} == {"x", "y"}


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds none of"):
        read_run(tmp_path)
    lay_out(tmp_path / "runs" / "x")
    with pytest.raises(InputError, match=r"is no run and holds 1: .*x\. Name one .*finetune board"):
        read_run(tmp_path / "runs")


def test_expected_calibration_error_by_hand():
    # four rows at 0.9, three right: off by 0.15; one at 0.55, right: off by 0.45
    stated, right = [0.9] * 4 + [0.55], [True, True, True, False, True]
    assert expected_calibration_error(stated, right) == pytest.approx((4 * 0.15 + 1 * 0.45) / 5)
    assert [one["rows"] for one in reliability(stated, right)] == [1, 4]
    with pytest.raises(ValueError, match="0 to 1"):
        expected_calibration_error([1.2], [True])


def test_latex_escapes_what_tex_would_read():
    assert r"50\% \& \_x\textbackslash{}" in latex([{"a": "50% & _x\\"}])


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-a", "@SUM(A1)", "\t=1", '=HYPERLINK("x")'])
def test_no_cell_is_a_formula(text):
    rows = list(
        csv.DictReader(io.StringIO(comma_separated([{"name": text, "value": -0.25, "said": "-0.25"}])))
    )
    assert rows == [{"name": f"'{text}", "value": "-0.25", "said": "-0.25"}]


def test_pictures_of_rows_are_drawn_and_nothing_else_is(tmp_path):
    picture = "data:image/png;base64,iVBORw0KGgo="
    rows = [{"row": picture}, {"row": "data:image/svg+xml;base64,PHN2Zz4="}, {"row": f'"><script>{picture}'}]
    text = sections_page("t", "h", [Section("s", [Table(rows)])])
    assert text.count("<img") == 1 and f'<img src="{picture}"' in text and "<script>" not in text
    folder = lay_out(tmp_path / "run")
    line = {"id": 0, "text": picture + "A" * 400, "gold": "neg", "prediction": "pos", "score": 0.9}
    (folder / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    assert f'<img src="{picture}{"A" * 400}"' in write_page(folder).read_text()


def test_a_run_of_preferences_is_headed_by_how_often_it_tells_pairs_apart(tmp_path):
    folder = lay_out(tmp_path / "run")
    (folder / "metrics.json").write_text(json.dumps({"loss": 0.68, "rewards/accuracies": 0.75}))
    assert "held-out pairs told apart 0.750" in page_of([read_run(folder)])


def test_names_break_behind_their_underscores_alone():
    text = sections_page("t", "", [Section("s", [Table([{"option": "max_<b>_length", "value": "a_b"}])])])
    assert "<td>max_&lt;b&gt;_<wbr>length</td>" in text and "<td>a_b</td>" in text


def test_what_was_written_stands_on_the_page_beside_what_was_wanted(tmp_path):
    line = {"model": "/home/me/small", "prompt": "sums/plain", "written": "7 | x", "wanted": ["7", "seven"]}
    (tmp_path / "findings.json").write_text(json.dumps({"entry": "sums", "heading": {"model": "m"}}))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(line | {"row": row}) for row in range(9)))
    page = page_of([read_run(tmp_path)])
    assert "The first 4 rows, before any filter" in page and page.count("<td>7 | seven</td>") == 4
    assert "<td>small · plain</td>" in page and "/home/me" not in page


def test_a_page_of_prompts_has_names_intervals_and_the_line_of_guessing(tmp_path):
    line = "{m},films/{t},plain,0,0,{how},80,{v},{low},{high}\n"
    figures = "model,template,verbalizer,shots,seed,calibration,rows,accuracy,accuracy_low,accuracy_high\n"
    for m in ("openai:big", "/home/me/small"):
        figures += line.format(m=m, t="is", how="raw", v=0.61, low=0.5, high=0.72)
        figures += line.format(m=m, t="was " * 20, how="raw", v=0.5, low=0.4, high=0.6)
        figures += line.format(m=m, t="is", how="batch", v=0.7, low=0.6, high=0.8)
    (tmp_path / "figures.csv").write_text(figures)
    (tmp_path / "pairs.csv").write_text(
        "first,second,difference,low,high,only_first,only_second,p_holm,verdict\n"
        "openai:big films/is/plain raw,/home/me/small films/is/plain raw,"
        "-0.1,-0.2,0.05,3,9,0.4,first is not better\n"
    )
    heading = {"model": "openai:big", "template": "films/is", "verbalizer": "plain", "accuracy": 0.61}
    note = {"model": "", "prompt": "is", "what": "no answer", "rows": 1, "first": "7", "ends_well": False}
    template = {
        "name": "films/is",
        "text": "{{ text }} is",
        "hash": "ab",
        "example": "Fun is▁",
        "answers": "good",
    }
    found = {
        "entry": "films",
        "metric": "accuracy",
        "heading": heading | {"accuracy_low": 0.5, "accuracy_high": 0.72},
        "baseline": {"majority": "bad", "accuracy": 0.55, "chance": 0.5},
        "population": {"name": "/home/me/x/rows", "split": "test", "rows": 90, "asked": 80},
        "measured_on": "80, drawn plainly, of 90 rows of /home/me/x/rows, test; 78 of 80 could be measured",
        "models": {"openai:big": "counts"},
        "notes": [note],
        "templates": [template],
    }
    (tmp_path / "findings.json").write_text(json.dumps(found))
    page = page_of([read_run(tmp_path)])
    for part in (
        "accuracy 0.610 (0.500–0.720), is/plain of openai:big",
        "Measured on 80, drawn plainly, of 90 rows of rows, test; 78 of 80 could be measured.",
        "Always saying bad: accuracy 0.550",
        "small: accuracy (raw) with its 95 % interval, the best 2 of 2; dashed",
        "openai:big · is/plain, batch",
        "<td>0.700 (0.600–0.800)</td>",
        "-0.100 (-0.200 to +0.050)",
        "no answer",
        "films/is (ab)",
        "Fun is▁",
    ):
        assert part in page, part
    assert page.count("<svg") == 2 and "/home/me" not in page and "nothing found" not in page
    lines = figures.splitlines()
    unmatched = [",".join([line, str(n and 3)]) for n, line in enumerate(lines[1:])]
    (tmp_path / "figures.csv").write_text("\n".join([f"{lines[0]},nothing_found", *unmatched]))
    page = page_of([read_run(tmp_path)])
    assert "<th>nothing found</th>" in page and "<td>3</td>" in page
