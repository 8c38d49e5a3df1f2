"""What a ladder is asked to do, as its options say it, and the ways that it knows. Knows no rows and no
models."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.errors import InputError


@dataclass(frozen=True)
class Way:
    """One way of classifying.

    Attributes:
        title: what the page calls it.
        kind: who does it: fitted (scikit-learn), tuned (weights are trained), asked (a prompt).
        labels: whether more labels can help it; else it is tried once.
    """

    title: str
    kind: str
    labels: bool = True


WAYS: dict[str, Way] = {
    "majority": Way("commonest class", "fitted", labels=False),
    "bag_of_words": Way("bag of words", "fitted"),
    "zero_shot": Way("prompt, no example", "asked", labels=False),
    # a prompt with a fixed few examples has no use for further labels
    "few_shot": Way("prompt, fixed examples", "asked", labels=False),
    "calibrated": Way("prompt, examples, calibrated", "asked", labels=False),
    "nearest": Way("prompt, nearest examples", "asked"),
    "lstm": Way("LSTM", "tuned"),
    "linear_probe": Way("linear probe", "tuned"),
    "lora": Way("LoRA", "tuned"),
    "bottleneck": Way("bottleneck adapter", "tuned"),
    "full": Way("full fine-tuning", "tuned"),
}


@dataclass
class LadderArguments:
    """Which ways are tried at which numbers of labels, and for how long."""

    budget: str = field(default="20min", metadata={"help": "Time in all, as 20min, 1h30m or 300s."})
    label_counts: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of labels (default: 16, 64, 256, ... and all, up to 4096)."},
    )
    ways: list[str] = field(
        default_factory=lambda: list(WAYS),
        metadata={"help": "Ways to try (default: all, from majority to full)."},
    )
    label_seeds: int = field(
        default=3, metadata={"help": "Draws of the labelled rows while they are few (up to 64; 2 up to 256)."}
    )
    prompt_model: str = field(default="smollm2", metadata={"help": "Model that prompts are asked of."})
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "Prompt of the library, as topic/article/plain (default: the text, and `Category:` with "
            "the classes' names)."
        },
    )
    shots: int = field(default=4, metadata={"help": "Examples in a prompt."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a text; bags of words read all of it."})
    more_labels: int = field(default=500, metadata={"help": "Further labels whose worth is estimated."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of runs and page (default: runs/ladder_NAME)."}
    )

    def __post_init__(self) -> None:
        strange = [name for name in self.ways if name not in WAYS]
        if strange or not self.ways:
            raise InputError(f"Got --ways {' '.join(strange) or '(none)'}; wanted some of: {', '.join(WAYS)}")
        for name in ("label_seeds", "shots", "max_length", "more_labels"):
            if vars(self)[name] < 1:
                raise InputError(f"Got --{name} {vars(self)[name]}; wanted 1 or more")
        # of one label no class can be told from another
        if self.label_counts is not None and (not self.label_counts or min(self.label_counts) < 2):
            raise InputError(f"Got --label_counts {self.label_counts}; wanted numbers of 2 or more")
