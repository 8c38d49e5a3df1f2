"""Many adapters under load: the server's gathered batches beside one request at a time, PEFT's set_adapter,
`transformers serve`.

Same base, same random LoRA adapters, same greedy requests in every way; every answer is compared with the one
that the server gave to that request alone. `transformers serve` knows no adapters: it and the server are
asked the same chats of the base. Prints one JSON object.

  python scripts/benchmarks/serving.py --base smollm2 --requests 200 --adapters 8
  python scripts/benchmarks/serving.py --base smollm2 --requests 200 --adapters 64 --fewer 8 --chats 0
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

SERVE = Path(__file__).parent.parent / "serve.py"
# of unlike length, so that gathered batches have something to pad
PROMPTS = (
    "The film was", "In the middle of the night she heard", "The capital of France is",
    "A short recipe for rice and eggs:",
    "Dear neighbours, I am writing because", "Three reasons to learn to swim are", "The train left and",
    "Once upon a time",
)  # fmt: skip
Job = tuple[str, str]  # prompt, adapter


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base", default="smollm2", help="a causal base")
    parser.add_argument(
        "--adapters", type=int, default=8, help="number of random LoRA adapters (rank 16, every linear layer)"
    )
    parser.add_argument(
        "--fewer", type=int, default=0, help="ask as often over this many of them too; 0 leaves it out"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests at once")
    parser.add_argument(
        "--singles", type=int, default=16, help="requests of set_adapter, which answers one after another"
    )
    parser.add_argument(
        "--chats",
        type=int,
        default=16,
        help="chats of the base at once, for `transformers serve`; 0 leaves it out",
    )
    parser.add_argument("--new_tokens", type=int, default=16, help="tokens to write a request")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    from finetune.cli.parser import calm_libraries
    from finetune.training.allocator import keep_freed_memory

    # their lines would stand in front of the JSON
    calm_libraries()
    keep_freed_memory()
    import logging
    import tempfile

    logging.disable(logging.WARNING)
    said: dict[str, Any] = {"load_before": os.getloadavg()[0], "new_tokens": arguments.new_tokens}
    with tempfile.TemporaryDirectory() as root:
        folders = make_adapters(arguments, Path(root))
        # every prompt by every adapter: the distinct requests, of which no more than are asked
        every = product(PROMPTS, range(len(folders)))
        # numbered, so that fewer adapters are asked as many different texts: equal ones are read once
        pairs = [(f"{prompt} {index}", f"a{index}") for prompt, index in every][: arguments.requests]
        jobs = [pairs[i % len(pairs)] for i in range(arguments.requests)]
        # before the server starts, so that neither slows the other
        switched, said["set_adapter"] = by_set_adapter(arguments, folders, pairs[: arguments.singles])
        more = [f"a{index}={folder}" for index, folder in enumerate(folders)]
        # all of them stay in memory: reading them again is another measurement
        holds = ["--memory_limit_mb", 64 + sum(size_mb(folder) for folder in folders)]
        with serving([SERVE, "--base", arguments.base, *holds, "--adapters", *more]) as server:
            alone = by_server(said, server, jobs, pairs, arguments.new_tokens)
            if arguments.fewer:
                # the same prompts and as many requests: only the number of adapters differs
                fewer = [(prompt, f"a{int(adapter[1:]) % arguments.fewer}") for prompt, adapter in jobs]
                by_fewer(said, server, fewer, arguments.new_tokens)
            chats = by_chats(server, "base", arguments) if arguments.chats else None
    # speed of other answers is no comparison
    said["set_adapter"]["answers_unlike_the_server's"] = sum(
        alone[job] != text for job, text in switched.items()
    )
    said["all_at_once_over_set_adapter"] = ratio(said["all_at_once"], said["set_adapter"])
    if chats is not None:
        said["chats_of_the_base"] = {"server": chats} | by_transformers(arguments)
    print(json.dumps(said, indent=1))


def make_adapters(arguments: argparse.Namespace, root: Path) -> list[Path]:
    """Folders of adapters with random weights, large enough that each answers in its own way."""
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.methods import attach
    from finetune.models.load import ModelArguments, load_model

    _, network = load_model(ModelArguments(model_name_or_path=arguments.base), AutoModelForCausalLM)
    tuned = attach(network, "lora", {"r": 16}, "CAUSAL_LM")
    for seed in range(arguments.adapters):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                # zero when new: the base's answer would come from each of them
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
        tuned.save_pretrained(root / f"a{seed}", save_embedding_layers=False)
    return [root / f"a{seed}" for seed in range(arguments.adapters)]


def size_mb(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir()) // 2**20 + 1


def by_set_adapter(
    arguments: argparse.Namespace, folders: list[Path], jobs: list[Job]
) -> tuple[dict[Job, str], dict]:
    """PEFT as it stands: the adapters that are asked for loaded, one switched on for each request."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.models.load import ModelArguments, load_model

    processor, network = load_model(ModelArguments(model_name_or_path=arguments.base), AutoModelForCausalLM)
    # loading 64 takes PEFT minutes
    asked = {adapter for _, adapter in jobs}
    folders = [folder for folder in folders if folder.name in asked]
    tuned = peft.PeftModel.from_pretrained(network, str(folders[0]), adapter_name=folders[0].name).eval()
    for folder in folders[1:]:
        tuned.load_adapter(str(folder), adapter_name=folder.name)
    options = {
        "max_new_tokens": arguments.new_tokens,
        "do_sample": False,
        "pad_token_id": processor.pad_token_id,
    }

    def ask(job: Job) -> str:
        tuned.set_adapter(job[1])
        inputs = processor(job[0], return_tensors="pt")
        with torch.inference_mode():
            out = tuned.generate(**inputs, **options)
        return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    # a switched adapter is the whole model's: one request at a time
    answers, found = timed(ask, jobs, at_once=1)
    return dict(zip(jobs, answers, strict=True)), found


