"""Policy gradients without a value model, on TRL's trainers, with the rewards of PPO, so that they can be
compared.

Sampling is this toolkit's: a prompt is read once for all answers to it, and an answer depends on (seed, step,
row) alone. Knows TRL; knows no reward's kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import set_seed

from finetune.alignment.grpo_options import GRPOArguments, RLOOArguments
from finetune.alignment.own_sampling import SampledSteps, micro_batches_sampled, sampling_of
from finetune.alignment.policy import Policy, drop_copy, load_start, make_policy
from finetune.alignment.prompts import (
    PromptArguments,
    prompts_fingerprint,
    read_prompts,
    save_asked_rows,
    show_prompts,
)
from finetune.alignment.reward_kinds import load_rewards
from finetune.alignment.rewards import Array, AskedRewards, RewardArguments, Rewards
from finetune.alignment.rollout import stop_tokens
from finetune.alignment.shared_prompt import SharedPrompt, can_share, group_lines
from finetune.alignment.tools import load_tools
from finetune.alignment.trl_options import callbacks, made_by_trl, quiet
from finetune.alignment.watch import Watch
from finetune.artefacts.files import ARGUMENTS, METRICS
from finetune.artefacts.folder import resolved_options, save_artefact
from finetune.artefacts.passport import is_adapter
from finetune.artefacts.provenance import provenance_of
from finetune.artefacts.runs import open_run
from finetune.data.chats import Chats
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.methods import MethodArguments
from finetune.models.heads import core
from finetune.models.load import ModelArguments
from finetune.training.allocator import keep_freed_memory
from finetune.training.interrupts import Resuming
from finetune.training.machine import processes
from finetune.training.optimizers import check_optimizer


def as_trl_reward(
    rewards: Rewards,
    rows: Sequence[AskedRewards],
    stops: Sequence[int],
    note: Callable[[str, float], None] = lambda name, value: None,
) -> Callable[..., list[float | None]]:
    """Several rewards as TRL calls one: completions are texts or messages, and `row` says which row a prompt
    is of.

    Scores follow from the answers of all processes; what each reward said goes to TRL's log, or to `note`
    where TRL's trainer takes none.
    """

    def score(
        prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        log_metric: Callable[[str, float], None] = note, **_: Any,
    ) -> list[float | None]:  # fmt: skip
        texts = [text_of(completion) for completion in completions]
        # Of a row with tools TRL has the rendered text; rewards see its conversation.
        own = [rows[int(i)] for i in row]
        asked = [
            one if one.tools else AskedRewards(prompt, one.columns)
            for prompt, one in zip(prompts, own, strict=True)
        ]
        # A prompt may have come from any row twice; `row` says which columns are its.
        empty = [not text.strip() for text in texts]
        ended = [bool(ids) and ids[-1] in stops for ids in completion_ids]
        # Of all processes: lowest score and deviations are over the whole step's answers.
        table, empty_all, ended_all, mine = everybody(rewards.ask(asked, texts), empty, ended)
        scores = rewards.combine(table, empty_all, ended_all)
        for name, value in {**rewards.figures(scores.parts), "empty": float(empty_all.mean())}.items():
            log_metric(name, value)
        # None is TRL's word for an answer that no reward applies to.
        return [None if np.isnan(one) else float(one) for one in scores.total[mine]]

    return score


def text_of(completion: Any) -> str:
    """What a completion says at its end: a text, or the last message of the assistant's."""
    if isinstance(completion, str):
        return completion
    # A message that calls a tool has no content.
    said = [message["content"] or "" for message in completion if message["role"] == "assistant"]
    return said[-1] if said else ""


