"""A part of two_processes.py: tuned models sharded by FSDP2 over gloo, beside the same
models whole.

Gradients, saved weights and written texts must be the whole model's, for adapters and for all weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import PartialState
from bounds import difference
from conftest import make_model, make_tokenizer
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from finetune.artefacts.hashes import hash_weights
from finetune.methods import attach
from finetune.models import generate
from finetune.models.heads import core
from finetune.models.sharded import is_sharded, make_whole

SOURCES = [[8, 9, 10], [11, 12], [13, 14, 15, 16]]  # three: one process has a batch more than the other


def tuned(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = attach(make_model("llama", AutoModelForCausalLM), method, None, "CAUSAL_LM")
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def sharded(network: torch.nn.Module) -> torch.nn.Module:
    for layer in core(network).model.layers:
        fully_shard(layer)
    fully_shard(network)
    register_fsdp_forward_method(network, "generate")
    return network


def gradients(network: torch.nn.Module, process: int, processes: int) -> dict[str, torch.Tensor]:
    """Of the mean over processes of the loss of each process's row."""
    rows = torch.tensor([[8, 9, 10, 11], [12, 13, 14, 15]])
    mine = rows if processes == 1 else rows[process : process + 1]
    network(input_ids=mine, labels=mine).loss.backward()
    found = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            found[name] = (
                parameter.grad.full_tensor()
                if isinstance(parameter.grad, DTensor)
                else parameter.grad.clone()
            )
    return found


def main(folder: Path) -> None:
    """How far apart each is, as a share of the largest entry, into apart.json."""
    state = PartialState(cpu=True)
    processor, apart = make_tokenizer("llama"), {}
    for method in ("lora", "full", "bottleneck"):
        plain, shards = tuned(method), sharded(tuned(method))
        assert is_sharded(shards) and not is_sharded(plain)
        wanted, found = gradients(plain, 0, 1), gradients(shards, state.process_index, 2)
        apart[f"gradients {method}"] = difference(found, wanted)
        config = generate.generation_settings(plain, processor, 4)
        texts = generate.texts(shards, SOURCES, processor, config, batch_size=1)
        own = generate.generation_settings(plain, processor, 4)
        alone = [generate._write(plain, [source], processor, own)[0] for source in SOURCES]
        assert [text for text, _ in texts] == [text for text, _ in alone]
        make_whole(shards)
        if state.is_main_process:
            assert hash_weights(shards) == hash_weights(plain)
            shards.save_pretrained(folder / method)
            apart[f"weights {method}"] = difference(shards.state_dict(), plain.state_dict())
    if state.is_main_process:
        (folder / "apart.json").write_text(json.dumps(apart))
    state.wait_for_everyone()
