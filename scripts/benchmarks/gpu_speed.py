"""One measurement on a GPU, ours beside the libraries' defaults in one process; its last lines are RESULT and
JSON.

python scripts/benchmarks/gpu_speed.py sft 1b lora [--sides ours,trl] [--rows 16] [--seconds 6]
python scripts/benchmarks/gpu_speed.py encoder | ceiling

Models are made from configurations, with weights drawn at random: speed doesn't depend on them. Texts are
random tokens, their lengths drawn evenly from 128 to 1,024, the loss on their second halves. What differs
between the sides is what their defaults do: ours packs rows, computes the head where a label is and keeps
activations; TRL pads, and recomputes activations.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

SHAPES = {
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536,
             "vocab_size": 49152, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192,
           "vocab_size": 128256, "tie_word_embeddings": True},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
           "intermediate_size": 11008,
           "vocab_size": 32000},
    # for a trial on a CPU, whose figures say nothing
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 128,
             "vocab_size": 2048, "tie_word_embeddings": True},
}  # fmt: skip
# what a side says beside this project's defaults
SIDES: dict[str, dict[str, Any]] = {"compile": {"torch_compile": True}, "liger": {"use_liger_kernel": True}}
ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}


def ceiling() -> float:
    """Floating-point operations a second of a large bf16 matrix product on this card, on random numbers."""
    import torch

    from finetune.device import device

    # a CPU would take minutes for the large one
    width = 8192 if device().type == "cuda" else 256
    one, other = (torch.randn(width, width, device=device(), dtype=torch.bfloat16) for _ in range(2))
    # the first products choose kernels
    for _ in range(3):
        one @ other
    start = now()
    for _ in range(20):
        one @ other
    # a product and a sum for each of n³ pairs
    return 20 * 2 * width**3 / (now() - start)


def now() -> float:
    """Seconds, once the card has done all that it was told."""
    import torch

    # work on a GPU goes on after the call has returned; a CPU has nothing to wait for
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak() -> None:
    """Have `peak_gib` count from here."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """GiB that tensors took on the card at most; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def by_sides(sides: str, measure: Callable[[str], dict[str, Any]], **told: Any) -> None:
    """A RESULT for each side: what was told, and its figures or why it has none."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    for side in sides.split(","):
        forget_peak()
        try:
            found = measure(side)
        except Exception as error:  # one side's failure leaves the other's figures
            found = {"failed": repr(error)[:300]}
            traceback.print_exc()
        print("RESULT " + json.dumps({"side": side, **told, **found, "card": card}), flush=True)
        # before the next side's model is made
        gc.collect()
        torch.cuda.empty_cache()


def operations(shape: dict[str, Any], method: str, lengths: list[int], labelled: int) -> float:
    """What a training step needs at least: products with weights, and causal attention; a frozen weight has
    no gradient of its own.

    Two operations a weight and token forward, two for the gradient of its input, two for its own (Kaplan et
    al. 2020, table 1).
    """
    width, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    # keys and values of heads that are shared are narrower
    grouped = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    # query and output, key and value, and the three of a gated feed-forward
    weights = layers * (2 * width * width + 2 * width * grouped + 3 * width * inner)
    # a frozen weight needs no gradient of its own
    a_weight = 4 if method == "lora" else 6
    attention = layers * width * sum(length**2 for length in lengths) * 6  # half of 4·n²·width, three times
    # the head is counted at labelled places alone
    return a_weight * (weights * sum(lengths) + shape["vocab_size"] * width * labelled) + attention


def clock(seconds: float, warm: int) -> Any:
    """A callback that notes the time of each step's end on the device, and stops the training after
    `seconds`.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warm:
                # steps before this one compile, allocate and choose kernels
                self.marks.append(now())
                forget_peak()
            elif state.global_step > warm and (
                time.perf_counter() - self.marks[0] > seconds or state.global_step == state.max_steps
            ):
                self.marks.append(now())
                self.steps = state.global_step - warm
                control.should_training_stop = True

    return Clock()


