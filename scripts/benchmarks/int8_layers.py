"""What int8 would save a server: the frozen products of one pass through a Llama-shaped base, by rows a
batch.

In float32, in bf16, with weights in int8 (bf16 states, `torch._weight_int8pack_mm`, which torchao's int8 goes
by on a CPU), and with both in int8 (torch's dynamic quantisation). Weights of every layer stand apart, so
that they come from memory as a base's do. Prints a table, milliseconds a pass.

  python scripts/benchmarks/int8_layers.py --width 576 --inner 1536 --keys 192 --layers 30
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

ROWS = (1, 8, 32, 128)
Product = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    # SmolLM2-135M's
    parser.add_argument("--width", type=int, default=576, help="of the states")
    parser.add_argument("--inner", type=int, default=1536, help="of the feed-forward")
    parser.add_argument("--keys", type=int, default=192, help="of keys and of values")
    parser.add_argument("--layers", type=int, default=30, help="of the base")
    asked = parser.parse_args()
    wide, inner, keys = asked.width, asked.inner, asked.keys
    # queries, keys, values, output; gate, up, down
    shapes = [
        (wide, wide),
        (wide, keys),
        (wide, keys),
        (wide, wide),
        (wide, inner),
        (wide, inner),
        (inner, wide),
    ]
    print("| rows | " + " | ".join(KINDS) + " |\n|" + "---:|" * (len(KINDS) + 1))
    for rows in ROWS:
        times = [measured(make, rows, shapes * asked.layers) for make in KINDS.values()]
        print(f"| {rows} | " + " | ".join(f"{one:.1f}" for one in times) + " |", flush=True)


def float32(layer: nn.Linear, states: Tensor) -> Product:
    return lambda: layer(states)


def bf16(layer: nn.Linear, states: Tensor) -> Product:
    layer, states = layer.bfloat16(), states.bfloat16()
    return lambda: layer(states)


def int8_weights(layer: nn.Linear, states: Tensor) -> Product:
    # one scale for each output, as torchao has it
    scale = layer.weight.abs().amax(1) / 127
    weight = (layer.weight / scale[:, None]).round().to(torch.int8)
    scale, states = scale.bfloat16(), states.bfloat16()
    return lambda: torch._weight_int8pack_mm(states, weight, scale)


def int8_both(layer: nn.Linear, states: Tensor) -> Product:
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import default_dynamic_qconfig

    layer.qconfig = default_dynamic_qconfig  # type: ignore[assignment]
    quantised = Linear.from_float(layer)
    return lambda: quantised(states)


KINDS = {"float32": float32, "bf16": bf16, "int8 weights": int8_weights, "int8 both": int8_both}


@torch.no_grad()
def measured(make: Callable[[nn.Linear, Tensor], Product], rows: int, shapes: list[tuple[int, int]]) -> float:
    """Milliseconds of one pass, the best of thirty: what else runs makes it longer, never shorter."""
    products = [make(nn.Linear(wide, out, bias=False), torch.randn(rows, wide)) for wide, out in shapes]
    best = float("inf")
    for _ in range(30):
        begun = time.perf_counter()
        for product in products:
            product()
        best = min(best, time.perf_counter() - begun)
    return best * 1e3


if __name__ == "__main__":
    # torch says that its quantised tensors will go
    warnings.simplefilter("ignore", UserWarning)
    main()