def everybody(
    table: Array, empty: Sequence[bool], ended: Sequence[bool]
) -> tuple[Array, Array, Array, slice]:
    """The tables [answers, rewards] and marks [answers] of all processes, and where this one's stand."""
    # Lists and not tensors: the processes may hold different numbers of answers.
    state = PartialState()
    tables = gather_object([table.tolist()])
    marks = gather_object([(list(empty), list(ended))])
    start = sum(map(len, tables[: state.process_index]))
    # By way of `reshape`, since a list without rows has no second dimension.
    flat = np.array([line for one in tables for line in one]).reshape(-1, table.shape[1])
    all_empty, all_ended = (
        np.array([mark for one in marks for mark in one[place]], dtype=bool) for place in (0, 1)
    )
    return flat, all_empty, all_ended, slice(start, start + len(table))


class SharedSampling(SampledSteps):
    """Own sampling for trainers with several answers to a prompt, which is computed once for all of them."""

    shares = False  # whether a prompt's part of the update is computed once, see `can_share`
    rendered = False  # whether prompts are a template's own text, special tokens and all

    def _tokenize_prompts(self, prompts: Any) -> Any:
        if not self.rendered:
            return super()._tokenize_prompts(prompts)  # type: ignore[misc]
        processor: Any = self.processing_class  # type: ignore[attr-defined]
        return processor(text=prompts, add_special_tokens=False)["input_ids"], None, {}

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *more: Any, **named: Any
    ) -> Any:
        # Pictures and a mixture's balance are of rows as they are.
        plain = all(
            value is None or value is False or name == "compute_entropy" for name, value in named.items()
        )
        # Without a gradient the reference and the sampling policy are asked, which have no dropout.
        network, asked = model, model.training and not torch.is_grad_enabled()
        if asked:
            network.eval()
        if self.shares and plain:
            width = core(model).config.get_text_config().to_dict().get("hidden_size", 0)
            prompt = input_ids.shape[1] - logits_to_keep
            model = SharedPrompt(model, partial(group_lines, prompt=prompt, wide=width))
        found = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            model, input_ids, attention_mask, logits_to_keep, *more, **named
        )
        if asked:
            network.train()
        return found


class GRPOTrainer(SharedSampling, Resuming, trl.GRPOTrainer):
    """TRL's, with a prompt computed once for all answers to it."""


class RLOOTrainer(SharedSampling, Resuming, trl.RLOOTrainer):
    """TRL's, with a prompt computed once for all answers to it."""


def make_group_trainer(
    policy: Policy,
    processor: Any,
    training: GRPOArguments | RLOOArguments,
    rows: Sequence[AskedRewards],
    rewards: Rewards,
    *,
    held_out: Sequence[AskedRewards] = (),
    watch: Watch | None = None,
) -> Any:
    """TRL's trainer that the options are of, on a policy's network; the reference is the base with
    the adapter off.
    """
    every = [*rows, *held_out]  # rows are told by their place here
    rendered = with_tools(every)
    parts = [
        # The row's number goes through TRL; its columns stay here, where their types don't matter.
        Dataset.from_dict(
            {
                "prompt": [as_rendered(row, processor) if rendered else row.prompt for row in part],
                "row": list(range(start, start + len(part))),
            }
        )
        for part, start in ((rows, 0), (held_out, len(rows)))
    ]
    score = as_trl_reward(rewards, every, stop_tokens(policy.network, processor))
    further: dict[str, Any] = {"eval_dataset": parts[1]} if training.eval_strategy != "no" else {}
    kind: Any = RLOOTrainer
    if isinstance(training, GRPOArguments):
        kind = GRPOTrainer
        further |= load_tools(training.tools)
        if rendered and training.tools:
            raise InputError(
                "The rows have a column 'tools' of their own, beside those of --tools; set --ignore_columns "
                "tools, or leave --tools out"
            )
    # TRL checks its options here, and says so by ValueError.
    with made_by_trl():
        trainer = kind(
            model=policy.network, reward_funcs=score, args=training, train_dataset=parts[0],
            processing_class=processor,
            # first: what it measures at the start is no step, by whose length a --time_limit is kept
            callbacks=[*([watch] if watch else []), *callbacks(training)], **further,
        )  # fmt: skip
    trainer.rendered, trainer.rewards = rendered, rewards
    drop_copy(policy.network)
    # Now: inside a step a distributed model's weights may be scattered.
    with trainer.accelerator.autocast():
        trainer.shares = can_share(policy.network)
    return quiet(trainer)


