"""A run's folder names its base as the user did, and others can read it."""

import json
import stat

from conftest import make_model, make_tokenizer
from transformers import AutoModelForSequenceClassification

from finetune.artefacts.folder import save_artefact
from finetune.methods import attach


def test_weights_are_readable_and_the_base_goes_by_its_name(tmp_path):
    (tmp_path / "arguments.yaml").write_text(
        "model_name_or_path: minilm\nmethod: lora\ntask: classification\n"
    )
    (tmp_path / "run.json").write_text(json.dumps({"data": "x"}))
    base = make_model("bert", AutoModelForSequenceClassification, id2label={0: "no", 1: "yes"})
    base.name_or_path = str(tmp_path / "cache" / "somewhere")
    network = attach(base, "lora", {}, "SEQ_CLS")
    save_artefact(network, make_tokenizer("bert"), tmp_path, ["no", "yes"], {})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "sentence-transformers/all-MiniLM-L6-v2"  # what plain PEFT finds anywhere
    )
    weights = (tmp_path / "adapter_model.safetensors").stat().st_mode
    assert stat.S_IMODE(weights) == stat.S_IMODE((tmp_path / "arguments.yaml").stat().st_mode)
