"""A file answers rows in its own runtime and process: `python -m finetune.formats.runtimes SPEC`.

Knows runtimes, each imported where it is used, so that the peak memory is that of one runtime and one model.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Answer = Callable[[Array, Array], Array]  # token ids and types [time] → logits [classes] or [time, classes]
WARM = 3  # rows answered before any is timed: allocations, kernels chosen for their sizes
_IGNORED = -100  # as finetune.loss says, which would bring torch


def open_torch(file: Path, spec: dict[str, Any]) -> Answer:
    """A folder of transformers', in the type of its weights."""
    import transformers

    kind = getattr(transformers, spec["model"])  # it makes its names when they are asked for
    transformers.utils.logging.set_verbosity_error()
    return _of_network(kind.from_pretrained(file, dtype="auto").eval(), spec)


def open_int4(file: Path, spec: dict[str, Any]) -> Answer:
    """Weights of 4 bits, unpacked for this processor's kernel."""
    from finetune.formats.int4 import load_int4

    return _of_network(load_int4(file, spec["model"]), spec)


def _of_network(network: Any, spec: dict[str, Any]) -> Answer:
    import torch

    def answer(ids: Array, types: Array) -> Array:
        given = {"input_ids": torch.from_numpy(ids)[None]}
        # one row at a time: no padding
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if spec["types"]:
            given["token_type_ids"] = torch.from_numpy(types)[None]
        with torch.inference_mode():
            return network(**given).logits[0].float().numpy()

    return answer


def open_onnx(file: Path, spec: dict[str, Any]) -> Answer:
    """An ONNX graph in onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    # all runtimes get as many threads as torch has
    settings.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    # graphs of models without token types have no such input
    wanted = [entry.name for entry in session.get_inputs()]

    def answer(ids: Array, types: Array) -> Array:
        there = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        return session.run(None, {name: there[name][None] for name in wanted})[0][0]

    return answer


def open_llama_cpp(file: Path, spec: dict[str, Any]) -> Answer:
    """A GGUF file in llama.cpp."""
    import llama_cpp

    longest = max(spec["longest"], 8)
    model = llama_cpp.Llama(
        str(file), n_ctx=longest, n_batch=longest, n_threads=spec["threads"],
        n_threads_batch=spec["threads"], logits_all=True, verbose=False,
    )  # fmt: skip

    def answer(ids: Array, types: Array) -> Array:
        # else a row would go on from the one before
        model.reset()
        model.eval(ids.tolist())
        # a copy: the next row overwrites the buffer
        return np.array(model.scores[: len(ids)])

    return answer


def open_executorch(file: Path, spec: dict[str, Any]) -> Answer:
    """A program in ExecuTorch's runtime."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method("forward")

    def answer(ids: Array, types: Array) -> Array:
        given = [torch.from_numpy(one)[None] for one in ((ids, types) if spec["types"] else (ids,))]
        # the runtime's own memory, which the next row overwrites
        return method.execute(given)[0][0].numpy().copy()

    return answer


RUNTIMES: dict[str, Callable[[Path, dict[str, Any]], Answer]] = {
    "torch": open_torch, "torchao": open_int4, "onnxruntime": open_onnx, "llama.cpp": open_llama_cpp,
    "executorch": open_executorch,
}  # fmt: skip


def read_rows(file: Path) -> Iterator[tuple[Array, Array, Array]]:
    """Token ids, token types and labels of each row; [time], [time], [time] or [1]."""
    held = np.load(file, allow_pickle=False)
    starts, ends = held["starts"], held["label_starts"]
    for row in range(len(starts) - 1):
        part = slice(starts[row], starts[row + 1])
        yield held["ids"][part], held["types"][part], held["labels"][ends[row] : ends[row + 1]]


def marked(logits: Array, labels: Array) -> tuple[Array, float]:
    """The likeliest class at each labelled place, and the nats of the labels, summed."""
    # [classes] of a text, or [time, classes], of which the last places have labels
    table = logits[None] if logits.ndim == 1 else logits[-len(labels) :]
    table = table[labels != _IGNORED].astype(np.float64)
    wanted = labels[labels != _IGNORED]
    top = table.max(axis=-1)
    # log Σ exp, less the maximum first, so that nothing overflows
    sums = top + np.log(np.exp(table - top[:, None]).sum(axis=-1))
    return table.argmax(axis=-1), float((sums - table[np.arange(len(wanted)), wanted]).sum())


def peak_mb() -> float:
    """Most memory that this process has held, in MB; by /proc where there is one, because getrusage counts
    what the parent held when it started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(spec_file: str) -> None:
    """Answer the rows of a specification; its `answers` gets predictions, nats, milliseconds and memory."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    if spec["runtime"] in ("torch", "torchao", "executorch"):
        import torch

        torch.set_num_threads(spec["threads"])
    answer = RUNTIMES[spec["runtime"]](Path(spec["file"]), spec)
    rows = list(read_rows(Path(spec["rows"])))
    for ids, types, _ in rows[:WARM]:
        answer(ids, types)
    said, nats, seconds, busy = [], [], [], []
    for ids, types, labels in rows:
        # the clock's time, and that of all this process's threads
        start, before = time.perf_counter(), time.process_time()
        logits = answer(ids, types)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - before)
        found, cost = marked(logits, labels)
        said.append(found)
        nats.append(cost)
    np.savez(
        spec["answers"], said=np.concatenate(said), nats=np.array(nats),
        milliseconds=1000 * np.array(seconds), processor=1000 * np.array(busy), memory=np.array(peak_mb()),
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
