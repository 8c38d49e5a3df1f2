"""A file answers rows in its own runtime and process: `python -m finetune.formats.runtimes SPEC`.

Knows runtimes, each imported where it is used, so that the peak memory is that of one runtime and one model.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
Inputs = dict[
    str, Array
]  # of one row by the model's names: input_ids [time], pixel_values [3, 224, 224], ...
Answer = Callable[[Inputs], Array]  # → logits [classes] or [time, classes]
WARM = 3  # rows answered before any is timed: allocations, kernels chosen for their sizes
_IGNORED = -100  # as finetune.loss says, which would bring torch


def open_torch(file: Path, spec: dict[str, Any]) -> Answer:
    """A folder of transformers', in the type of its weights."""
    import transformers

    from finetune.models import forecasters, own_families  # noqa: F401  (families that are not transformers')

    # transformers makes its names when they are asked for; it has no class for classes of series
    holder = forecasters if hasattr(forecasters, spec["model"]) else transformers
    transformers.utils.logging.set_verbosity_error()
    return _of_network(getattr(holder, spec["model"]).from_pretrained(file, dtype="auto").eval())


def open_int4(file: Path, spec: dict[str, Any]) -> Answer:
    """Weights of 4 bits, unpacked for this processor's kernel."""
    from finetune.formats.int4 import load_int4

    return _of_network(load_int4(file, spec["model"]))


def _of_network(network: Any) -> Answer:
    import torch

    def answer(inputs: Inputs) -> Array:
        given = {name: torch.from_numpy(one)[None] for name, one in _whole(inputs).items()}
        # what is no id goes into the type of the weights
        given = {
            name: one.to(network.dtype) if one.is_floating_point() else one for name, one in given.items()
        }
        with torch.inference_mode():
            out = network(**given)
        # by which name a model of series answers
        return out["logits" if "logits" in out else "prediction_logits"][0].float().numpy()

    return answer


def _whole(inputs: Inputs) -> Inputs:
    """With the mask that models of texts want: one row at a time has no padding."""
    ids = inputs.get("input_ids")
    return inputs if ids is None else inputs | {"attention_mask": np.ones_like(ids)}


def open_onnx(file: Path, spec: dict[str, Any]) -> Answer:
    """An ONNX graph in onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    # all runtimes get as many threads as torch has
    settings.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    # graphs of models without token types have no such input
    wanted = [entry.name for entry in session.get_inputs()]

    def answer(inputs: Inputs) -> Array:
        there = _whole(inputs)
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

    def answer(inputs: Inputs) -> Array:
        ids = inputs["input_ids"]
        # else a row would go on from the one before
        model.reset()
        model.eval(ids.tolist())
        # a copy: the next row overwrites the buffer
        return np.array(model.scores[: len(ids)])

    return answer


def open_executorch(file: Path, spec: dict[str, Any]) -> Answer:
    """A program in ExecuTorch's runtime."""
    import torch

    # its import warns that it may change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method("forward")

    def answer(inputs: Inputs) -> Array:
        names = ("input_ids", "token_type_ids")
        given = [torch.from_numpy(inputs[name])[None] for name in names if name in inputs]
        # the runtime's own memory, which the next row overwrites
        return method.execute(given)[0][0].numpy().copy()

    return answer


RUNTIMES: dict[str, Callable[[Path, dict[str, Any]], Answer]] = {
    "torch": open_torch, "torchao": open_int4, "onnxruntime": open_onnx, "llama.cpp": open_llama_cpp,
    "executorch": open_executorch,
}  # fmt: skip


def read_rows(file: Path) -> Iterator[tuple[Inputs, Array]]:
    """Inputs and labels of each row; the labels are [time] or [1]."""
    with np.load(file, allow_pickle=False) as archive:
        held = dict(archive)
    starts = {name.removesuffix(" start"): held.pop(name) for name in list(held) if name.endswith(" start")}
    for row in range(len(starts["labels"]) - 1):
        part = {name: whole[starts[name][row] : starts[name][row + 1]] for name, whole in held.items()}
        labels = part.pop("labels")
        yield {name.removeprefix("of "): one for name, one in part.items()}, labels


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
    for inputs, _ in rows[:WARM]:
        answer(inputs)
    said, nats, seconds, busy = [], [], [], []
    for inputs, labels in rows:
        # the clock's time, and that of all this process's threads
        start, before = time.perf_counter(), time.process_time()
        logits = answer(inputs)
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
