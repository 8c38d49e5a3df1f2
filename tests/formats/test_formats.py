"""Each format answers, in its own runtime, as the model that it was made of; what a format doesn't take is
named.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from bounds import assert_near
from conftest import make_model, make_tokenizer
from datasets import Dataset
from field_models import FIELD_CONFIGS, make_field_model, picture, sound
from test_gguf import byte_level, model_for
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    GgufConfig,
)

from finetune.adapters.gguf import FILE as GGUF
from finetune.adapters.gguf import export_gguf
from finetune.errors import InputError
from finetune.formats import measured, runtimes
from finetune.formats.measured import Export, Questions, ask_file, export_all
from finetune.formats.options import ExportArguments, ExportRowsArguments
from finetune.formats.table import FORMATS, Exportable, FileFormat, find_formats
from finetune.metrics.measure import mean_of
from finetune.reports.exports import as_table, beyond, export_lines
from finetune.tasks.table import TASKS
from finetune.tasks.task import Task

# How far the mean nats a row may be from the model's own, as a share: types of fewer bits are further away.
NEAR = {"bf16": 2e-2, "int8": 5e-2, "int4": 0.1, "q8_0": 2e-2, "q5_k": 0.1, "q4_k": 0.2}
SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that asks a file is this one: seconds of imports less for each."""

    whole = subprocess.run

    def run(command: list[str], **options: object) -> object:
        if "finetune.formats.runtimes" not in command:  # ExecuTorch's own compiler
            return whole(command, **options)
        runtimes.main(command[-1])
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)


def classifier() -> tuple[Exportable, Questions]:
    network = make_model("bert", AutoModelForSequenceClassification, hidden_size=32, num_labels=3)
    ids = [[2, 8, 9, 3], [2, 10, 11, 12, 13, 3], [2, 7, 3]]
    asked = Questions({"input_ids": ids}, [[0], [1], [2]])
    return Exportable(network, make_tokenizer("bert"), asked.longest, False), asked


def writer(hidden: int = 64) -> tuple[Exportable, Questions]:
    tokenizer = byte_level()
    network = model_for(tokenizer, hidden_size=hidden, head_dim=hidden // 4, intermediate_size=hidden)
    ids = [[5, 9, 33, 40, 41], [77, 3, 9]]
    asked = Questions({"input_ids": ids}, [[9, 33, -100, 41, 8], [-100, 9, 4]])
    return Exportable(network, tokenizer, asked.longest, False), asked


def by_model(network: torch.nn.Module, asked: Questions) -> tuple[np.ndarray, list[float]]:
    """Predictions and nats, as the network itself gives them."""
    said, nats = [], []
    for ids, labels in zip(asked.inputs["input_ids"], asked.labels, strict=True):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([ids])).logits[0]
        gold = torch.tensor(labels)
        table = logits[None] if logits.dim() == 1 else logits[gold != -100]
        chances = table.log_softmax(-1)
        said.append(table.argmax(-1).numpy())
        nats.append(float(-chances.gather(1, gold[gold != -100][:, None]).sum()))
    return np.concatenate(said), nats


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one == "executorch" else ()) for one in FORMATS]
)  # lowering takes ten seconds
@pytest.mark.parametrize("kind", ["classification", "sft"])
def test_a_file_answers_in_its_runtime_as_the_model(name, kind, tmp_path, in_process):
    row = FORMATS[name]
    if not row.is_installed:
        pytest.skip(f"{name} needs the extra '{row.extra}'")
    what, asked = classifier() if kind == "classification" else writer(256 if name.endswith("_k") else 64)
    if kind == "classification" and row.runtime == "llama.cpp":
        with pytest.raises(InputError, match="'bert' is not written as GGUF"):
            row.write(what, tmp_path)
        return
    found = ask_file(row, row.write(what, tmp_path), TASKS[kind], asked)
    said, nats = by_model(what.network, asked)
    assert_near(float(found["nats"].sum()), sum(nats), NEAR.get(name, 1e-4))
    assert name in NEAR or np.array_equal(found["said"], said)
    assert len(found["milliseconds"]) == len(asked.labels) and found["memory"] > 10


