"""A run becomes a table of formats: compared, kept where it was cut off, refused by name."""

from __future__ import annotations

import json
import runpy
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_model, make_tokenizer
from transformers import AutoModelForSequenceClassification

from finetune.errors import InputError
from finetune.formats import measured
from finetune.formats.finished import Export, Failed
from finetune.formats.measured import export_all
from finetune.formats.options import ExportArguments, ExportRowsArguments
from finetune.formats.table import FORMATS, Exportable, FileFormat, find_formats
from finetune.metrics.measure import mean_of
from finetune.reports.exports import as_table, beyond, export_lines, failed_line

SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"


def export(name: str, right: list[int], said: list[int], tmp_path: Path | None = None) -> Export:
    measure = mean_of(np.array(right))
    return Export(name, tmp_path, 10.0, 2.5, 2.4, 300.0, np.array(said), measure, 0.3)


def test_lines_are_paired_with_the_first():
    whole = export("float32", [1] * 18 + [0] * 2, [1] * 20)
    worse = export("int4", [1] * 9 + [0] * 11, [1] * 11 + [0] * 9)
    lines = export_lines([whole, worse])
    assert [line["changed"] for line in lines] == [0, 9]
    assert lines[1]["drop"] == pytest.approx(0.45) and lines[1]["test"] == "McNemar, exact"
    assert lines[1]["p"] == pytest.approx(
        2 * 0.5**9
    )  # 9 rows that float32 alone has right, none the other way
    low, high = lines[1]["drop_interval"]
    assert 0 < low < 0.45 <= high
    table = as_table(lines)
    assert table[1]["against float32"] == "-0.4500, p = 0.0039 (McNemar, exact)"
    same = as_table(export_lines([whole, export("onnx", [1] * 18 + [0] * 2, [1] * 20)]))
    assert same[1]["against float32"].startswith("+0.0000, p = 1")
    said: list[str] = []
    assert beyond(lines, 0.44, said.append) and said[0].startswith("int4 drops 0.4500")
    assert not beyond(lines, 0.45) and not beyond(lines, None)


def test_a_drop_beyond_the_tolerance_is_status_1(tmp_path, monkeypatch, capsys):
    found = [
        export("float32", [1, 1, 1, 1], [1] * 4),
        Failed("onnx", "no | such model"),
        export("int8", [1, 0, 1, 1], [1] * 4),
    ]
    monkeypatch.setattr(measured, "export_all", lambda export, data: iter(found))
    for tolerance, status in (("0.2", 1), ("0.25", 0)):
        arguments = ["export", "--artefact", "x", "--output_dir", str(tmp_path), "--tolerance", tolerance]
        monkeypatch.setattr(sys, "argv", arguments)
        if status:
            with pytest.raises(SystemExit) as left:
                runpy.run_path(str(SCRIPT), run_name="__main__")
            assert left.value.code == status
            assert "int8 drops 0.2500" in capsys.readouterr().out
        else:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    table = (tmp_path / "exports.md").read_text()
    assert "| int8" in table and "failed: no \\| such model" in table
    lines = json.loads((tmp_path / "exports.json").read_text())
    assert lines[-1] == failed_line("onnx", "no | such model")


def test_a_format_by_name_that_fails_is_status_1(tmp_path, monkeypatch):
    found = [export("float32", [1], [1]), Failed("onnx", "no")]
    monkeypatch.setattr(measured, "export_all", lambda export, data: iter(found))
    for named, status in (("onnx", 1), ("all", None)):
        given = ["export", "--artefact", "x", "--output_dir", str(tmp_path), "--to", named]
        monkeypatch.setattr(sys, "argv", given)
        if status is None:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            continue
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert left.value.code == status


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """int8 stands for a format whose turn is the last thing that happens; gives the formats that are
    written."""
    written: list[str] = []
    plain = FORMATS["bf16"]

    def write(name: str, what: Exportable, folder: Path) -> Path:
        written.append(name)
        (folder / "half").write_text("")
        if name == "int8" and written.count("int8") == 1:
            sys.exit(143)  # as SIGTERM does
        if name == "onnx":
            raise RuntimeError("no graph\nof this")
        return plain.write(what, folder)

    for name in ("float32", "bf16", "onnx", "int8"):
        row = FileFormat(partial(write, name), "torch", name)
        monkeypatch.setitem(FORMATS, name, row)
    return written


