"""Many adapters in one batch, prompts that are scored, and a base in 4 bits on one card, beside what
transformers and PEFT do by themselves; its last lines are RESULT and JSON, as gpu_speed.py's are.

python scripts/benchmarks/gpu_adapters.py serving 1b [--sides ours,peft,peft_single,ours_single]
python scripts/benchmarks/gpu_adapters.py prompts 1b [--sides ours,plain] [--batch_tokens 2048 16384]
python scripts/benchmarks/gpu_adapters.py memory 1b [--sides lora,qlora]

serving: 64 greedy requests of 16 to 128 random tokens over 8 LoRA adapters (rank 16, every linear layer), 64
new tokens each. ours: all in one batch of the pool; peft: a batch an adapter by set_adapter and generate;
_single: one request after another, of which few are measured. as_ours: the share of requests whose first
token is the pool's; in bf16 two tokens of a model that was never trained are easily of one weight.

prompts: questions of 32 to 96 random tokens behind the same four examples, some 400 tokens, with four choices
of 1 to 8 tokens each. ours: prompts/scoring, which computes the examples once and a question once for its
choices; plain: each (prompt, choice) a row of its own, longest first, padded, with log_softmax over all that
the model gives, as lm-eval's loop has it. Both take as many tokens a pass, padding included; 2048 is this
project's default. largest_difference: of two scores of a choice, in nats.

memory: a base as `finetune sft --dtype bfloat16` loads it, or by qlora in 4 bits, and the same with LoRA
after a step on 4 texts of 512 tokens. base_gib: its weights; kept_gib: what stays after the step (LoRA and
its AdamW too); gib: the most within it.

Models as in gpu_speed.py, their weights drawn at random, in bf16 on a card.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_speed import SHAPES, by_sides, forget_peak, made, now, peak_gib, words

REQUESTS, ADAPTERS, NEW = 64, 8, 64
SINGLES = 3  # requests of a round that are answered one after another
Asked = list[tuple[list[int], str]]  # tokens of a prompt, and the adapter that shall answer it
Write = Callable[[Asked, int], list[list[int]]]  # requests and new tokens → the tokens written


def dtype() -> Any:
    """What a server holds the base in."""
    import torch

    from finetune.device import device

    return torch.float32 if device().type == "cpu" else torch.bfloat16


def requests(vocabulary: int, seed: int) -> Asked:
    """Others for each seed: a beginning that was kept would be found again."""
    import numpy as np

    rng = np.random.default_rng(seed)
    sizes = rng.integers(16, 129, REQUESTS)
    return [
        (rng.integers(5, vocabulary, int(size)).tolist(), f"a{index % ADAPTERS}")
        for index, size in enumerate(sizes)
    ]


def adapter_folders(shape: dict[str, Any], root: Path) -> list[Path]:
    """LoRA adapters as PEFT saves them, their weights large enough that each answers in its own way."""
    import peft
    import torch

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32)
    tuned = peft.get_peft_model(made(shape, dtype()), config)
    for index in range(ADAPTERS):
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                # zero when new: the base's answer would come from each of them
                if "lora_B" in name:
                    parameter.normal_(std=0.03)
        tuned.save_pretrained(root / f"a{index}", save_embedding_layers=False)
    return [root / f"a{index}" for index in range(ADAPTERS)]


def by_pool(shape: dict[str, Any], folders: list[Path], processor: Any) -> Write:
    from finetune.pool import AdapterPool
    from finetune.pool.sampling import Sampling

    # all of them stay in memory: reading them again is another measurement
    pool = AdapterPool(made(shape, dtype()), processor, memory_limit_mb=2**16)
    for folder in folders:
        pool.add(folder.name, folder)

    def write(asked: Asked, new: int) -> list[list[int]]:
        rows = pool.rows([ids for ids, _ in asked], [name for _, name in asked], Sampling(new))
        writing = pool.writing()
        writing.join(rows)
        while writing.rows:
            writing.step()
        return [row.ids for row in rows]

    return write


def by_peft(shape: dict[str, Any], folders: list[Path], processor: Any) -> Write:
    import peft
    import torch

    from finetune.alignment.rollout import pad_left

    network = made(shape, dtype())
    tuned = peft.PeftModel.from_pretrained(network, str(folders[0]), adapter_name=folders[0].name).eval()
    for folder in folders[1:]:
        tuned.load_adapter(str(folder), adapter_name=folder.name)

    def write(asked: Asked, new: int) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for name in dict.fromkeys(name for _, name in asked):
            tuned.set_adapter(name)
            own = [index for index, one in enumerate(asked) if one[1] == name]
            ids, mask = (t.to(network.device) for t in pad_left([asked[i][0] for i in own], 0))
            with torch.inference_mode():
                out = tuned.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
                )
            # a row that ended is filled up with the padding's id, which is no word of a prompt
            rows = [[i for i in row if i != 0] for row in out[:, ids.shape[1] :].tolist()]
            # texts are what a user asks for, of the pool too
            processor.batch_decode(rows)
            found |= dict(zip(own, rows, strict=True))
        return [found[index] for index in range(len(asked))]

    return write


def serving(size: str, options: argparse.Namespace) -> None:
    shape = SHAPES[size]
    processor, first = words(shape["vocab_size"]), requests(shape["vocab_size"], 0)
    folders = adapter_folders(shape, Path(tempfile.mkdtemp()))
    answers: dict[str, list[list[int]]] = {}

    def measure(side: str) -> dict[str, Any]:
        write = (by_pool if side.startswith("ours") else by_peft)(shape, folders, processor)
        single = side.endswith("_single")

        def round_of(asked: Asked, new: int) -> list[list[int]]:
            return [write([one], new)[0] for one in asked[:SINGLES]] if single else write(asked, new)

        # a few tokens: kernels are chosen, memory is taken
        answers[side] = round_of(first, 4)
        forget_peak()
        count, rounds, start = 0, 0, now()
        while now() - start < options.seconds:
            rounds += 1
            found = round_of(requests(shape["vocab_size"], rounds), NEW)
            count += sum(map(len, found))
        seconds = now() - start
        # sides that few requests are put to have fewer; without the pool there is none to compare
        both = zip(answers.get("ours", []), answers[side], strict=False)
        same = [ours[:1] == theirs[:1] for ours, theirs in both]
        return {
            "tokens_per_s": round(count / seconds), "round_s": round(seconds / rounds, 2),
            "requests": SINGLES if single else REQUESTS, "adapters": ADAPTERS, "gib": round(peak_gib(), 1),
            "as_ours": round(sum(same) / len(same), 2) if same else None, "steps": rounds,
        }  # fmt: skip

    by_sides(options.sides or "ours,peft,peft_single,ours_single", measure, what="serving", size=size)


QUESTIONS, CHOICES, SHOTS = 128, 4, 4
Questions = list[tuple[str, tuple[str, ...]]]  # a prompt, and what may follow it
Score = Callable[[Questions], list[float]]  # questions → a log-probability of each choice, in their order


def questions(vocabulary: int, seed: int) -> Questions:
    """The examples are those of every seed, the questions its own."""
    import numpy as np

    def text(rng: Any, least: int, most: int) -> str:
        ids = rng.integers(5, vocabulary, int(rng.integers(least, most + 1)))
        return " ".join(f"t{i}" for i in ids)

    shared, rng = np.random.default_rng(0), np.random.default_rng(seed)
    shots = " ".join(text(shared, 64, 128) for _ in range(SHOTS))
    return [
        (f"{shots} {text(rng, 32, 96)}", tuple(f" {text(rng, 1, 8)}" for _ in range(CHOICES)))
        for _ in range(QUESTIONS)
    ]


def by_scorer(shape: dict[str, Any], processor: Any, batch_tokens: int) -> Score:
    from prompts.scoring.score import Request, Scorer

    scorer = Scorer(made(shape, dtype()).requires_grad_(False), processor, batch_tokens)

    def score(asked: Questions) -> list[float]:
        found = scorer([Request(prompt, choices) for prompt, choices in asked])
        return [float(tokens.sum()) for row in found for tokens in row]

    return score


def by_rows(shape: dict[str, Any], processor: Any, batch_tokens: int) -> Score:
    import torch

    network = made(shape, dtype()).eval()

    def score(asked: Questions) -> list[float]:
        starts = [len(ids) for ids in processor([prompt for prompt, _ in asked])["input_ids"]]
        rows = processor([prompt + choice for prompt, choices in asked for choice in choices])["input_ids"]
        found = [0.0] * len(rows)
        # longest first, as lm-eval has it: what doesn't fit shows at once
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while order:
            width = len(rows[order[0]])
            part, order = order[: max(1, batch_tokens // width)], order[max(1, batch_tokens // width) :]
            # padding on the right is seen by no token before it, so that no mask is needed
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part], device=network.device)
            with torch.inference_mode():
                chances = network(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            for line, i in enumerate(part):
                start = starts[i // CHOICES]
                # each place predicts the next token
                own = chances[line, start - 1 : len(rows[i]) - 1]
                found[i] = float(own.gather(1, ids[line, start : len(rows[i]), None]).float().sum())
        return found

    return score


def prompts(size: str, options: argparse.Namespace) -> None:
    shape, said = SHAPES[size], dict[str, list[float]]()
    processor = words(shape["vocab_size"])

    def measure(side: str, batch_tokens: int) -> dict[str, Any]:
        score = (by_scorer if side == "ours" else by_rows)(shape, processor, batch_tokens)
        # once for nothing: kernels are chosen, memory is taken
        said[side] = score(questions(shape["vocab_size"], 0))
        forget_peak()
        rounds, start = 0, now()
        while now() - start < options.seconds:
            rounds += 1
            score(questions(shape["vocab_size"], rounds))
        seconds = now() - start
        apart = [abs(a - b) for a, b in zip(said["ours"], said[side], strict=True)] if "ours" in said else []
        return {
            "questions_per_s": round(rounds * QUESTIONS / seconds, 1),
            "texts_per_s": round(rounds * QUESTIONS * CHOICES / seconds, 1),
            "largest_difference": round(max(apart), 4) if apart else None,
            "gib": round(peak_gib(), 1), "steps": rounds,
        }  # fmt: skip

    for batch_tokens in options.batch_tokens:
        by_sides(
            options.sides or "ours,plain", partial(measure, batch_tokens=batch_tokens),
            what="prompts", size=size, batch_tokens=batch_tokens,
        )  # fmt: skip


def memory(size: str, options: argparse.Namespace) -> None:
    import torch
    from transformers.utils import is_bitsandbytes_available

    shape, folder = SHAPES[size], tempfile.mkdtemp()
    # 4 bits are made of a folder's weights alone
    made(shape, torch.bfloat16).save_pretrained(folder)
    words(shape["vocab_size"]).save_pretrained(folder)

    def measure(side: str) -> dict[str, Any]:
        if side == "qlora" and not is_bitsandbytes_available():
            return {"skipped": "no bitsandbytes here"}
        return step_memory(folder, side)

    by_sides(options.sides or "lora,qlora", measure, what="memory", size=size)


def step_memory(folder: str, method: str) -> dict[str, Any]:
    """Bytes of a base and of one step of LoRA on it."""
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.device import device
    from finetune.methods import attach
    from finetune.models.load import ModelArguments, load_model

    def held() -> float:
        return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0

    before, asked = held(), ModelArguments(folder, dtype="bfloat16")
    _, network = load_model(asked, AutoModelForCausalLM, quantized=method == "qlora")
    # 4 bits are made where they stay
    network = network if method == "qlora" else network.to(device())
    base = held() - before
    network = attach(network, method, None, "CAUSAL_LM").train()
    # two numbers in a byte are one element of theirs
    weights = {
        p.data_ptr(): p.numel() * p.element_size() for p in network.parameters() if not p.requires_grad
    }
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids = torch.randint(5, network.config.vocab_size, (4, 512), device=device())
    forget_peak()
    with torch.autocast(device().type, torch.bfloat16):
        loss = network(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return {
        "base_gib": round(sum(weights.values()) / 2**30, 4),
        # with the scales of 4 bits, which are no parameters
        "base_on_card_gib": round(base, 3),
        "lora_mib": round(sum(p.numel() * p.element_size() for p in trained) / 2**20, 2),
        "kept_gib": round(held() - before, 3), "gib": round(peak_gib(), 2), "loss": round(loss.item(), 3),
    }  # fmt: skip


MEASURES = {"serving": serving, "prompts": prompts, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(MEASURES))
    parser.add_argument("size", nargs="?", default="1b", choices=tuple(SHAPES))
    parser.add_argument("--sides", help="comma-separated; all of the measurement's without it")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument(
        "--batch_tokens", type=int, nargs="+", default=[2048, 16384], help="prompts: tokens of a pass."
    )
    options = parser.parse_args()
    MEASURES[options.what](options.size, options)


if __name__ == "__main__":
    main()