def of_field(family: str, auto_class: type) -> tuple[Task, Exportable, Questions]:
    """A tiny model of pictures or sounds, and three rows as it takes them."""
    task = FIELD_CONFIGS[family][0]
    network, processor = make_field_model(family, auto_class)
    cells = [picture(n) if task == "image" else sound(n, 0.1 + 0.05 * n) for n in range(3)]
    rows = Dataset.from_dict({task: cells, "labels": [0, 1, 0], "row": [0, 1, 2]})
    asked = measured._of_batches(rows, TASKS[task], processor)
    return TASKS[task], measured.exportable(network, processor, TASKS[task], asked), asked


@pytest.mark.parametrize(
    ("family", "kind", "names"),
    [
        ("vit", AutoModelForImageClassification, ("bf16", "onnx")),
        pytest.param("vit", AutoModelForImageClassification, ("int8",), marks=pytest.mark.slow),
        pytest.param("resnet", AutoModelForImageClassification, ("onnx",), marks=pytest.mark.slow),
        pytest.param("ast", AutoModelForAudioClassification, ("float32", "onnx"), marks=pytest.mark.slow),
        # waves of unlike lengths
        pytest.param("wav2vec2", AutoModelForAudioClassification, ("onnx",), marks=pytest.mark.slow),
    ],
)
def test_pictures_and_sounds_are_answered_in_each_runtime(family, kind, names, tmp_path, in_process):
    pytest.importorskip("PIL", reason="pictures want the extra 'images'")
    row, what, asked = of_field(family, kind)
    said = []
    for place in range(3):
        given = {name: torch.from_numpy(rows[place])[None] for name, rows in asked.inputs.items()}
        with torch.no_grad():
            said.append(what.network(**given).logits[0])
    nats = sum(float(-one.log_softmax(-1)[gold[0]]) for one, gold in zip(said, asked.labels, strict=True))
    for name in names:
        if not FORMATS[name].is_installed:
            pytest.skip(f"{name} needs the extra '{FORMATS[name].extra}'")
        (tmp_path / name).mkdir()
        found = ask_file(FORMATS[name], FORMATS[name].write(what, tmp_path / name), row, asked)
        assert_near(float(found["nats"].sum()), nats, NEAR.get(name, 1e-4))
        assert name in NEAR or found["said"].tolist() == [int(one.argmax()) for one in said]
    with pytest.raises(InputError, match="'q8_0' holds models of texts.*Set --to"):
        measured.want_kind("q8_0", what, row)


@pytest.mark.slow
def test_token_types_reach_every_runtime(tmp_path, in_process):
    what, asked = classifier()
    tokenizer = make_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    torch.nn.init.normal_(what.network.bert.embeddings.token_type_embeddings.weight)
    ids = asked.inputs["input_ids"]
    types = [[0, 0, *[1] * (len(one) - 2)] for one in ids]
    paired = Questions({"input_ids": ids, "token_type_ids": types}, asked.labels)
    for name in ("float32", "onnx", "executorch"):
        if not FORMATS[name].is_installed:
            continue
        folder = tmp_path / name
        folder.mkdir()
        given = Exportable(what.network, tokenizer, paired.longest, True)
        found = ask_file(FORMATS[name], FORMATS[name].write(given, folder), TASKS["pairs"], paired)
        with torch.no_grad():
            logits = what.network(
                input_ids=torch.tensor(ids[:1]), token_type_ids=torch.tensor(types[:1])
            ).logits
        assert_near(float(found["nats"][0]), float(-logits.log_softmax(-1)[0, 0]), 1e-4)


