"""Training on from a finished run: its adapter goes on, on its own base, and what comes out stands on
that base too.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from finetune.adapters import load
from finetune.cli.parser import parse
from finetune.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def train(*arguments: object, verb: str = "train") -> None:
    spec = importlib.util.spec_from_file_location(verb, SCRIPTS / f"{verb}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, [str(one) for one in arguments]))


def start(model: Path, rows: Path, out: Path, *further: object) -> Path:
    train(
        "--model_name_or_path", model, "--dataset_name", rows, "--output_dir", out, "--num_train_epochs", 1,
        "--bf16", "false", "--save_strategy", "no", *further,
    )  # fmt: skip
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_an_adapter_is_trained_on_and_stands_on_the_first_base(method, saved, review_file, tmp_path):
    base = saved("bert", AutoModel)
    first = start(base, review_file, tmp_path / "first", "--method", method)
    still = start(first, review_file, tmp_path / "still", "--method", method, "--learning_rate", 1e-12)
    for name, value in weights(first).items():  # it began where the first one ended
        assert torch.allclose(weights(still)[name], value, atol=1e-9), name
    second = start(still, review_file, tmp_path / "second", "--method", method, "--learning_rate", 0.05)
    assert any(not torch.equal(weights(second)[name], value) for name, value in weights(first).items())
    for folder in (still, second):
        assert json.loads((folder / "passport.json").read_text())["base"] == str(base)
    one, other = load(first, device="cpu"), load(still, device="cpu")
    texts = ["great film", "awful story", "it was fine"]
    assert torch.allclose(one.logits(texts), other.logits(texts), atol=1e-6)
    assert load(second, device="cpu")(texts)


def test_an_adapter_that_cannot_go_on_says_why(saved, review_file, tmp_path):
    first = start(saved("bert", AutoModel), review_file, tmp_path / "first", "--method", "lora")
    with pytest.raises(
        InputError, match="by the method 'lora', which is trained on by no other. Set --method lora"
    ):
        start(first, review_file, tmp_path / "x", "--method", "ia3")
    with pytest.raises(InputError, match="leave --method_kwargs out"):
        start(first, review_file, tmp_path / "x", "--method", "lora", "--method_kwargs", '{"r": 2}')
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "test"):
        text = (review_file / f"{split}.jsonl").read_text().replace('"neg"', '"bad"')
        (other / f"{split}.jsonl").write_text(text)
    with pytest.raises(InputError, match="tells neg, pos apart, and the rows have bad, pos"):
        start(first, other, tmp_path / "x", "--method", "lora")
    with pytest.raises(InputError, match="already holds a finished run.*To train on from it"):
        start(first, review_file, first, "--method", "lora")


def test_a_run_of_all_weights_is_a_model_like_any_other(saved, review_file, tmp_path):
    first = start(saved("bert", AutoModel), review_file, tmp_path / "first", "--method", "full")
    still = start(first, review_file, tmp_path / "still", "--method", "full", "--learning_rate", 1e-12)
    texts = ["great film", "awful story"]
    assert torch.allclose(load(first).logits(texts), load(still).logits(texts), atol=1e-5)


def test_optimizers_and_hubs_that_are_not_there_are_said_in_a_sentence(
    saved, review_file, tmp_path, monkeypatch
):
    base = saved("bert", AutoModel)
    for name, wanted in (
        ("galore_adamw", "galore"),
        ("schedule_free_adamw", "schedulefree"),
        ("lomo", "lomo"),
    ):
        if (
            importlib.util.find_spec({"galore": "galore_torch", "lomo": "lomo_optim"}.get(wanted, wanted))
            is None
        ):
            with pytest.raises(InputError, match=f"(?i)--optim {name} can't be used: .*{wanted}"):
                start(base, review_file, tmp_path / name, "--method", "full", "--optim", name)
    # nobody listens there: no connection, which is no OSError of the hub's client
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    hub = ("--method", "full", "--push_to_hub", "true", "--hub_token", "hf_none")
    with pytest.raises(InputError, match="--push_to_hub true: the hub can't be reached"):
        # at the start: before the rows, which aren't there
        start(base, tmp_path / "nowhere", tmp_path / "hub", *hub)


ROWS = {
    "sft": [{"prompt": f"say {n}", "completion": f"film {n}"} for n in range(12)],
    "dpo": [{"prompt": f"say {n}", "chosen": f" film {n}", "rejected": " story"} for n in range(12)],
    "reward": [{"prompt": f"say {n}", "chosen": f" film {n}", "rejected": " story"} for n in range(12)],
    "pretrain": [{"text": f"a great film {n} of its own kind"} for n in range(12)],
}


@pytest.fixture
def begin(saved, review_file, tmp_path):
    """Verb and folder and further options → the folder of a run of one epoch at a constant rate, with a
    checkpoint."""

    def made(verb: str, folder: str, *further: object) -> Path:
        rows = review_file
        if verb in ROWS:
            rows = tmp_path / verb
            rows.mkdir(exist_ok=True)
            lines = [json.dumps(row) + "\n" for row in ROWS[verb]]
            (rows / "train.jsonl").write_text("".join(lines[:8]))
            (rows / "test.jsonl").write_text("".join(lines[8:]))
        causal = verb != "train"
        base = saved("llama", AutoModelForCausalLM) if causal else saved("bert", AutoModel)
        train(
            "--model_name_or_path", base, "--dataset_name", rows, "--output_dir", tmp_path / folder,
            "--method", "lora", "--bf16", "false", "--lr_scheduler_type", "constant", "--learning_rate", 0.05,
            "--per_device_train_batch_size", 4, "--eval_strategy", "no", "--max_length", 16,
            *(["--objective", "clm"] if verb == "pretrain" else []),
            *further, verb=verb,
        )  # fmt: skip
        return tmp_path / folder

    return made


STREAMED = ("--streaming", "true", "--shuffle_buffer", 4, "--save_strategy", "steps", "--save_steps", 2)


@pytest.mark.parametrize(
    ("verb", "streamed"),
    # streams and what isn't tuned by this project's own trainer
    [("train", STREAMED), ("dpo", ())]
    + [pytest.param(verb, (), marks=pytest.mark.slow) for verb in ("train", "sft", "reward", "pretrain")]
    + [pytest.param("sft", STREAMED, marks=pytest.mark.slow)],
)
def test_a_run_made_longer_is_the_uninterrupted_one(verb, streamed, begin, tmp_path):
    length, short, long = ("--max_steps", 2, 4) if streamed else ("--num_train_epochs", 1, 2)
    first = begin(verb, "first", length, short, *streamed)
    train("--resume_from", first, length, long, "--output_dir", tmp_path / "longer", verb=verb)
    whole = weights(begin(verb, "whole", length, long, *streamed))
    longer = weights(tmp_path / "longer")
    assert any(not torch.equal(longer[name], value) for name, value in weights(first).items())
    assert all(torch.allclose(longer[name], value, atol=1e-6) for name, value in whole.items())


def test_tokens_and_templates_that_an_adapter_lacks_are_refused(begin, tmp_path):
    # its own tokenizer is trained on with: what options add to the base's would be dropped
    first = begin("sft", "first")
    for options, message in (
        (("--add_tokens", "<x>"), "no row for <x> .*merge it into a model first"),
        (("--chat_template_path", "chatml"), "another chat template than --chat_template_path chatml"),
    ):
        with pytest.raises(InputError, match=message):
            begin("sft", "x", "--model_name_or_path", first, *options)


def test_what_a_longer_run_cannot_be_is_said(begin, tmp_path, caplog):
    first, bare = begin("train", "first"), begin("train", "bare", "--save_strategy", "no")
    out = ("--output_dir", tmp_path / "x")
    for options, message in (
        ((first, *out), "has made .* steps.*asks for no more.*--model_name_or_path"),
        ((first, *out, "--num_train_epochs", 9, "--learning_rate", 0.1), "another run .learning_rate: 0.05"),
        ((bare, *out, "--num_train_epochs", 9), "keeps no whole checkpoint"),
        ((first / "checkpoint-3", *out), "names a checkpoint; wanted its run"),
        ((tmp_path, *out), "no run's folder: it holds no arguments.yaml"),
        ((first, "--num_train_epochs", 9), "No output folder; set --output_dir"),
        ((first, "--config", "x", *out), "leave one out"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            train("--resume_from", *options)
    linear = begin("train", "linear", "--lr_scheduler_type", "linear", "--max_steps", 2)
    train("--resume_from", linear, *out, "--max_steps", 3)
    assert "not those of an uninterrupted run" in caplog.text
    with pytest.raises(InputError, match="already holds a finished run.*--resume_from"):
        train("--resume_from", linear, "--output_dir", linear, "--max_steps", 3)
