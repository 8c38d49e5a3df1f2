"""ALIGNMENTS: how a model is aligned. One row an algorithm: paper, data, what stands in memory, which verb
runs it.

`finetune align --algorithm NAME` is the verb with that algorithm. Knows names; imports nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """An algorithm.

    Attributes:
        data: what its rows hold.
        memory: what stands in memory beside the policy; with an adapter, a reference is the base with it off
            and costs nothing.
    """

    verb: str
    paper: str
    data: str
    memory: str


REFERENCE = "a reference (none with an adapter)"
ALIGNMENTS = {
    "ppo": Alignment(
        "ppo", "Schulman et al. 2017; Ziegler et al. 2019", "prompts, a reward", f"{REFERENCE}, a value head"
    ),
    "grpo": Alignment("grpo", "Shao et al. 2024", "prompts, a reward", f"{REFERENCE} where --beta is not 0"),
    "dr_grpo": Alignment(
        "grpo", "Liu et al. 2025, Understanding R1-zero-like training", "prompts, a reward", "as grpo"
    ),
    "dapo": Alignment("grpo", "Yu et al. 2025, DAPO", "prompts, a reward", "as grpo"),
    "bnpo": Alignment("grpo", "TRL's own: a mean over the batch's tokens", "prompts, a reward", "as grpo"),
    "gspo": Alignment(
        "grpo", "Zheng et al. 2025, Group sequence policy optimization", "prompts, a reward", "as grpo"
    ),
    "cispo": Alignment("grpo", "MiniMax 2025, MiniMax-M1", "prompts, a reward", "as grpo"),
    "sapo": Alignment(
        "grpo", "Soft adaptive policy optimization (arXiv 2511.20347)", "prompts, a reward", "as grpo"
    ),
    "luspo": Alignment(
        "grpo",
        "Length-unbiased sequence policy optimization (arXiv 2602.05261)",
        "prompts, a reward",
        "as grpo",
    ),
    "vespo": Alignment("grpo", "VESPO (arXiv 2602.10693)", "prompts, a reward", "as grpo"),
    "rloo": Alignment("grpo", "Ahmadian et al. 2024, Back to basics", "prompts, a reward", "as grpo"),
    "online_dpo": Alignment("align", "Guo et al. 2024", "prompts, a reward or judge", "a reference"),
    "distill": Alignment("align", "Agarwal et al. 2024 (GKD, λ = 1)", "prompts, a teacher", "the teacher"),
    "dpo": Alignment("dpo", "Rafailov et al. 2023", "pairs", "none: the reference is asked before"),
    "kto": Alignment("dpo", "Ethayarajh et al. 2024", "answers with a verdict, or pairs", REFERENCE),
    "orpo": Alignment("dpo", "Hong et al. 2024", "pairs", "none"),
    "cpo": Alignment("dpo", "Xu et al. 2024", "pairs", "none"),
    "simpo": Alignment("dpo", "Meng et al. 2024", "pairs", "none"),
    "reward": Alignment("reward", "Bradley & Terry 1952; Christiano et al. 2017", "pairs", "none"),
    "attributes": Alignment(
        "reward", "Wang et al. 2023, HelpSteer; Wang et al. 2024, ArmoRM", "answers with numbers", "none"
    ),
    "process": Alignment(
        "reward", "Uesato et al. 2022; Lightman et al. 2023", "answers in steps, a verdict each", "none"
    ),
}
