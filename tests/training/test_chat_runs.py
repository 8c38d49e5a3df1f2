"""scripts/sft.py on chats: a base without a template, new tokens under LoRA, and the writer that
comes back.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from chat_rows import TOOLS, TURNS, call, said
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.adapters import load
from finetune.adapters.loading import mount
from finetune.cli.parser import parse
from finetune.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"


def sft(*arguments: object) -> None:
    spec = importlib.util.spec_from_file_location("sft", SCRIPTS / "sft.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*parse(module.main, [str(one) for one in arguments]))


@pytest.fixture
def chats(tmp_path):
    """A folder of chats, some with calls."""

    def write(name: str, rows: list[dict]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    return write


def start(model: Path, rows: Path, out: Path, *further: object) -> Path:
    sft(
        "--model_name_or_path", model, "--dataset_name", rows, "--output_dir", out, "--max_steps", 3,
        "--bf16", "false", "--save_strategy", "no", "--max_length", 64, *further,
    )  # fmt: skip
    return out


def test_a_base_without_a_template_learns_chats_with_separators_of_its_own(saved, chats, tmp_path, caplog):
    rows = chats("rows", [{"messages": TURNS}, {"messages": TURNS[:2]}] * 4)
    base = saved("llama", AutoModelForCausalLM)
    out = start(base, rows, tmp_path / "run", "--method", "lora")
    assert "Chat template: chatml, since the tokenizer has none" in caplog.text
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token == "<|im_end|>" and "<|im_start|>" in tokenizer.chat_template
    rows_saved = [
        value for name, value in load_file(out / "adapter_model.safetensors").items() if "token" in name
    ]
    assert rows_saved and all(value.shape[0] == 2 for value in rows_saved)
    _, network = mount(out)
    held = network.get_input_embeddings()(torch.tensor([tokenizer.convert_tokens_to_ids("<|im_end|>")]))
    plain = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.mean(0)
    assert not torch.allclose(held[0], plain, atol=1e-6)  # it was trained
    write = load(out, device="cpu")
    assert (
        isinstance(write(TURNS[:1], max_new_tokens=4), str)
        and len(write(["a film", "good"], max_new_tokens=4)) == 2
    )


def test_a_template_is_taken_from_a_file_and_what_it_leaves_out_stops_the_run(saved, chats, tmp_path):
    calls = [said("user", "Weather?"), said("assistant", "", tool_calls=call(town="Oslo"))]
    rows = chats(
        "rows", [{"messages": TURNS[:2], "tools": None}, {"messages": calls, "tools": json.dumps(TOOLS)}] * 3
    )
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}<s> {{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s> assistant {% endif %}"
    )
    base = saved("llama", AutoModelForCausalLM)
    with pytest.raises(
        InputError, match=r"Row \d+ .*does not render the tool_calls of message 1 \(weather\)"
    ):
        start(base, rows, tmp_path / "run", "--chat_template_path", file)
    with pytest.raises(InputError, match="No chat template 'nowhere'"):
        start(base, rows, tmp_path / "run", "--chat_template_path", "nowhere")
    assert not (tmp_path / "run").exists()