@dataclass
class Server:
    address: str
    process: subprocess.Popen

    def memory_mb(self, what: str = "VmRSS") -> int:
        """Memory of the process now (VmRSS) or at most so far (VmHWM)."""
        # the server's own memory, without this process's
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(what))

    def cpu_seconds(self) -> float:
        """What all its threads have used of the processor so far."""
        # counted from the bracket that closes the command's name, which may hold blanks
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)


@contextmanager
def serving(command: list[Any], python: bool = True) -> Iterator[Server]:
    """A server in a process of its own, from the moment that it answers."""
    # a port that is free now; the server takes it a moment later
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = [*([sys.executable] if python else []), *map(str, command), "--port", str(port)]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        for _ in range(600):
            # ended: waiting would take the two minutes
            if process.poll() is not None:
                raise RuntimeError(f"{whole[0]} ended with status {process.returncode} before it answered")
            try:
                urllib.request.urlopen(f"{server.address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        # politely first: the server answers what it has begun
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def by_server(
    said: dict[str, Any], server: Server, jobs: list[Job], pairs: list[Job], most: int
) -> dict[Job, str]:
    """Each distinct request alone, then all requests at once; gives back what was answered alone."""
    ask = partial(generate, server, most)
    # a warm-up: the first request loads an adapter
    ask(pairs[0])
    answers, said["one_at_a_time"] = timed(ask, pairs, at_once=1)
    # memory before the flood, to see what the flood adds
    alone, before = dict(zip(pairs, answers, strict=True)), server.memory_mb()
    together, said["all_at_once"] = flood(server, ask, jobs)
    said["all_at_once"] |= {
        "adapters": len({adapter for _, adapter in jobs}),
        "distinct_answers": len(set(alone.values())),
        # a batch may change no answer; this counts those that it changed
        "answers_unlike_alone": sum(alone[job] != text for job, text in zip(jobs, together, strict=True)),
        "server_memory_mb_before": before,
        "server_memory_mb_peak": server.memory_mb("VmHWM"),
    }
    # its p50 and p95 are times to the first token, all requests at once
    said["first_token"] = timed(partial(begun, server, most), jobs, at_once=len(jobs))[1]
    said["all_at_once_over_one_at_a_time"] = ratio(said["all_at_once"], said["one_at_a_time"])
    return alone


def by_fewer(said: dict[str, Any], server: Server, jobs: list[Job], most: int) -> None:
    """As many requests over fewer adapters: what more of them cost."""
    fewer = said["all_at_once_over_fewer"] = flood(server, partial(generate, server, most), jobs)[1]
    said["more_adapters_cost"] = ratio(fewer, said["all_at_once"])
    # where others use the machine, its own seconds say more than the clock
    more = said["all_at_once"]["server_cpu_seconds"] / fewer["server_cpu_seconds"]
    said["more_adapters_cost_in_cpu_seconds"] = round(more, 2)


def flood(server: Server, ask: Callable[[Job], str], jobs: list[Job]) -> tuple[list[str], dict[str, Any]]:
    """All requests at once, and what of the processor the server took for them."""
    before = server.cpu_seconds()
    answers, found = timed(ask, jobs, at_once=len(jobs))
    return answers, found | {"server_cpu_seconds": round(server.cpu_seconds() - before, 1)}


def generate(server: Server, most: int, job: Job) -> str:
    # greedy by default: every way must give the same words
    body = {"texts": [job[0]], "adapter": job[1], "max_new_tokens": most}
    return server.post("/v1/generate", body)["texts"][0]


def begun(server: Server, most: int, job: Job) -> str:
    """The first line of a streamed answer; the rest is given up."""
    body = {"texts": [job[0]], "adapter": job[1], "max_new_tokens": most, "stream": True}
    # leaving closes the connection, by which the server drops the row at its next step
    request = urllib.request.Request(
        f"{server.address}/v1/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.readline().decode()


def by_chats(server: Server, model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Chats of the base, all at once, by OpenAI's route."""

    def ask(number: int) -> str:
        body = {
            "model": model, "temperature": 0, "max_tokens": arguments.new_tokens,
            "messages": [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]} ({number})"}],
        }  # fmt: skip
        return server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]

    ask(0)
    return timed(ask, range(arguments.chats), at_once=arguments.chats)[1]


def by_transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    """transformers' own server, as it comes and with its continuous batching, if it starts here."""
    from finetune.models.load import resolve

    model, found = resolve(arguments.base)[0], {}
    # asked for last and allowed to fail: not every version starts on a CPU
    ways = {"transformers serve": [], "transformers serve --continuous-batching": ["--continuous-batching"]}
    for name, further in ways.items():
        command = [
            Path(sys.executable).with_name("transformers"),
            "serve",
            model,
            "--device",
            "cpu",
            "--dtype",
            "float32",
            *further,
        ]
        try:
            with serving(command, python=False) as server:
                found[name] = by_chats(server, model, arguments) | {
                    "memory_mb_peak": server.memory_mb("VmHWM")
                }
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            # the server's own words say why it refused
            body = (
                error.read().decode(errors="replace")[:300]
                if isinstance(error, urllib.error.HTTPError)
                else ""
            )
            found[name] = f"did not answer: {error} {body}".strip()
    return found


def timed(ask: Callable[[Any], str], jobs: Any, at_once: int) -> tuple[list[str], dict[str, Any]]:
    """Answers in order, how fast they came, and how long one took (half of them, and 95 in 100, less); an
    error of one is an error of all."""
    started, took = time.perf_counter(), list[float]()

    # from when its own request leaves, not from when the flood begins
    def clocked(job: Any) -> str:
        begun = time.perf_counter()
        answer = ask(job)
        took.append(time.perf_counter() - begun)
        return answer

    # as many threads as requests at once: each waits for its own answer
    with ThreadPoolExecutor(at_once) as many:
        answers = list(many.map(clocked, jobs))
    seconds = time.perf_counter() - started
    return answers, {
        "requests": len(jobs),
        "seconds": round(seconds, 2),
        "per_second": round(len(jobs) / seconds, 3),
        "p50_seconds": round(sorted(took)[len(took) // 2], 3),
        "p95_seconds": round(sorted(took)[min(len(took) - 1, len(took) * 95 // 100)], 3),
    }


def ratio(one: dict[str, Any], other: dict[str, Any]) -> float:
    return round(one["per_second"] / other["per_second"], 2)


if __name__ == "__main__":
    main()
