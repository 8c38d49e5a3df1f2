"""Many adapters in one batch, prompts that are scored, and a base in 4 bits on one card, beside what
transformers and PEFT do by themselves; its last lines are RESULT and JSON, as gpu_speed.py's are.

python scripts/benchmarks/gpu_adapters.py serving 1b [--sides ours,peft,peft_single,ours_single]

serving: 64 greedy requests of 16 to 128 random tokens over 8 LoRA adapters (rank 16, every linear layer), 64
new tokens each. ours: all in one batch of the pool; peft: a batch an adapter by set_adapter and generate;
_single: one request after another, of which few are measured. as_ours: the share of requests whose first
token is the pool's; in bf16 two tokens of a model that was never trained are easily of one weight.

Models as in gpu_speed.py, their weights drawn at random, in bf16 on a card.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
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
            "as_ours": round(sum(same) / max(len(same), 1), 2), "steps": rounds,
        }  # fmt: skip

    by_sides(options.sides or "ours,peft,peft_single,ours_single", measure, what="serving", size=size)


MEASURES = {"serving": serving}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=tuple(MEASURES))
    parser.add_argument("size", nargs="?", default="1b", choices=tuple(SHAPES))
    parser.add_argument("--sides", help="comma-separated; all of the measurement's without it")
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    MEASURES[options.what](options.size, options)


if __name__ == "__main__":
    main()