def timed(trainer: Any, lengths_of: Any, seconds: float, warm: int = 4) -> dict[str, Any]:
    """Trains for a while; seconds, steps, and the lengths of the rows that were seen in them."""
    seen: list[list[int]] = []
    collate, watch = trainer.data_collator, clock(seconds, warm)

    # lengths are noted where rows become a batch, the same way on all sides
    def noting(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        seen.append(lengths_of(features))
        return batch

    trainer.data_collator = noting
    trainer.add_callback(watch)
    trainer.train()
    taken = watch.marks[1] - watch.marks[0]
    # rows of the measured steps alone
    lengths = [length for step in seen[warm : warm + watch.steps] for length in step]
    return {
        "seconds": taken,
        "steps": watch.steps,
        "lengths": lengths,
        "gib": peak_gib(),
    }


def texts(count: int, vocabulary: int) -> list[list[int]]:
    """Random tokens of 128 to 1,024."""
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.integers(5, vocabulary, int(length)).tolist() for length in rng.integers(128, 1025, count)]


def made(shape: dict[str, Any], dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from finetune.device import device

    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    # drawn on the card: seven billion weights take minutes on a CPU
    with device():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def sft_ours(
    shape: dict[str, Any], method: str, options: argparse.Namespace, **further: Any
) -> dict[str, Any]:
    import torch
    from datasets import Dataset

    from finetune.methods import attach
    from finetune.models.attention.packed import pack
    from finetune.tasks.sft import packed
    from finetune.tasks.table import TASKS
    from finetune.training.sft import SftArguments, make_instruct_trainer

    network = made(shape, torch.bfloat16 if method == "lora" else torch.float32)
    # without packing another thing would be measured
    assert pack(network)
    network = attach(network, method, None, "CAUSAL_LM")
    # no row twice within the forty steps
    rows = texts(options.rows * 40, shape["vocab_size"])
    features = Dataset.from_dict({
        # the second half of each row, one place to the left, as TRL's completion mask has it
        "input_ids": rows, "labels": [[-100] * (len(r) // 2 - 1) + r[len(r) // 2 :] + [-100] for r in rows],
        "length": [len(r) for r in rows], "row": list(range(len(rows))),
    })  # fmt: skip
    training = SftArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.rows, max_steps=40,
        learning_rate=1e-5, save_strategy="no",
        eval_strategy="no", logging_steps=100, disable_tqdm=True, warmup_steps=0, **further,
    )  # fmt: skip
    trainer = make_instruct_trainer(
        packed(TASKS["sft"]), network, words(shape["vocab_size"]), training, {"train": features}
    )
    return timed(trainer, lambda found: [one["length"] for one in found], options.seconds)


def sft_trl(shape: dict[str, Any], method: str, options: argparse.Namespace) -> dict[str, Any]:
    """TRL's defaults, on the same rows: gradient checkpointing, padding, bf16 autocast over float32."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = texts(options.rows * 40, shape["vocab_size"])
    features = Dataset.from_dict({
        "input_ids": rows,
        "completion_mask": [[0] * (len(r) // 2) + [1] * (len(r) - len(r) // 2) for r in rows],
    })  # fmt: skip
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.rows, max_steps=40,
        learning_rate=1e-5, save_strategy="no",
        logging_steps=100, disable_tqdm=True, max_length=None, report_to="none",
        # without a card it refuses bf16, its default, unless it is told
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=32, lora_dropout=0.0
    )
    trainer = SFTTrainer(made(shape, torch.float32), config, train_dataset=features,
                         processing_class=words(shape["vocab_size"]),
                         peft_config=lora if method == "lora" else None)  # fmt: skip
    return timed(trainer, lambda found: [len(one["input_ids"]) for one in found], options.seconds)


def sft(size: str, method: str, options: argparse.Namespace) -> None:
    # the card's ceiling was measured once, for all sides
    shape, peak = SHAPES[size], ceiling()

    def measure(side: str) -> dict[str, Any]:
        found = (
            sft_trl(shape, method, options)
            if side == "trl"
            else sft_ours(shape, method, options, **SIDES.get(side, {}))
        )
        need = operations(shape, method, found["lengths"], sum(n - n // 2 for n in found["lengths"]))
        return {
            "tokens_per_s": round(sum(found["lengths"]) / found["seconds"]),
            "mfu": round(need / found["seconds"] / peak, 3), "ceiling_tflops": round(peak / 1e12),
            "gib": round(found["gib"], 1), "steps": found["steps"],
        }  # fmt: skip

    by_sides(options.sides, measure, size=size, method=method, rows=options.rows)


def reviews() -> tuple[list[list[int]], list[int]]:
    """Random tokens in the lengths that reviews have, most short and some cut at 512, and two labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 0.6, 4000), 20, 512).astype(int).tolist()
    return [rng.integers(5, 30000, length).tolist() for length in lengths], rng.integers(0, 2, 4000).tolist()


