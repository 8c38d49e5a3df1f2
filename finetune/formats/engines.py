"""A trained run → a folder that vLLM or llama.cpp serves: weights, the command, a smoke test. Knows which
adapters they take; starts neither.

A LoRA adapter is written with every module at one rank and scaling 1, which changes nothing (zeros fill up
what is missing) and is read alike by every version of either engine: rank and alpha patterns, rsLoRA's root
and PEFT's other rules about scaling are settled here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from finetune.adapters.export import claimed, merge_into_base
from finetune.adapters.loading import base_of, load_base, mount, tokenizer_of
from finetune.adapters.weights import Adapter, Factors, is_exact_lora, read_adapter, write_adapter
from finetune.artefacts.bounds import read_json
from finetune.artefacts.files import write_atomically
from finetune.artefacts.passport import is_adapter
from finetune.errors import InputError
from finetune.formats.options import ExportArguments
from finetune.models.load import ModelArguments, load_model
from finetune.models.names import resolve

PROMPT, NEW = "The quick brown fox", 8
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank may be
WANTED = "Both engines take LoRA and rsLoRA, of any ranks, on linear layers inside the blocks"
SMOKE = '''"""Asks the server that run.sh started, and compares its words with those of where it was exported.

python smoke.py [URL]
"""

import json
import sys
import urllib.request

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:{port}"
ASKED = {asked}
WANTED = {wanted}

request = urllib.request.Request(
    URL + "/v1/completions", json.dumps(ASKED).encode(), {{"Content-Type": "application/json"}}
)
said = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["text"]
# The first word: an engine's rounding may turn a later one.
if said.split()[:1] != WANTED.split()[:1]:
    sys.exit(f"said {{said!r}}, wanted {{WANTED!r}}")
print(f"as it should be: {{said!r}}")
'''


@dataclass(frozen=True)
class Engine:
    """One program that serves.

    Attributes:
        port: its own default.
        whole, lora: write weights below a folder; give back the command that serves them under a name.
    """

    port: int
    whole: Callable[[Any, Any, Path, str], list[str]]
    lora: Callable[[Adapter, tuple[Any, Any], Path, str], list[str]]


def serve_elsewhere(export: ExportArguments) -> Iterator[str]:
    """Write an engine's folder; gives back lines that say what it holds.

    Raises:
        InputError: several formats at once, a run that writes no texts, an adapter that the engine doesn't
            take, a model that it can't read.
    """
    if len(export.to) > 1 or export.artefact is None:
        raise InputError("An engine's folder is written by itself; set one --to and one --artefact")
    engine, path, merged = export.to[0], Path(export.artefact), export.merged
    row, folder = ENGINES[engine], Path(export.output_dir or path / "exports" / engine)
    # A name for `model` in requests: an engine's command line splits at "=" and blanks.
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in path.resolve().name)
    adapter = _lora(engine, path) if not merged and is_adapter(path) else None
    processor, network = _tuned(path, export.allow_mismatch)
    wanted = _continued(processor, network)
    with claimed(folder):
        if adapter is None:
            whole = merge_into_base(network) if is_adapter(path) else network
            command = row.whole(processor, whole, folder, name)
        else:
            _check_tokens(engine, path)
            command = row.lora(adapter, load_base(path), folder, name)
        asked = {"model": name, "prompt": PROMPT, "max_tokens": NEW, "temperature": 0}
        line = " ".join(shlex.quote(part) for part in command)
        write_atomically(folder / "run.sh", f'#!/bin/sh\ncd "$(dirname "$0")"\nexec {line} "$@"\n')
        (folder / "run.sh").chmod(0o755)
        smoke = SMOKE.format(port=row.port, asked=json.dumps(asked), wanted=json.dumps(wanted))
        write_atomically(folder / "smoke.py", smoke)
    kind = "merged into its base" if adapter is None else f"LoRA of rank {_rank(adapter)} beside its base"
    yield f"{folder}: {path.name}, {kind}, for {engine}"
    yield f"start it: {folder}/run.sh, which runs {line}"
    yield f"try it: python {folder}/smoke.py, which wants {wanted!r} after {PROMPT!r}"


def _lora(engine: str, folder: Path) -> Adapter:
    """The adapter, where the engine takes it.

    Raises:
        InputError: it doesn't, and why.
    """
    try:
        adapter = read_adapter(folder, ("LORA",))
    except InputError as error:
        raise InputError(f"{error}. {WANTED}; --merged writes a whole model") from error
    where = sorted(name for name, factors in adapter.factors.items() if factors.embedding or _outside(name))
    why = (
        "is DoRA" if adapter.magnitudes
        else "has trained biases" if not is_exact_lora(adapter)
        else f"brings '{adapter.head_modules[0]}' whole" if adapter.heads
        else f"changes '{where[0]}'" if where
        else "changes a convolution" if any(f.down.dim() > 2 for f in adapter.factors.values())
        else f"has rank {_rank(adapter)}, beyond {RANKS[-1]}" if _rank(adapter) > RANKS[-1]
        else None
    )  # fmt: skip
    if why:
        raise InputError(f"{folder} {why}, which {engine} does not take. {WANTED}; --merged writes a model")
    return replace(adapter, factors=_one_rank(adapter), config=adapter.config | {"rank_pattern": {}})


def _outside(name: str) -> bool:
    # Heads and embeddings: which of the engines takes them depends on version and family.
    return not any(part.isdigit() for part in name.split("."))


def _rank(adapter: Adapter) -> int:
    return max((factors.rank for factors in adapter.factors.values()), default=0)


def _one_rank(adapter: Adapter) -> dict[str, Factors]:
    most, found = _rank(adapter), {}
    for name, factors in adapter.factors.items():
        lacking = most - factors.rank
        # Rows and columns of zeros: the product stays what it was.
        down = torch.cat([factors.down, factors.down.new_zeros(lacking, factors.down.shape[1])])
        up = torch.cat([factors.up, factors.up.new_zeros(factors.up.shape[0], lacking)], dim=1)
        found[name] = Factors(down, up)
    return found


def _check_tokens(engine: str, folder: Path) -> None:
    own, base = tokenizer_of(folder), base_of(folder)
    if own is None:
        return
    theirs, _ = load_model(ModelArguments(model_name_or_path=base), AutoModelForCausalLM)
    if own.get_vocab() != theirs.get_vocab():
        raise InputError(
            f"{folder} has other tokens than its base, which {engine} reads its prompts by; --merged "
            "writes a model with its own"
        )


def _tuned(folder: Path, allow_mismatch: bool) -> tuple[Any, Any]:
    """Tokenizer and model of a run, with its adapter on it."""
    if is_adapter(folder):
        processor, network = mount(folder, allow_mismatch=allow_mismatch)
        task = network.active_peft_config.task_type
        if task != "CAUSAL_LM":
            raise InputError(f"{folder} is for {task}; vLLM and llama.cpp are written for CAUSAL_LM alone")
        return processor, network
    settings = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    kinds = settings.get("architectures") or [] if isinstance(settings, dict) else []
    if not any(str(kind).endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise InputError(f"{folder} holds no model that writes texts, and no adapter; wanted a run of sft")
    return load_model(ModelArguments(model_name_or_path=str(folder)), AutoModelForCausalLM)


@torch.inference_mode()
def _continued(processor: Any, network: Any) -> str:
    """What the model writes after PROMPT, the likeliest token each time."""
    inputs = processor(PROMPT, return_tensors="pt", return_token_type_ids=False).to(network.device)
    ids = network.eval().generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _vllm_whole(processor: Any, network: Any, folder: Path, name: str) -> list[str]:
    network.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return ["vllm", "serve", "./model", "--served-model-name", name]


def _vllm_lora(adapter: Adapter, base: tuple[Any, Any], folder: Path, name: str) -> list[str]:
    write_adapter(adapter, folder / "adapter")
    processor, network = base
    processor.save_pretrained(folder / "adapter")
    named = base_of(adapter.folder)
    # A name of the hub is known to vLLM too; anything else would be a path of this machine.
    source = "./base" if Path(resolve(named)[0]).exists() else named
    if source == "./base":
        network.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
    rank = next(one for one in RANKS if one >= _rank(adapter))
    template = folder / "adapter" / "chat_template.jinja"
    # With LoRA, vLLM renders chats by the base's template: the adapter's own is named.
    chat = ["--chat-template", "./adapter/chat_template.jinja"] if template.is_file() else []
    serve = ["vllm", "serve", source, "--enable-lora", "--max-lora-rank", str(rank)]
    return [*serve, "--lora-modules", f"{name}=./adapter", *chat]


def _llama_whole(processor: Any, network: Any, folder: Path, name: str) -> list[str]:
    from finetune.adapters.gguf import FILE, export_gguf

    export_gguf(network, processor, folder, "q8_0")
    return ["llama-server", "-m", FILE, "--alias", name]


def _llama_lora(adapter: Adapter, base: tuple[Any, Any], folder: Path, name: str) -> list[str]:
    from finetune.adapters.gguf import LORA_FILE, export_lora

    processor, network = base
    command = _llama_whole(processor, network, folder, name)
    export_lora(adapter, network.config, folder)
    return [*command, "--lora", LORA_FILE]


ENGINES = {
    "vllm": Engine(8000, _vllm_whole, _vllm_lora),
    "llama_cpp": Engine(8080, _llama_whole, _llama_lora),
}
