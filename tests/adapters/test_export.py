"""Exported files answer as the model they were made of."""

import json

import peft
import pytest
import torch
import yaml
from conftest import make_model, make_tokenizer
from test_merge import run, save
from transformers import AutoModelForSequenceClassification

from finetune.adapters import load, probe
from finetune.adapters.export import claimed
from finetune.adapters.loading import mount
from finetune.errors import InputError

ort = pytest.importorskip("onnxruntime", reason="ONNX needs the extra 'export'")
pytest.importorskip("onnxscript", reason="ONNX needs the extra 'export'")


def test_an_adapter_becomes_onnx_and_int8(tmp_path, saved, review_file, capsys):
    from finetune.adapters.onnx import INT8, MODEL, onnx_predictions, run_onnx

    source = saved("bert", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
    network = make_model("bert", AutoModelForSequenceClassification, id2label={0: "neg", 1: "pos"})
    folder = save(
        tmp_path / "a",
        peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]),
        network,
        named=str(source),
    )
    make_tokenizer("bert").save_pretrained(folder)
    options = {
        "task": "classification",
        "model_name_or_path": str(source),
        "max_length": 16,
        "dataset_name": str(review_file),
    }
    (folder / "arguments.yaml").write_text(yaml.safe_dump(options))
    (folder / "labels.json").write_text('["neg", "pos"]')
    (folder / "metrics.json").write_text("{}")
    run(
        "--action",
        "int8",
        "--adapters",
        folder,
        "--output_dir",
        tmp_path / "onnx",
        "--allow_mismatch",
        "true",
    )
    said = capsys.readouterr().out.splitlines()
    assert f"{MODEL}: largest logit difference" in said[0] and "0 of 12 predictions changed" in said[0]
    assert INT8 in said[1]
    classifier = load(folder, allow_mismatch=True)
    rows = [json.loads(line) for line in (review_file / "test.jsonl").read_text().splitlines()]
    right = sum(
        answer["label"] == row["label"]
        for answer, row in zip(classifier([r["text"] for r in rows]), rows, strict=True)
    )
    assert (
        f"accuracy on 24 rows of '{review_file}': PyTorch {right / 24:.4f}, ONNX {right / 24:.4f}, int8 "
        in "\n".join(said)
    )
    found = onnx_predictions(
        tmp_path / "onnx" / MODEL, classifier.processor, [r["text"] for r in rows], 16, batch_size=5
    )
    assert torch.equal(found, classifier.logits([r["text"] for r in rows]).argmax(-1))
    processor, mounted = mount(folder, allow_mismatch=True)
    before = probe.logits_of(mounted, processor)
    assert (
        probe.compare_models(before, (run_onnx(tmp_path / "onnx" / MODEL, processor), before[1])).difference
        < 1e-4
    )
    assert (
        0
        < probe.compare_models(before, (run_onnx(tmp_path / "onnx" / INT8, processor), before[1])).difference
        < 0.5
    )
    one = run_onnx(
        tmp_path / "onnx" / MODEL, processor, ("the film",)
    )  # another batch and length than was traced
    assert one.shape == (1, 2)


@pytest.mark.parametrize("fault", [InputError("refused"), OSError("full"), KeyboardInterrupt()])
def test_a_folder_of_which_nothing_came_is_gone(fault, tmp_path):
    with pytest.raises(type(fault)), claimed(tmp_path / "new"):
        (tmp_path / "new" / "half").write_text("x")
        raise fault
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("x")
    with pytest.raises(InputError, match="is not empty"), claimed(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine" / "kept").read_text() == "x"
