"""Options that a verb hasn't → what was probably meant, and advice by the options that it has. Knows names
alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from typing import Any

from finetune.cli.places import did_you_mean

# A verb that asks finished runs calls its model an artefact; one that sets no batch of rows counts tokens.
MODEL = ("model_name_or_path", "models", "base", "artefact")
BATCH = (
    "per_device_train_batch_size", "per_device_batch_size", "batch_size", "per_device_eval_batch_size",
    "generation_batch_size", "tune_batch_size", "batch_tokens",
)  # fmt: skip
RATE = ("learning_rate", "tune_learning_rate")
# Names from other tools and from haste → the options that they mean; the first that the verb has is offered.
MEANT = {
    "dataset": ("dataset_name",), "data": ("dataset_name",), "train_file": ("dataset_name",),
    "file": ("dataset_name",),
    "model": MODEL, "model_name": MODEL, "base_model": MODEL, "batch_size": BATCH, "bs": BATCH,
    "train_batch_size":
    ("per_device_train_batch_size",), "eval_batch_size": ("per_device_eval_batch_size",),
    "epochs": ("num_train_epochs", "tune_epochs"),
    "num_epochs": ("num_train_epochs", "tune_epochs"), "lr": RATE, "rate": RATE,
    "steps": ("max_steps", "steps"),
    "num_steps": ("max_steps", "steps"), "output": ("output_dir",), "out": ("output_dir",),
    "save_dir": ("output_dir",),
    "max_seq_length": ("max_length",), "seq_length": ("max_length",), "max_seq_len": ("max_length",),
    "context_length":
    ("max_length",), "accumulation_steps": ("gradient_accumulation_steps",),
    "grad_accum": ("gradient_accumulation_steps",),
    "warmup": ("warmup_steps",), "warmup_ratio": ("warmup_steps",), "evaluation_strategy": ("eval_strategy",),
    "peft": ("method",), "adapter": ("method", "adapters", "artefact"), "r": ("method_kwargs",),
    "rank": ("method_kwargs",),
    "lora_r": ("method_kwargs",), "lora_alpha": ("method_kwargs",), "target_modules": ("method_kwargs",),
    "torch_dtype": ("dtype", "bf16"), "random_seed": ("seed", "seeds"), "recipe": ("config",),
    "prompt_column": ("text_column",), "split": ("eval_split",), "resume": ("resume_from",),
    "continue_from": ("resume_from",),
}  # fmt: skip


# What has no meaning for a verb that lacks it, said instead of "unknown".
NOT_HERE = {
    "resume_from": "this verb can't make a finished run longer; train, sft, pretrain, dpo, kto, reward, grpo "
    "and rloo can",
    "streaming": "this verb reads all its rows before the start; train, sft, pretrain, dpo, kto and reward "
    "stream",
    "shuffle_buffer": "it is for streams, and this verb reads all its rows before the start",
}


def complain(
    argument: str, known: set[str], settled: dict[str, Any], renamed: dict[str, str] | None = None
) -> str:
    """What is said of an option that a verb hasn't: its name here, a likely one, or why it means nothing."""
    if not argument.startswith("--") and argument not in known and " " in argument:
        return f"Unexpected value '{argument}'"
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if name in NOT_HERE:
        return f"--{name} has no meaning here: {NOT_HERE[name]}. Leave it out"
    if name in (renamed or {}):
        return f"--{name} is for texts; this verb's option is --{(renamed or {})[name]}"
    if name in settled:
        return (
            f"--{name} has no effect here: what it sets in other tools is settled by this verb. Leave it out"
        )
    meant = next((option for option in MEANT.get(name, ()) if option in known | {"config"}), None)
    starting = [option for option in sorted(known) if option.startswith(name)]
    hint = f" Did you mean --{meant}?" if meant else did_you_mean(name, known, "--")
    hint = hint or (f" Did you mean --{starting[0]}?" if starting else "")
    if meant == "method_kwargs":
        hint = (
            f" Did you mean --method_kwargs '{{\"{name.removeprefix('lora_').replace('rank', 'r')}\": ...}}'?"
        )
    return f"Unknown option '{argument}'.{hint} (--help lists the options; abbreviations are not taken)"


# Options under which verbs that read the same files, or load the same models, are told of them.
ALSO_CALLED = {
    "data_files": ("files",), "dataset_name": ("files",), "model_name_or_path": MODEL,
    "models": ("model_name_or_path",), "method": ("methods",), "text_column": ("columns",),
    "label_column": ("columns",),
}  # fmt: skip
# What names an option without advising it: a command to type, and what another verb was given.
QUOTED = r"`[^`]*`|finetune \w+ --[^.;,)]*|the --\w+ of|'--[^']*'"
NAMED = 3  # verbs


def in_own_words(said: str, known: Set[str], verb: str, owners: Callable[[str], Sequence[str]]) -> str:
    """An error's advice by the options of the verb in which it came up: what reads rows and models is shared
    by verbs, and names the options of most.

    Args:
        known: the verb's options.
        owners: option → verbs that have it.
    """
    plain = re.sub(QUOTED, "", said)
    strange = [name for name in dict.fromkeys(re.findall(r"--([a-z]\w+)", plain)) if name not in known]
    for name in strange:
        own = next((one for one in ALSO_CALLED.get(name, ()) if one in known), None)
        if own is not None:
            said = re.sub(rf"--{name}\b", f"--{own}", said)
        elif verbs := owners(name):
            # launchers' options, which no verb has, stay as they are
            more = " and others" if len(verbs) > NAMED else ""
            said += f" (--{name} is no option of {verb}, but of {', '.join(verbs[:NAMED])}{more})"
    return said
