"""Folders for other engines hold what the run computes; what one doesn't take is refused by its name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import gguf
import peft
import pytest
import torch
from bounds import assert_near
from test_gguf import byte_level, model_for
from transformers import AutoModelForCausalLM

from finetune.adapters.gguf import FILE, LORA_FILE
from finetune.adapters.weights import read_adapter
from finetune.errors import InputError
from finetune.formats.engines import PROMPT, serve_elsewhere
from finetune.formats.options import ExportArguments

IDS = torch.tensor([[40, 41, 42, 50, 60]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level()
    model_for(tokenizer, num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, kind=peft.LoraConfig, **options) -> Path:
    network = AutoModelForCausalLM.from_pretrained(base)
    given = {"target_modules": ["q_proj", "k_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    tuned = peft.get_peft_model(network, kind(**given))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    tuned.save_pretrained(folder)
    return folder


PATTERNS = {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 7}}


def export(source: Path, engine: str, folder: Path, merged: bool = False) -> list[str]:
    arguments = ExportArguments(artefact=str(source), to=[engine], output_dir=str(folder), merged=merged)
    return list(serve_elsewhere(arguments))


@torch.inference_mode()
def logits(network) -> torch.Tensor:
    # Without the row that loading adds for padding.
    return network.eval()(input_ids=IDS).logits[..., :259]


def tuned(base: Path, folder: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))


def test_vllm_gets_an_adapter_of_one_rank_that_says_the_same(base, tmp_path):
    source = adapter(base, tmp_path / "films v=2", **PATTERNS)
    said = export(source, "vllm", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["use_rslora"]) == (
        7,
        7,
        {},
        False,
    )
    assert_near(tuned(tmp_path / "out" / "base", tmp_path / "out" / "adapter"), tuned(base, source))
    command = (tmp_path / "out" / "run.sh").read_text()
    assert "vllm serve ./base --enable-lora --max-lora-rank 8 --lora-modules films-v-2=./adapter" in command
    assert str(tmp_path) not in command, "the folder can be carried elsewhere"
    assert len(said) == 3 and "LoRA of rank 7" in said[0]


def test_llama_cpp_gets_the_same_factors(base, tmp_path):
    source = adapter(base, tmp_path / "films", **PATTERNS)
    export(source, "llama_cpp", tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / LORA_FILE)
    assert (
        reader.fields["adapter.lora.alpha"].contents() == 0
        and reader.fields["general.type"].contents() == "adapter"
    )
    found = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}
    factors = read_adapter(source).factors
    assert len(found) == 2 * len(factors)
    whole = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / FILE).tensors}
    assert all(name.rsplit(".", 1)[0] in whole for name in found), (
        "each change has its weight in the base's file"
    )
    for ours, theirs, heads in (
        ("down_proj", "ffn_down", None),
        ("q_proj", "attn_q", 4),
        ("k_proj", "attn_k", 2),
    ):
        name = next(
            name
            for name in factors
            if name.endswith(f"layers.1.mlp.{ours}") or name.endswith(f"1.self_attn.{ours}")
        )
        change = found[f"blk.1.{theirs}.weight.lora_b"] @ found[f"blk.1.{theirs}.weight.lora_a"]
        if heads:
            # llama.cpp's order of a head's dimensions, put back
            change = change.reshape(heads, 8, 2, -1).transpose(1, 2).reshape(heads * 16, -1)
        assert_near(change, factors[name].dense())
    assert (
        f"llama-server -m {FILE} --alias films --lora {LORA_FILE}"
        in (tmp_path / "out" / "run.sh").read_text()
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("engine", ["vllm", "llama_cpp"])
def test_what_an_engine_does_not_take_is_merged_or_refused_by_name(base, tmp_path, engine):
    cases = {
        "is DoRA": {"use_dora": True}, "has trained biases": {"bias": "all"},
        "'lm_head": {"target_modules": ["lm_head"]},
        "'model.embed_tokens": {"target_modules": ["embed_tokens"]},
        "brings 'lm_head' whole": {"modules_to_save": ["lm_head"]}, "has rank 600": {"r": 600},
    }  # fmt: skip
    for number, (message, options) in enumerate(cases.items()):
        source = adapter(base, tmp_path / str(number), **options)
        with pytest.raises(InputError, match=f"{message}.*--merged"):
            export(source, engine, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    ia3 = adapter(base, tmp_path / "ia3", peft.IA3Config, feedforward_modules=["down_proj"])
    with pytest.raises(InputError, match="holds a IA3 adapter.*--merged"):
        export(ia3, engine, tmp_path / "out")
    said = export(tmp_path / "0", engine, tmp_path / "out", merged=True)
    assert "merged into its base" in said[0]
    if engine == "vllm":
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
        assert_near(logits(merged), tuned(base, tmp_path / "0"))
    with pytest.raises(InputError, match="holds no model that writes texts"):
        export(tmp_path, engine, tmp_path / "again")


def test_the_smoke_test_passes_and_fails_by_the_first_word(base, tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    export(adapter(base, tmp_path / "films"), "vllm", tmp_path / "out")
    text = (tmp_path / "out" / "smoke.py").read_text()
    wanted = next(line for line in text.splitlines() if line.startswith("WANTED"))
    said = [ast.literal_eval(wanted.removeprefix("WANTED = ")), "something else"]
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"text": said[len(asked) - 1]}]}).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        command = [
            sys.executable,
            str(tmp_path / "out" / "smoke.py"),
            f"http://127.0.0.1:{server.server_port}",
        ]
        first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
        server.shutdown()
    assert first.returncode == 0 and second.returncode != 0 and "something else" in second.stderr
    assert asked[0]["model"] == "films" and asked[0]["prompt"] == PROMPT