def test_weights_of_four_bits_are_two_a_byte(tmp_path):
    pytest.importorskip("torchao", reason="int4 needs the extra 'int4'")
    from finetune.formats.int4 import FILE, load_int4, quantise, save_int4

    weight = torch.randn(16, 64)
    packed, scale = quantise(weight)
    assert packed.shape == (16, 32) and packed.dtype == torch.uint8 and scale.shape == (16, 2)
    values = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() - 8
    again = values * scale.repeat_interleave(32, dim=1)
    assert ((again - weight).abs() <= scale.repeat_interleave(32, dim=1) * 0.51).all()
    what, _ = writer()
    network = load_int4(save_int4(what.network, tmp_path), "AutoModelForCausalLM")
    assert (tmp_path / FILE).is_file()
    assert network.lm_head.weight.dtype == torch.bfloat16  # the output layer keeps its bits
    assert type(network.model.layers[0].self_attn.q_proj.weight).__name__ == "Int4OpaqueTensor"
    narrow = make_model("bert", AutoModelForSequenceClassification, intermediate_size=24)  # no group fits
    with pytest.raises(InputError, match="BertForSequenceClassification has no linear layer for int4"):
        save_int4(narrow, tmp_path)


def test_llama_cpp_quantises_by_itself(tmp_path):
    pytest.importorskip("llama_cpp", reason="K-quants need the extra 'llama_cpp'")
    import gguf

    what, _ = writer(256)
    sizes = {}
    for kind in ("q8_0", "q5_k", "q4_k"):
        folder = tmp_path / kind
        folder.mkdir()
        assert FORMATS[kind].write(what, folder) == folder / GGUF
        assert [one.name for one in folder.iterdir()] == [GGUF]  # the float32 file is gone
        types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / GGUF).tensors}
        assert kind.upper() in types
        sizes[kind] = (folder / GGUF).stat().st_size
    assert sizes["q8_0"] > sizes["q5_k"] > sizes["q4_k"]


def test_llama_cpp_reads_a_file_as_transformers_does(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="GGUF's own runtime is the extra 'llama_cpp'")
    what, _ = writer()
    export_gguf(what.network, what.processor, tmp_path, "f32")
    model = llama_cpp.Llama(str(tmp_path / GGUF), n_ctx=64, logits_all=True, verbose=False)
    ours = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    for text in ("A film to see.", "naïve, 3 of 12!", "  two spaces"):
        ids = what.processor(text)["input_ids"]
        assert model.tokenize(text.encode(), add_bos=True, special=False) == ids
        model.reset()
        model.eval(ids)
        with torch.no_grad():
            wanted = ours(input_ids=torch.tensor([ids])).logits[0]
        # llama.cpp keeps keys and values in 16 bits
        assert_near(torch.tensor(model.scores[: len(ids)].copy()), wanted, 1e-3)


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
        "onnx: not written: no",
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
    assert "| int8" in (tmp_path / "exports.md").read_text()


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
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"bf16"}  # float32 was asked, not asked for
    assert found[1].megabytes < 0.6 * found[0].megabytes
    assert np.array_equal(found[0].said, found[2].said) and len(found[0].said) == 24
    named = ExportRowsArguments(dataset_name=[str(review_file)], eval_split="test", max_eval_rows=6)
    few = list(export_all(ExportArguments(str(run), ["float32"], str(tmp_path / "few")), named))
    assert len(few[0].said) == 6 and few[0].file is not None


def test_what_is_refused_leaves_nothing(tmp_path, review_file, monkeypatch, in_process):
    run = artefact(tmp_path / "run", review_file)
    monkeypatch.setattr(FileFormat, "is_installed", True)
    with pytest.raises(InputError, match="'bert' is not written as GGUF"):
        asked = ExportArguments(str(run), ["q8_0"], str(tmp_path / "gone"))
        list(export_all(asked, ExportRowsArguments()))
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
    lines = [one for one in found if isinstance(one, str)]
    assert all(" not written: " in line for line in lines)
    assert [line for line in lines if line.startswith("q8_0: not written")]
    if formats:
        assert not (tmp_path / "out" / "q8_0").exists()
    for one in found:
        assert isinstance(one, str) or one.file is not None


@pytest.mark.slow
def test_a_file_is_asked_in_a_process_of_its_own(tmp_path):
    what, asked = classifier()
    found = ask_file(
        FORMATS["float32"], FORMATS["float32"].write(what, tmp_path), TASKS["classification"], asked
    )
    said, nats = by_model(what.network, asked)
    assert np.array_equal(found["said"], said)
    assert_near(float(found["nats"].sum()), sum(nats), 1e-4)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="torch does not read"):
        ask_file(FORMATS["float32"], tmp_path, TASKS["classification"], asked)
