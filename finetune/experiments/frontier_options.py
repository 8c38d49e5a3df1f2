"""How large the frontier's experiment is. Knows numbers; knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.errors import InputError


@dataclass(frozen=True)
class Size:
    """How much of everything. Rows and prompts in numbers, lengths in tokens.

    Attributes:
        measured: how often a run is measured on its way, its end included; each time gives a point.
        coefficients: of the KL penalty, for rewards in standard deviations of those of the start's own
            answers.
    """

    sft_rows: int
    prompts: int
    held_out: int
    new_tokens: int
    epochs: int
    ppo_steps: int
    rollout: int
    measured: int
    betas: tuple[float, ...]
    coefficients: tuple[float, ...]
    best_of: tuple[int, ...]


SIZES = {
    "smoke": Size(32, 16, 16, 12, 1, 2, 16, 2, (0.1,), (0.1,), (2,)),
    "cpu": Size(512, 512, 256, 24, 2, 30, 32, 3, (0.05, 0.15, 0.5), (0.03, 0.1, 0.3), (2, 4, 8)),
    "gpu": Size(
        20000,
        8000,
        512,
        48,
        3,
        200,
        256,
        5,
        (0.05, 0.1, 0.2, 0.5, 1.0),
        (0.01, 0.03, 0.1, 0.3, 1.0),
        (2, 4, 8, 16),
    ),
}
METHODS = ("best-of-n", "preferred-ft", "dpo", "ppo", "ppo-true")


@dataclass
class FrontierArguments:
    """Which experiment, how large."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the experiment; finished points in it stay."}
    )
    size: str = field(
        default="smoke",
        metadata={"help": "smoke (minutes on two cores), cpu (SmolLM2-135M on two cores, run by run), gpu."},
    )
    max_points: int | None = field(
        default=None, metadata={"help": "Make at most so many runs that are missing, then stop."}
    )
    only: list[str] | None = field(
        default=None, metadata={"help": "Only these methods: best-of-n preferred-ft dpo ppo ppo-true."}
    )
    prompt_tokens: int = field(
        default=8, metadata={"help": "The first so many tokens of a review are its prompt."}
    )
    learning_rate: float = field(
        default=3e-4, metadata={"help": "Peak learning rate of every method, on LoRA of rank 16."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        if self.size not in SIZES:
            raise InputError(f"--size is '{self.size}'; wanted one of: {', '.join(SIZES)}")
        # said before anything is loaded, which takes minutes
        unknown = sorted(set(self.only or ()) - set(METHODS))
        if unknown:
            raise InputError(f"--only names '{unknown[0]}'; wanted some of: {', '.join(METHODS)}")
        if self.prompt_tokens < 1:
            raise InputError(f"--prompt_tokens is {self.prompt_tokens}; wanted 1 or more")