def encoder_ours(network: Any, common: dict[str, Any], seconds: float, **further: Any) -> dict[str, Any]:
    from datasets import Dataset

    from finetune.tasks.table import TASKS
    from finetune.training.options import TrainingArguments
    from finetune.training.trainer import make_trainer

    rows, labels = reviews()
    features = Dataset.from_dict({
        "input_ids": rows, "labels": labels, "length": list(map(len, rows)), "row": list(range(len(rows))),
    })  # fmt: skip
    trainer = make_trainer(
        TASKS["classification"], network, words(ENCODER["vocab_size"]),
        TrainingArguments(eval_strategy="no", **common, **further), {"train": features}, labels=["a", "b"],
    )  # fmt: skip
    return timed(trainer, lambda found: [one["length"] for one in found], seconds, 10)


def encoder_theirs(network: Any, common: dict[str, Any], seconds: float) -> dict[str, Any]:
    """transformers' example: all padded to 512, its defaults."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    rows, labels = reviews()
    features = Dataset.from_dict({
        "input_ids": [row + [0] * (512 - len(row)) for row in rows],
        # the padding is real work on this side, and isn't counted as tokens
        "attention_mask": [[1] * len(row) + [0] * (512 - len(row)) for row in rows], "labels": labels,
    })  # fmt: skip
    training = TrainingArguments(report_to="none", **common)
    trainer = Trainer(network, training, train_dataset=features, data_collator=default_data_collator)
    return timed(trainer, lambda found: [sum(one["attention_mask"]) for one in found], seconds, 10)


def encoder(options: argparse.Namespace) -> None:
    """Classification with a model of MiniLM's shape and reviews' lengths."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    peak, weights = ceiling(), ENCODER["num_hidden_layers"] * (4 * 384**2 + 2 * 384 * 1536)

    def measure(side: str) -> dict[str, Any]:
        # the same first weights on each side
        torch.manual_seed(0)
        network = BertForSequenceClassification(BertConfig(**ENCODER, num_labels=2))
        common = {
            "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": options.rows,
            "num_train_epochs": 20, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000,
            "learning_rate": 1e-5,
        }  # fmt: skip
        found = (
            encoder_theirs(network, common, options.seconds)
            if side == "transformers"
            else encoder_ours(network, common, options.seconds, **SIDES.get(side, {}))
        )
        # each weight six operations a token; attention sees both ways, so that nothing is halved
        need = 6 * weights * sum(found["lengths"]) + 6 * 12 * 384 * sum(n**2 for n in found["lengths"])
        return {
            "tokens_per_s": round(sum(found["lengths"]) / found["seconds"]),
            "mfu": round(need / found["seconds"] / peak, 3), "gib": round(found["gib"], 2),
            "steps": found["steps"],
        }  # fmt: skip

    by_sides(options.sides, measure, task="classification", rows=options.rows)


def words(count: int) -> Any:
    """A tokenizer of so many words, with blanks between them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = Tokenizer(models.WordLevel({f"t{i}": i for i in range(count)}, unk_token="t3"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=table, pad_token="t0", eos_token="t2",
                                   model_input_names=["input_ids", "attention_mask"])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sft", "encoder", "ceiling"))
    parser.add_argument("size", nargs="?", default="135m", choices=tuple(SHAPES))
    parser.add_argument("method", nargs="?", default="lora", choices=("lora", "full"))
    parser.add_argument("--sides", default="ours,trl")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    if options.what == "sft":
        sft(options.size, options.method, options)
    elif options.what == "encoder":
        encoder(options)
    else:
        print("RESULT " + json.dumps({"tflops": round(ceiling() / 1e12)}))


if __name__ == "__main__":
    main()
