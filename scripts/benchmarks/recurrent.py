"""Recurrent layers forward and backward: this project's, side by side, beside torch's own on packed rows.

python scripts/benchmarks/recurrent.py

Milliseconds of processor time (best of four), 16 rows of 77 to 128 tokens, two directions of 256 over
vectors of 128.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from finetune.models.recurrent_config import RecurrentConfig
from finetune.models.recurrent_layers import RecurrentStack, draw_kernel
from finetune.reports.tables import markdown

TIME, ROWS, SIZE, WIDTH = 128, 16, 128, 256
CELLS: dict[str, dict[str, Any]] = {
    "RNN": {"cell": "rnn"}, "GRU": {"cell": "gru"}, "LSTM": {}, "LSTM, coupled gates": {"coupled_gates":
    True}, "LSTM, peepholes": {"peephole": True},
}  # fmt: skip


def milliseconds(step: Callable[[], torch.Tensor], bf16: bool) -> int:
    """Of a step's loss and its gradients, the best of four."""
    best = float("inf")
    # processor time, not the wall's: others on the machine don't count
    for _ in range(4):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            # the best also leaves out the first, which allocates
            loss = step()
        loss.backward()
        best = min(best, time.process_time() - start)
    return round(1000 * best)


def main() -> None:
    # as many as each step of a small batch makes use of
    torch.set_num_threads(1)
    # rows of unlike length, or packing would have nothing to save
    lengths = torch.linspace(0.6 * TIME, TIME, ROWS).long()
    mask = (torch.arange(TIME) < lengths[:, None]).long()
    rows = torch.randn(ROWS, TIME, SIZE)
    whole = nn.LSTM(SIZE, WIDTH, batch_first=True, bidirectional=True)

    def packed() -> torch.Tensor:
        line = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(whole(line)[0], batch_first=True)[0].float().pow(2).mean()

    steps = {"torch's LSTM, packed": packed}
    for name, entries in CELLS.items():
        config = RecurrentConfig(embedding_size=SIZE, hidden_size=WIDTH, bidirectional=True, **entries)
        stack = RecurrentStack(SIZE, config)
        for layer in stack.layers:
            for kernel in layer.kernels:
                # built layers have undrawn weights, which may be any number
                draw_kernel(kernel, config)
        # bound now: a closure would measure the last cell five times
        steps[name] = lambda stack=stack: stack(rows, mask)[0].float().pow(2).mean()
    table = [
        {"layer": name, "float32": milliseconds(step, False), "bf16": milliseconds(step, True)}
        for name, step in steps.items()
    ]
    print(markdown(table))


if __name__ == "__main__":
    main()
