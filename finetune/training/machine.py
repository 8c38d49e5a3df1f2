"""What the machine can do: its precision, this run's processes. Knows no model and no rows."""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState

from finetune.cli.sharing import SHARED_BY, SHARINGS, wanted
from finetune.device import device
from finetune.errors import InputError
from finetune.training.calibration import bf16_gain

logger = logging.getLogger(__name__)

# Products must gain so much in bf16: what stands between them gains little, and all of it is rounded.
WORTH = 1.5


def has_fast_bf16() -> bool:
    """Whether training in bf16 beats float32 here: accelerators that have it in hardware, and CPUs whose
    products gain enough by it (see `bf16_gain`).
    """
    kind = device().type
    if kind == "cuda":
        # cards before Ampere emulate bf16, slower than float32
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    if kind == "mps":  # autocast there saves memory and no time
        return False
    # one held to AVX2 stands for a processor that has no more, whatever oneDNN's kernels could use
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    return bf16_gain() >= WORTH


def keep_to_cpu(options: Any) -> None:
    """Settle `use_cpu` of transformers' options before its own look: true without an accelerator, and then
    for every tensor.
    """
    if options.use_cpu:
        # accelerate, which starts later, reads the environment and not these options
        os.environ["ACCELERATE_USE_CPU"] = "true"
    options.use_cpu = device().type == "cpu"
    if options.use_cpu and world_size() > 1:
        # transformers hands its time on to accelerators alone; without it a peer that hangs is waited for
        # half an hour, whatever was asked for
        PartialState(cpu=True, timeout=timedelta(seconds=options.ddp_timeout))


def processes(verb: str) -> int:
    """Number of processes that this run really has, and a way of sharing that the verb was made for.

    Raises:
        InputError: a launcher was asked for several processes and started one, several GPUs stand behind one
            process, or the verb can't be shared in the way that the launcher was asked for.
    """
    size, way = world_size(), _way()
    if way is None and size == 1:
        return size
    way = way or "ddp"
    if way not in SHARED_BY[verb]:
        raise InputError(
            f"'{verb}' can't be shared by {SHARINGS.get(way, way)}; wanted {wanted(verb)} (docs/machines.md)"
        )
    if way == "fsdp2" and os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "").lower() == "true":
        raise InputError(
            "fsdp_cpu_ram_efficient_loading gives a base's weights to one process alone, and each compares "
            "its own with the run's; set it to false, as scripts/accelerate/fsdp2.yaml has it"
        )
    if way != "ddp" and not has_gpus():
        raise InputError(
            f"{SHARINGS[way]} need GPUs: on CPUs accelerate would train copies of the model (DDP) without a "
            "word. "
            "Wanted: scripts/accelerate/two_cpus.yaml, without --fsdp and --deepspeed"
        )
    return size


def has_gpus() -> bool:
    """Whether the processes of this run have accelerators, which accelerate shards for alone."""
    return device().type != "cpu"


def _way() -> str | None:
    """What the launcher's environment or the command line asks for; None for nothing in particular."""
    # the launcher speaks to its processes by environment alone
    told = {
        name: value.lower() in ("1", "true", "yes")
        for name, value in os.environ.items()
        if name.startswith("ACCELERATE_USE_")
    }
    # `--fsdp full_shard` and `--fsdp=full_shard` are the same option, which transformers takes by itself
    words = {word.partition("=")[0] for word in sys.argv[1:]}
    if told.get("ACCELERATE_USE_MEGATRON_LM") or told.get("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return "Megatron or a parallelism of accelerate's"
    if told.get("ACCELERATE_USE_DEEPSPEED") or "--deepspeed" in words:
        # ZeRO-3 shards weights and goes by another name, so that no verb's table holds it
        return "DeepSpeed's ZeRO-3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero"
    if told.get("ACCELERATE_USE_FSDP") or "--fsdp" in words:
        # what each takes where nobody says it: accelerate the first version, transformers the second
        version = os.environ.get("FSDP_VERSION", "2" if "--fsdp" in words else "1")
        return "fsdp2" if version == "2" else "FSDP's first version"
    return None


def in_shards() -> bool:
    """Whether the launcher was asked to share a model's weights out (FSDP2)."""
    return _way() == "fsdp2"


def world_size() -> int:
    """Number of processes that this run really has, checked against what the launcher was asked for.

    Raises:
        InputError: a launcher was asked for several processes and started one, or several GPUs stand behind
            one process.
    """
    # torchrun and accelerate set it for each process that they start
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "WORLD_SIZE" not in os.environ and "MASTER_ADDR" in os.environ:
        # accelerate's simple launcher sets the address when it was asked for several processes, and then
        # starts one
        raise InputError(
            "Several processes were asked for and one was started: `accelerate launch --cpu --num_processes "
            "N` does that. "
            "Wanted: accelerate launch --config_file scripts/accelerate/two_cpus.yaml ..., or torchrun "
            "--nproc_per_node N ..."
        )
    # `LOCAL_RANK` is the sign of a launcher, which gives each process a card of its own
    if size == 1 and torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process, which would train by "
            "DataParallel, slow and with other "
            "losses. Wanted: accelerate launch --config_file scripts/accelerate/gpus.yaml ..., or "
            "CUDA_VISIBLE_DEVICES=0"
        )
    return size


def micro_batches(rows: int, share: int) -> int:
    """Micro-batches of an optimizer step of so many rows over all processes, `share` rows each.

    A launcher that goes on with fewer processes starts the same command: only the rows of a step can stay.

    Raises:
        InputError: they don't come out even.
    """
    whole, rest = divmod(rows, share * world_size())
    if rest or whole < 1:
        raise InputError(
            f"Got --global_batch_size {rows}; wanted a multiple of {share * world_size()}: "
            f"--per_device_train_batch_size {share} on {world_size()} processes"
        )
    return whole


def join_processes(verb: str) -> PartialState:
    """This run's processes, each knowing of the others; on CPUs with gloo between them.

    Left alone, accelerate joins processes by GPUs only: on CPUs each would believe to be the only one, and do
    all of the work.

    Raises:
        InputError: as `processes` does.
    """
    size, on_cpu = processes(verb), device().type == "cpu"
    # made once in a process and shared by all of accelerate: the first to make it settles the backend
    state = PartialState(cpu=on_cpu)
    if state.num_processes != size:
        raise InputError(
            f"{size} processes were started, {state.num_processes} know of each other. Wanted: "
            "scripts/accelerate/two_cpus.yaml"
        )
    if size > 1 and state.is_main_process and on_cpu:
        # sums on a CPU are cut by threads, so that their number decides the last bits
        threads = torch.get_num_threads()
        logger.warning(
            "%d processes, %d threads each; one process with OMP_NUM_THREADS=%d gives the same bytes",
            size,
            threads,
            threads,
        )
    return state


def describe(processes: int, bf16: bool) -> str:
    """One line for the log: processes, device, precision, threads."""
    place = device()
    if place.type == "cuda":
        named = torch.cuda.get_device_name()
    elif place.type == "cpu":
        named = f"CPU, {torch.get_num_threads()} threads"
    else:
        named = place.type.upper()
    many = "1 process" if processes == 1 else f"{processes} processes"
    return f"{many} on {named}; {'bf16 autocast, float32 masters' if bf16 else 'float32'}"


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MB: the GPU's where there is one, else the
    process's.
    """
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes on Linux, bytes on macOS
    return held / (2**20 if platform.system() == "Darwin" else 2**10)
