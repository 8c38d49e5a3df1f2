"""Fine-tuning on transformers, peft and trl: tasks × methods, exact losses, artefacts an app can load.

The verbs of the command are functions here, imported when they are first asked for:

    from finetune import train
    outcome = train(task="classification", method="lora", dataset_name="reviews", output_dir="runs/x")
    outcome.folder, outcome.figures["accuracy"]
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from finetune.cli.places import verbs

    if name in verbs():
        from finetune.cli.functions import verb_function

        return verb_function(name)
    raise AttributeError(f"module 'finetune' has no attribute '{name}'")


def __dir__() -> list[str]:
    from finetune.cli.places import verbs

    return sorted([*globals(), *verbs()])
