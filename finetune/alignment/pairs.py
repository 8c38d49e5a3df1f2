"""A model and prompts → several scored answers to each. Knows policies and rewards; knows no training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object

from finetune.alignment.prompts import answer_texts, prompt_ids
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, sample_answers, stop_tokens
from finetune.alignment.trl_options import check_task
from finetune.artefacts.files import ARGUMENTS, write_atomically
from finetune.errors import InputError

FILES = ("train.jsonl", "test.jsonl")


@dataclass
class PreferArguments:
    """How many answers, and where the pairs go."""

    task: str = field(
        default="prefer",
        metadata={"help": "What arguments.yaml says of the run, which is a recipe: always prefer."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for train.jsonl and test.jsonl."})
    answers_per_prompt: int = field(
        default=4, metadata={"help": "Answers to each prompt; the best and the worst become the pair."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the answers."})
    bf16: bool = field(default=False, metadata={"help": "Sample in bf16."})

    def __post_init__(self) -> None:
        check_task(self.task, "prefer")
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        if self.answers_per_prompt < 2:
            raise InputError(
                f"--answers_per_prompt is {self.answers_per_prompt}; wanted 2 or more for a pair"
            )


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers to prompts, each [prompts, answers a prompt]: texts, scores (NaN: no reward applies),
    ended by themselves.
    """

    texts: list[list[str]]
    scores: list[list[float]]
    ended: list[list[bool]]


def scored_answers(
    network: Any, processor: Any, rows: Sequence[AskedRewards], rewards: Rewards, *, each: int,
    sampling: SamplingArguments,
    seed: int = 0, bf16: bool = False,
) -> ScoredAnswers:  # fmt: skip
    """`each` answers to each prompt and their scores; answer j to prompt i depends on (seed, i, j) alone.

    Each process makes its share, and all get everything. Scores are those of the rewards' formula over all of
    these answers.
    """
    # A process takes every n-th answer, so that all have short and long prompts alike.
    every, state = [row for row in rows for _ in range(each)], PartialState()
    mine = range(state.process_index, len(every), state.num_processes)
    ids = [prompt_ids(processor, every[i].prompt, every[i].tools) for i in mine]
    # By the answer's number among all: the share that falls to a process changes nothing.
    uniforms = draw_uniforms(seed, 0, mine, sampling.max_new_tokens)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
        answers = sample_answers(network.eval(), ids, uniforms, sampling, stop_tokens(network, processor))
    texts = answer_texts(processor, ids, answers.ids, answers.mask)
    parts = rewards.ask([every[i] for i in mine], texts)
    # Numbered, since the processes' shares come one after the other.
    found = gather_object(list(zip(mine, texts, answers.ended.tolist(), parts.tolist(), strict=True)))
    found.sort(key=lambda one: one[0])
    _, texts, ended, table = map(list, zip(*found, strict=True)) if found else ([], [], [], [])
    empty = np.array([not text.strip() for text in texts], dtype=bool)
    shape = (len(texts), len(rewards.parts))
    # Over all answers: normalising by a process's share would make scores depend on how many there are.
    scores = rewards.combine(
        np.array(table).reshape(shape), empty, np.array(ended, dtype=bool)
    ).total.tolist()

    def grouped(values: Sequence[Any]) -> list[list[Any]]:
        return [list(values[i : i + each]) for i in range(0, len(values), each)]

    return ScoredAnswers(grouped(texts), grouped(scores), grouped(ended))


def make_pairs(
    network: Any, processor: Any, rows: Sequence[AskedRewards], rewards: Rewards, each: int, **options: Any
) -> list[dict[str, Any]]:
    """Preference pairs from `each` answers to each prompt; options as of `scored_answers`.

    Raises:
        InputError: there is none.
    """
    found = scored_answers(network, processor, rows, rewards, each=each, **options)
    tools = [row.tools for row in rows]
    pairs = pairs_of([row.prompt for row in rows], found.texts, found.scores, found.ended, tools)
    # An empty file would be met as such only when it is trained on.
    if not pairs:
        raise InputError(
            f"No pair from {len(rows)} prompts: the answers to each score alike, read alike or have no "
            "score. Mend --reward, or raise --temperature or --answers_per_prompt"
        )
    return pairs


def claim_pairs(folder: Path, options: dict[str, Any]) -> None:
    """Take a folder for pairs made with these options; on every process. One that was stopped keeps the files
    it has.

    Raises:
        InputError: the folder holds anything else, or every file already.
    """
    file, told = folder / ARGUMENTS, f"Set --output_dir to a new folder; nothing in {folder} was touched"
    # One at a time: the first finds an empty folder and writes its options, the others find those.
    with PartialState().main_process_first():
        before = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if folder.exists() and any(folder.iterdir()) and before.get("task") != options["task"]:
            raise InputError(f"{folder} is not empty and holds no pairs. {told}")
        # `output_dir` may be said in two ways for one folder.
        differing = sorted(
            k for k in {*before, *options} - {"output_dir"} if before and before.get(k) != options.get(k)
        )
        if differing:
            named = "; ".join(f"{k}: {before.get(k)!r} there, {options.get(k)!r} now" for k in differing[:5])
            raise InputError(f"{folder} holds other pairs ({named}). {told}")
        if before and all((folder / name).is_file() for name in FILES) and PartialState().is_main_process:
            raise InputError(f"{folder} already holds {' and '.join(FILES)}. {told}")
        # Options before the first pair: a folder that was stopped can be told from a foreign one.
        folder.mkdir(parents=True, exist_ok=True)
        if PartialState().is_main_process:
            write_atomically(file, yaml.safe_dump(options, sort_keys=True, allow_unicode=True))


def pairs_of(
    prompts: Sequence[Any], answers: Sequence[Sequence[str]], scores: Sequence[Sequence[float]],
    ended: Sequence[Sequence[bool]], tools: Sequence[Any] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The best and the worst answer to each prompt as a pair with its scores and margin; a prompt whose
    answers all score the same gives none, nor does one without two answers that have text and a score.

    Args:
        answers, scores, ended: [prompts, answers a prompt].
        tools: what each prompt was asked with, which its pair keeps.
    """
    pairs = []
    asked_with = tools or [None] * len(prompts)
    for prompt, texts, values, ends, own in zip(prompts, answers, scores, ended, asked_with, strict=True):
        usable = [i for i, text in enumerate(texts) if text.strip() and not math.isnan(values[i])]
        if len(usable) < 2:
            continue
        best, worst = max(usable, key=values.__getitem__), min(usable, key=values.__getitem__)
        # Two equal texts may differ in score where a reward draws; nothing can be learnt from them.
        if values[best] > values[worst] and texts[best] != texts[worst]:
            sides = (texts[best], texts[worst])
            chosen, rejected = (
                sides
                if isinstance(prompt, str)
                else tuple([{"role": "assistant", "content": s}] for s in sides)
            )
            pairs.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_score": values[best],
                 "rejected_score": values[worst], "margin": values[best] - values[worst],
                 "chosen_ended": ends[best], "rejected_ended": ends[worst], **({"tools": own} if own else {})}
            )  # fmt: skip
    return pairs