def test_what_was_done_when_it_was_cut_off_stays(tmp_path, review_file, in_process, cut_off, monkeypatch):
    run, folder = artefact(tmp_path / "run", review_file), tmp_path / "out"
    given = ["export", "--artefact", str(run), "--output_dir", str(folder), "--to", "bf16", "onnx", "int8"]
    monkeypatch.setattr(sys, "argv", given)

    def ended() -> int:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return left.value.code

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert ended() == 143
        lines = json.loads((folder / "exports.json").read_text())
        # the table's order: float32, bf16, onnx, int8
        assert [line["format"] for line in lines] == ["float32", "bf16", "onnx"]
        assert lines[2]["failed"] == "RuntimeError: no graph"
        assert not (folder / "int8").exists() and not (folder / "onnx").exists()
        # as if its process had been killed
        (folder / "int8").mkdir()
        (folder / "int8" / "half").write_text("")
        kept = (folder / "bf16" / "model.safetensors").stat().st_mtime_ns
        assert ended() == 1  # onnx was asked for by name
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cut_off == ["float32", "bf16", "onnx", "int8", "onnx", "int8"]
    assert (folder / "bf16" / "model.safetensors").stat().st_mtime_ns == kept
    again = json.loads((folder / "exports.json").read_text())
    assert [line["format"] for line in again] == ["float32", "bf16", "int8", "onnx"]
    assert again[:2] == lines[:2]
    assert "failed: RuntimeError: no graph" in (folder / "exports.html").read_text()


def test_exports_of_two_runs_or_rows_are_not_mixed(tmp_path, review_file, in_process):
    run, folder = artefact(tmp_path / "run", review_file), str(tmp_path / "out")
    first = list(export_all(ExportArguments(str(run), ["bf16"], folder), ExportRowsArguments()))
    # its file is wanted now, so that it is written
    whole, bf16 = export_all(ExportArguments(str(run), ["float32", "bf16"], folder), ExportRowsArguments())
    assert first[0].file is None and whole.file == Path(folder) / "float32" and bf16.file == first[1].file
    assert np.array_equal(bf16.right.counts, first[1].right.counts)
    assert bf16.right.is_binary and bf16.milliseconds == first[1].milliseconds
    few = ExportRowsArguments(max_eval_rows=6)
    with pytest.raises(InputError, match="exports with other rows.*set --output_dir"):
        list(export_all(ExportArguments(str(run), ["bf16"], folder), few))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        make_model("bert", AutoModelForSequenceClassification, hidden_size=16).save_pretrained(run)
    with pytest.raises(InputError, match="exports with other weights"):
        list(export_all(ExportArguments(str(run), ["bf16"], folder), ExportRowsArguments()))


def artefact(folder: Path, rows: Path, **options: object) -> Path:
    """A finished run that tuned a whole classifier."""
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    network = make_model("bert", AutoModelForSequenceClassification, hidden_size=32, **names)
    network.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    given = {"task": "classification", "model_name_or_path": "x", "max_length": 16, "method": "full"}
    (folder / "arguments.yaml").write_text(yaml.safe_dump(given | {"dataset_name": [str(rows)]} | options))
    (folder / "labels.json").write_text('["neg", "pos"]')
    (folder / "metrics.json").write_text("{}")
    return folder


