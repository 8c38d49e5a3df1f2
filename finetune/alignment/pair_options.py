"""Options of the losses on preferences that are no DPO: KTO, ORPO, CPO and SimPO, each with all of TRL's own.
Knows options alone.

Ethayarajh et al. 2024, KTO; Hong et al. 2024, ORPO; Xu et al. 2024, CPO; Meng et al. 2024, SimPO; Gupta et
al. 2025, AlphaPO
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trl
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig

from finetune.alignment.table import ALIGNMENTS
from finetune.alignment.trl_options import PairOptions
from finetune.errors import InputError

SIMPO = {"loss_type": "simpo", "cpo_alpha": 0.0}  # without CPO's likelihood of the chosen answer
CPO = {"loss_type": "sigmoid", "cpo_alpha": 1.0}


def check_name(option: str, told: str, wanted: tuple[str, ...]) -> None:
    """Refuse a value that an algorithm hasn't."""
    # A name that another verb runs is told from one that nobody knows.
    if told not in wanted:
        row = ALIGNMENTS.get(told)
        hint = f". {told} is run by scripts/{row.verb}.py" if option == "algorithm" and row else ""
        raise InputError(f"--{option} is '{told}'; wanted one of: {', '.join(wanted)}{hint}")


@dataclass
class KTOTrainingArguments(PairOptions, trl.KTOConfig):
    """TRL's options of Kahneman–Tversky optimisation; rows are prompt, completion and label, or pairs."""

    task: str = field(default="dpo")
    algorithm: str = field(default="kto", metadata={"help": "Always kto here."})
    # its estimate of the KL divergence pairs each answer with its neighbour's
    train_sampling_strategy: str = field(default="sequential", init=False)

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("kto",))
        super().__post_init__()


@dataclass
class ORPOTrainingArguments(PairOptions, ORPOConfig):
    """TRL's options of odds-ratio preference optimisation, which has no reference."""

    task: str = field(default="dpo")
    algorithm: str = field(default="orpo", metadata={"help": "Always orpo here."})
    loss_type: str = field(default="orpo", metadata={"help": "The old way to say --algorithm orpo."})
    generate_during_eval: bool = field(default=False, init=False)
    max_completion_length: int | None = field(default=None, init=False)  # of encoder-decoders
    is_encoder_decoder: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_name("algorithm", self.algorithm, ("orpo",))
        check_name("loss_type", self.loss_type, ("orpo",))
        super().__post_init__()


@dataclass
class CPOTrainingArguments(PairOptions, CPOConfig):
    """TRL's options of contrastive preference optimisation and of SimPO, which have no reference."""

    task: str = field(default="dpo")
    algorithm: str = field(
        default="cpo",
        metadata={"help": "cpo, or simpo (its loss without CPO's likelihood of the chosen answer)."},
    )
    loss_type: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "TRL's name of the loss: sigmoid, hinge, ipo, simpo, alphapo (default: the algorithm's)."
        },
    )
    cpo_alpha: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Weight of the chosen answer's likelihood (default: 1; simpo: 0)."}
    )
    generate_during_eval: bool = field(default=False, init=False)
    max_completion_length: int | None = field(default=None, init=False)  # of encoder-decoders
    is_encoder_decoder: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # The loss may be said by either name; the algorithm then fixes what goes with it.
        if self.loss_type in ("simpo", "alphapo") and self.algorithm == "cpo":
            self.algorithm = "simpo"
        check_name("algorithm", self.algorithm, ("cpo", "simpo"))
        for name, value in (SIMPO if self.algorithm == "simpo" else CPO).items():
            # None tells "not said"; a value that the user gave is kept.
            if vars(self)[name] is None:
                vars(self)[name] = value
        # Last: TRL's own check wants the options filled in.
        super().__post_init__()