def with_tools(rows: Sequence[AskedRewards]) -> bool:
    """Whether any row is asked with tools of its own, which TRL has no place for."""
    return any(row.tools for row in rows)


def check_begun(folder: Path) -> None:
    """An unfinished run in a folder samples after a kill as it did before.

    Raises:
        InputError: it keeps micro-batches a sampling that are a step's, as runs don't whose answers follow
            from their places in the step.
    """
    if (folder / METRICS).is_file() or not (folder / ARGUMENTS).is_file():
        return
    try:
        before = yaml.safe_load((folder / ARGUMENTS).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError:
        # whoever claims the folder says so
        return
    told = before.get("steps_per_generation")
    # one that was asked for differs from it
    if told is not None and told == before.get("gradient_accumulation_steps"):
        raise InputError(
            f"The unfinished run in {folder} was begun by an earlier version, whose answers are sampled "
            f"differently after a stop (its {ARGUMENTS} says steps_per_generation: {told}, which was not "
            "asked for), and can't go on here. Set --output_dir to a new folder to begin anew, or finish it "
            "with the version that began it; nothing in it was touched"
        )


def as_rendered(row: AskedRewards, processor: Any) -> str:
    """A row's conversation as its template asks it, tools and all."""
    assert not isinstance(row.prompt, str)
    return Chats(processor).prompt(row.prompt, row.tools)


def align(
    data: DataArguments,
    prompt: PromptArguments,
    model: ModelArguments,
    method: MethodArguments,
    *,
    reward: RewardArguments,
    training: GRPOArguments | RLOOArguments,
) -> None:
    """The whole of scripts/grpo.py, whose algorithms differ in `training` alone; figures are of
    held-out prompts.
    """
    keep_freed_memory()
    # The table of what can be shared knows two verbs; the later losses are grpo's.
    processes(training.algorithm if training.algorithm == "rloo" else "grpo")
    set_seed(training.seed)  # the adapter's first weights
    # TRL's reference without an adapter is read anew from the disk.
    if method.method == "full" and training.beta and is_adapter(model.model_name_or_path):
        raise InputError(
            "TRL reads a whole model's reference from its base's folder, which is not the tuned model that "
            "training starts from. "
            "Set --beta 0, --method lora, or --model_name_or_path to the merged model"
        )
    # One process fills the caches that the others read.
    with training.main_process_first(desc="reading prompts"):
        processor, network = load_start(model)
        read = load_rows(data)
        rows, held_out = read_prompts(data, prompt, processor, read)
    if show_prompts(rows, held_out, processor, data):
        return
    options = resolved_options(data, prompt, model, method, reward, training)
    # follows from steps_per_generation, and a recipe with both is refused
    options.pop("generation_batch_size")
    # follows from the micro-batches of a step, which are others on other numbers of processes
    if micro_batches_sampled(training) == training.gradient_accumulation_steps:
        options.pop("steps_per_generation")
        check_begun(Path(str(training.output_dir)))
    # Before the policy is made: a folder that holds another run is refused at once.
    checkpoint = open_run(options, prompts_fingerprint(rows), network)
    save_asked_rows(options["output_dir"], provenance_of(read, data), rows)
    policy = make_policy(network, method.method, method.method_kwargs, bool(training.bf16))
    check_optimizer(training, policy.network)
    rewards = load_rewards(reward, policy, model)
    held_out = held_out[: training.held_out_prompts]
    watch = Watch(
        policy, processor, held_out, rewards, sampling=sampling_of(training), every=training.measure_steps
    )
    trainer = make_group_trainer(policy, processor, training, rows, rewards, held_out=held_out, watch=watch)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_world_process_zero():
        found = watch.finish(training.algorithm)
        save_artefact(policy.network, processor, Path(str(training.output_dir)), None, found)
        print(training.output_dir)