def test_a_run_becomes_files_and_lines(tmp_path, review_file, in_process):
    run = artefact(tmp_path / "run", review_file)
    twin = artefact(tmp_path / "twin", review_file)
    asked = ExportArguments(str(run), ["bf16"], str(tmp_path / "out"), beside=[str(twin)])
    found = list(export_all(asked, ExportRowsArguments()))
    assert [one.name for one in found] == ["float32", "bf16", "twin"]
    assert found[0].file is None and found[1].file == tmp_path / "out" / "bf16"
    # float32 was asked, not asked for
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"bf16", "finished"}
    assert found[1].megabytes < 0.6 * found[0].megabytes
    assert np.array_equal(found[0].said, found[2].said) and len(found[0].said) == 24
    named = ExportRowsArguments(dataset_name=[str(review_file)], eval_split="test", max_eval_rows=6)
    few = list(export_all(ExportArguments(str(run), ["float32"], str(tmp_path / "few")), named))
    assert len(few[0].said) == 6 and few[0].file is not None


def refused(*_: object) -> None:
    raise InputError("torch does not read it")


def test_what_is_refused_leaves_nothing(tmp_path, review_file, monkeypatch, in_process):
    run = artefact(tmp_path / "run", review_file)
    monkeypatch.setattr(FileFormat, "is_installed", True)
    asked = ExportArguments(str(run), ["q8_0"], str(tmp_path / "out"))
    found = list(export_all(asked, ExportRowsArguments()))
    assert found[1] == Failed("q8_0", found[1].reason) and "'bert' is not written as GGUF" in found[1].reason
    assert not (tmp_path / "out" / "q8_0").exists()
    monkeypatch.setattr(measured, "ask_file", refused)
    with pytest.raises(InputError, match="torch does not read"):
        list(export_all(ExportArguments(str(run), ["bf16"], str(tmp_path / "gone")), ExportRowsArguments()))
    assert not (tmp_path / "gone").exists()


def test_what_cannot_be_exported_is_named(tmp_path, review_file, monkeypatch):
    run = artefact(tmp_path / "run", review_file)
    rows = ExportRowsArguments()
    with pytest.raises(InputError, match="Unknown format 'torchscript'; wanted one of: float32, bf16"):
        find_formats(["torchscript"])
    with pytest.raises(InputError, match="Got --tolerance 1.5; wanted a share"):
        ExportArguments(str(run), tolerance=1.5)
    with pytest.raises(InputError, match="No artefact; set --artefact"):
        list(export_all(ExportArguments(), rows))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="'executorch' needs the extra 'executorch'"):
        find_formats(["executorch"])
    assert "executorch" in find_formats(["all"])
    monkeypatch.undo()
    tags = artefact(tmp_path / "tags", review_file, task="tokens")
    with pytest.raises(InputError, match="holds the task 'tokens'; exports are measured for"):
        list(export_all(ExportArguments(str(tags), ["float32"]), rows))
    other = artefact(tmp_path / "other", review_file)
    (other / "labels.json").write_text('["bad", "good"]')
    with pytest.raises(InputError, match="wanted the same classes in --beside"):
        list(export_all(ExportArguments(str(run), ["float32"], beside=[str(other)]), rows))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(InputError, match="is not empty; set --output_dir"):
        list(export_all(ExportArguments(str(run), ["float32"], str(tmp_path / "full")), rows))


def test_a_format_of_all_that_fails_is_a_line(tmp_path, review_file, in_process, monkeypatch):
    run = artefact(tmp_path / "run", review_file)
    monkeypatch.delitem(FORMATS, "executorch")
    formats = [name for name, row in FORMATS.items() if row.runtime == "llama.cpp" and row.is_installed]
    found = list(export_all(ExportArguments(str(run), ["all"], str(tmp_path / "out")), ExportRowsArguments()))
    failed = [one.name for one in found if isinstance(one, Failed)]
    assert set(formats) <= set(failed)
    for one in found:
        assert (tmp_path / "out" / one.name).exists() is isinstance(one, Export)
