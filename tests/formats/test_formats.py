"""Each format answers, in its own runtime, as the model that it was made of; what a format doesn't take is
named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
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
from finetune.formats import measured
from finetune.formats.measured import Questions, ask_file
from finetune.formats.table import FORMATS, Exportable
from finetune.tasks.table import TASKS
from finetune.tasks.task import Task

# How far the mean nats a row may be from the model's own, as a share: types of fewer bits are further away.
NEAR = {"bf16": 2e-2, "int8": 5e-2, "int4": 0.1, "q8_0": 2e-2, "q5_k": 0.1, "q4_k": 0.2}
SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"


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
