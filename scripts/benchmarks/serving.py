"""Many adapters under load: the server's gathered batches beside one request at a time and beside PEFT's set_adapter.

Same base, same random LoRA adapters, same greedy requests in every way; the answers are compared. Prints one JSON object.

  python scripts/benchmarks/serving.py --base smollm2 --requests 200 --adapters 8
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.options import launch


@dataclass
class BenchmarkArguments:
    """How much is asked."""

    base: str = field(default="smollm2", metadata={"help": "A causal base."})
    adapters: int = field(default=8, metadata={"help": "Number of random LoRA adapters (rank 16, every linear layer)."})
    requests: int = field(default=200, metadata={"help": "Requests at once."})
    singles: int = field(default=24, metadata={"help": "Requests of the ways that answer one after another."})
    new_tokens: int = field(default=16, metadata={"help": "Tokens to write a request."})


def main(arguments: BenchmarkArguments) -> None:
    from finetune.training.plan import keep_freed_memory

    keep_freed_memory()
    import json
    import logging
    import os
    import resource
    import tempfile
    from pathlib import Path

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        folders = make_adapters(arguments, Path(root))
        jobs = [(PROMPTS[i % len(PROMPTS)], i % len(folders)) for i in range(arguments.requests)]
        said = {"load_before": os.getloadavg()[0], "new_tokens": arguments.new_tokens, "adapters": len(folders)}
        answers, said["set_adapter"] = by_set_adapter(arguments, folders, jobs[: arguments.singles])
        more, rest = by_server(arguments, folders, jobs)
        said |= rest
        said["differing_answers"] = sum(a != b for a, b in zip(answers, more, strict=False))
        said["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        said["server_over_one_at_a_time"] = rest["server"]["requests_per_second"] / rest["one_at_a_time"]["requests_per_second"]
        said["server_over_set_adapter"] = rest["server"]["requests_per_second"] / said["set_adapter"]["requests_per_second"]
        print(json.dumps(said, indent=1))


PROMPTS = (
    "The film was", "In the middle of the night she heard", "The capital of France is", "A short recipe for rice and eggs:",
    "Dear neighbours, I am writing because", "Three reasons to learn to swim are", "The train left and", "Once upon a time",
)  # fmt: skip


def make_adapters(arguments, root):
    """Folders of adapters with random weights, small enough that texts stay texts."""
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
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.005)
        tuned.save_pretrained(root / f"a{seed}", save_embedding_layers=False)
    return [root / f"a{seed}" for seed in range(arguments.adapters)]


def by_set_adapter(arguments, folders, jobs):
    """PEFT as it stands: all adapters loaded, one switched on for each request."""
    import time

    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.models.load import ModelArguments, load_model

    processor, network = load_model(ModelArguments(model_name_or_path=arguments.base), AutoModelForCausalLM)
    tuned = peft.PeftModel.from_pretrained(network, folders[0], adapter_name="0").eval()
    for index, folder in enumerate(folders[1:], 1):
        tuned.load_adapter(folder, adapter_name=str(index))
    options = {"max_new_tokens": arguments.new_tokens, "do_sample": False, "pad_token_id": processor.pad_token_id}
    answers = []
    started = time.perf_counter()
    for prompt, adapter in jobs:
        tuned.set_adapter(str(adapter))
        inputs = processor(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = tuned.generate(**inputs, **options)
        answers.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers, figures(len(jobs), time.perf_counter() - started)


def by_server(arguments, folders, jobs):
    """The server over HTTP: one request at a time, then all at once."""
    import json
    import socket
    import threading
    import time
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor

    import uvicorn

    from finetune.adapters.pool import AdapterPool
    from finetune.serving.app import ServeArguments, make_app

    pool = AdapterPool(arguments.base)
    for index, folder in enumerate(folders):
        pool.add(f"a{index}", folder)
    server = uvicorn.Server(
        uvicorn.Config(make_app(pool, ServeArguments(base=arguments.base)), log_level="error", lifespan="off")
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/generate"

    def ask(job):
        body = {"texts": [job[0]], "adapter": f"a{job[1]}", "max_new_tokens": arguments.new_tokens}
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)["texts"][0]

    ask(jobs[0])
    started = time.perf_counter()
    alone = [ask(job) for job in jobs[: arguments.singles]]
    between = time.perf_counter()
    with ThreadPoolExecutor(len(jobs)) as many:
        together = list(many.map(ask, jobs))
    ended = time.perf_counter()
    server.should_exit = True
    thread.join(10)
    mixed_up = sum(a != b for a, b in zip(alone, together, strict=False))
    return together, {
        "one_at_a_time": figures(len(alone), between - started),
        "server": figures(len(jobs), ended - between) | {"differing_from_one_at_a_time": mixed_up},
    }


def figures(requests, seconds):
    return {"requests": requests, "seconds": round(seconds, 2), "requests_per_second": round(requests / seconds, 3)}


if __name__ == "__main__":
    launch(main)
