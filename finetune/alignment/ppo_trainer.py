"""PPO's loop: sample, score, update, again. Knows the policy's roles and a reward; its arithmetic is
ppo.py's.

A step depends on (seed, step) and the weights alone: which prompts, which uniforms, which minibatches. Every
process holds the whole step's answers and takes its share of each minibatch, so that the number of processes
changes no update.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.alignment import ppo
from finetune.alignment.experience import Clock, Experience, real_columns
from finetune.alignment.policy import REWARD, Policy, checkpointed
from finetune.alignment.ppo_options import KLArguments, PPOArguments, ValueArguments
from finetune.alignment.prompts import answer_texts, prompt_ids
from finetune.alignment.rewards import AskedRewards, Rewards, centre, deviation_of
from finetune.alignment.rollout import SamplingArguments, draw_uniforms, pad_left, sample_answers, stop_tokens
from finetune.artefacts.checkpoints import rotate, seal
from finetune.errors import InputError

logger = logging.getLogger(__name__)


class Learner:
    """Holds what a run holds: policy, optimizer, coefficient, step.

    Args:
        seed: of prompts, samples and minibatches.
    """

    def __init__(
        self,
        policy: Policy,
        processor: Any,
        rewards: Rewards,
        accelerator: Accelerator,
        *,
        settings: PPOArguments,
        kl: KLArguments,
        sampling: SamplingArguments,
        value: ValueArguments | None = None,
        seed: int = 0,
    ) -> None:
        # Before the optimizer takes the parameters: moving them later would leave it the old ones.
        self.policy, self.processor, self.rewards = policy.to(accelerator.device), processor, rewards
        self.accelerator = accelerator
        self.settings, self.kl, self.sampling, self.seed = settings, kl, sampling, seed
        self.value = value or ValueArguments()
        self.stops = stop_tokens(policy.network, processor)
        self.step, self.coefficient = 0, kl.kl_coefficient
        # mean and deviation of the start's own scores, which the first step finds out
        self.centre: tuple[float, ...] = () if self.value.standardise_rewards else (0.0, 1.0)
        self.settled = not self.value.standardise_rewards
        # Two lists: gradients are clipped, and rates set, for policy and values apart.
        self.parts = [
            [p for p in part.parameters() if p.requires_grad] for part in (policy.network, policy.head)
        ]
        rates = (settings.learning_rate, self.value.value_learning_rate)
        groups = [{"params": part, "lr": rate} for part, rate in zip(self.parts, rates, strict=True)]
        self.rates = rates
        # No decay: it would pull an adapter towards 0, which is the reference, at a strength that nobody set.
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
        # Gradients of one process have nobody to meet.
        self.model = accelerator.prepare_model(policy) if accelerator.num_processes > 1 else policy
        if sampling.top_k or sampling.top_p < 1:
            logger.warning(
                "Answers come from a part of the distribution (--top_k, --top_p), and KL is counted on the "
                "whole of it"
            )
        # Shares of equal size, or gathering would mix up whose rows are whose.
        if (
            settings.rollout_batch_size % accelerator.num_processes
            or settings.minibatch_size < accelerator.num_processes
        ):
            raise InputError(
                f"--rollout_batch_size {settings.rollout_batch_size} over {accelerator.num_processes} "
                "processes; wanted "
                "a multiple, and --minibatch_size of one answer a process or more"
            )

    # ---- one step ----

    def learn(self, rows: Sequence[AskedRewards]) -> dict[str, float]:
        """One step on these rows' prompts, [rollout_batch_size]; gives its figures."""
        clock = Clock()
        experience = self.collect(rows, clock)
        advantage, returns, figures = self.judge(experience)
        # Before the update: the share says how large a step these scores deserve.
        self._set_rate(figures["step_share"])
        figures |= self.update(experience, advantage, returns)
        clock.lap("update")
        # After it, for the next: this step's penalty has gone into its rewards already.
        if self.kl.kl_target is not None:
            self.coefficient = ppo.adapted(
                self.coefficient, figures["kl"], self.kl.kl_target, self.kl.kl_gain
            )
        self.step += 1
        return {"step": self.step, **figures, **clock.seconds}

    def collect(self, rows: Sequence[AskedRewards], clock: Clock) -> Experience:
        """Sample and score this process's share of the prompts, and gather everybody's in the order
        of the prompts.
        """
        # The width of all prompts and not of this share's: what is gathered has to have one shape.
        accelerator, width = (
            self.accelerator,
            max(len(prompt_ids(self.processor, row.prompt, row.tools)) for row in rows),
        )
        mine = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
        ids = [prompt_ids(self.processor, rows[i].prompt, rows[i].tools) for i in mine]
        uniforms = draw_uniforms(self.seed, self.step, mine, self.sampling.max_new_tokens)
        # Sampled as it is scored, or the first ratios would be off by bf16's rounding.
        with self.policy.autocast():
            answers = sample_answers(self.policy.network, ids, uniforms, self.sampling, self.stops)
        texts = answer_texts(self.processor, ids, answers.ids, answers.mask)
        clock.lap("generation")
        # What each reward said and not their sum: that needs everybody's.
        said = torch.from_numpy(self.rewards.ask([rows[i] for i in mine], texts))
        clock.lap("reward")
        prompt, prompt_mask = pad_left(ids, 0, width)
        tensors = (prompt, prompt_mask, answers.ids, answers.mask)
        # Scored anew although sampling knew them: it goes token by token over a cache, whose sums round
        # otherwise, and the first ratio of new to old should be 1.
        parts = self.score(tensors)
        clock.lap("scoring")
        empty = torch.tensor([not text.strip() for text in texts])
        return self.gather(Experience(*tensors, *parts, said, answers.ended, empty), len(rows))

    @torch.no_grad()
    def score(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Log-probabilities, the reference's, values and entropies of given answers, each [rows, time]."""
        size, found = self.settings.per_device_batch_size, []
        for start in range(0, len(tensors[0]), size):
            prompts, prompt_mask, answers, mask = (
                t[start : start + size].to(self.accelerator.device) for t in tensors
            )
            part = (*real_columns(prompts, prompt_mask), answers, mask)
            # The raw policy, not the wrapped one: without a gradient there is nothing to synchronise.
            log_probs, values, entropies = self.policy(*part, self.sampling.temperature)
            reference = self.policy.reference_log_probs(*part, self.sampling.temperature)
            found.append([log_probs, reference, values, entropies])
        # On the CPU: a whole step's tensors would stand in the device's memory beside the activations.
        return [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]

    def gather(self, mine: Experience, rows: int) -> Experience:
        processes = self.accelerator.num_processes
        if processes == 1:
            return mine
        # `gather` gives all of the first process, then all of the second; its rows were dealt out by turns.
        order = [row for process in range(processes) for row in range(process, rows, processes)]
        back = torch.tensor(order).argsort()
        device = self.accelerator.device
        whole = (
            self.accelerator.gather(vars(mine)[f.name].to(device).contiguous()).cpu() for f in fields(mine)
        )
        return Experience(*(t[back] for t in whole))

    def judge(self, e: Experience) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Advantages (whitened) and returns [rows, time], and the step's figures."""
        value, mask = self.value, e.mask
        scores, final, first = self._standardised(e)
        if first and value.value_from == "reward":
            # The head began with a reward's own scores; the first step has found out in which unit they are
            # counted from now on.
            e.values = self.policy.head.in_deviations(e.values, mask, *self.centre)
        penalty = ppo.kl_estimate(e.log_probs, e.reference, self.kl.kl_estimator)
        # Whatever estimator the penalty has, figures below say KL by k1 and k3.
        rewards = ppo.token_rewards(final, penalty, mask, self.coefficient)
        # Deviation of the start's scores is 1 once scores are counted in it; unknown where they aren't.
        start = float(value.standardise_rewards)
        share, penalised = ppo.step_share(final, rewards.sum(1), start), float(rewards.sum(1).mean())
        advantage = ppo.advantages(rewards, e.values, mask, value.gamma, value.lam)
        returns = advantage + e.values
        lengths = mask.sum(1)
        figures = {
            "reward": scores,
            # Of all answers as they are, so that one answer has 0.
            "reward_std": float(final.std(correction=0)),
            "reward_with_penalties": penalised,
            "kl": float((ppo.kl_estimate(e.log_probs, e.reference, "k1") * mask).sum(1).mean()),
            "kl_k3": float((ppo.kl_estimate(e.log_probs, e.reference, "k3") * mask).sum(1).mean()),
            "kl_coefficient": self.coefficient,
            "step_share": share,
            "entropy": float(e.entropies.sum() / lengths.sum()),
            "length": float(lengths.mean()),
            "ended": float(e.ended.float().mean()),
            "empty": float(e.empty.float().mean()),
            "value": float((e.values * mask).sum() / lengths.sum()),
            "explained_variance": ppo.explained_variance(e.values, returns, mask),
            **self.rewards.figures(e.parts.numpy()),
        }
        # Returns come from advantages as they are: whitened ones would move the values' goal at every step.
        return ppo.whiten(advantage, mask), returns, figures

    def _standardised(self, e: Experience) -> tuple[float, Tensor, bool]:
        """Mean score; scores in deviations from the mean of the start's own answers, [rows]; whether this
        step found those out.

        A constant in a reward would be a bonus for being early: discounted by λ towards an answer's
        beginning, while values still start at 0, it grows with the place, and whitening makes it as large as
        what is to be learnt (Ziegler et al. 2019, section 2.2, normalise theirs so). An answer that no reward
        applies to gets the mean of the others.
        """
        total = self.rewards.combine(e.parts.numpy(), e.empty.numpy(), e.ended.numpy()).total
        known = total[~np.isnan(total)]
        total = np.where(np.isnan(total), known.mean() if len(known) else 0.0, total)
        # The values that this step's experience holds were computed before the unit was known.
        first = not self.centre
        if not self.settled:  # as long as all score alike, the policy is still the start
            self.centre, self.settled = centre(total), deviation_of(total) > 0
        mean, deviation = self.centre
        # A deviation of 0 is never met: `centre` gives 1 then.
        final = torch.from_numpy((total - mean) / deviation)
        return float(total.mean()), final.to(e.log_probs.dtype), first

    def update(self, e: Experience, advantage: Tensor, returns: Tensor) -> dict[str, float]:
        """Epochs of minibatches; leaves off where the policy has moved too far. Figures are means a token."""
        settings, totals, done = self.settings, torch.zeros(7, dtype=torch.float64), 0
        for rows in self.minibatches(len(e.mask)):
            sums = self._optimizer_step(e, advantage, returns, rows)
            totals, done = totals + sums, done + 1
            # Asked after the step and not before: what has moved is known from the pass that the step needed
            # anyway.
            if settings.stop_kl is not None and sums[4] / sums[6] > settings.stop_kl:
                break
        names = ("policy_loss", "clip_share", "value_loss", "value_clip_share", "moved", "gradient")
        means = dict(zip(names, (totals[:6] / totals[6]).tolist(), strict=True))
        # A norm is a figure of a step, not of a token.
        return means | {"gradient": float(totals[5] / done), "updates": float(done)}

    def minibatches(self, answers: int) -> Iterator[list[int]]:
        # (seed, step, epoch): a resumed run shuffles as it would have.
        """Rows of each minibatch, epoch after epoch, in an order that follows from (seed, step, epoch)."""
        for epoch in range(self.settings.epochs):
            order = np.random.default_rng((self.seed, self.step, epoch)).permutation(answers)
            # The last may be smaller: left out, its answers would have been paid for and never learnt from.
            for start in range(0, answers, self.settings.minibatch_size):
                yield order[start : start + self.settings.minibatch_size].tolist()

    def _optimizer_step(self, e: Experience, advantage: Tensor, returns: Tensor, rows: list[int]) -> Tensor:
        """One optimizer step on these answers, over all processes; sums over all tokens, and the
        gradient's norm.
        """
        accelerator, settings = self.accelerator, self.settings
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        # the same number of parts on each process: with a part missing, the others would wait for its
        # gradient for ever
        most = math.ceil(len(rows) / accelerator.num_processes)
        count = math.ceil(most / settings.per_device_batch_size)
        # All processes divide by the tokens of the whole minibatch. With a mean a process, answers would
        # weigh by how short their neighbours happened to be, and two processes would learn something else
        # than one.
        tokens, sums = (
            float(e.mask[rows].sum()),
            torch.zeros(5, dtype=torch.float64, device=accelerator.device),
        )
        # None and not 0: parameters that a step doesn't reach keep AdamW's moments still.
        self.optimizer.zero_grad(set_to_none=True)
        # Dealt out by turns, and not in runs of the batch size, so that parts differ by one answer at the
        # most and no process is left with an empty one where another has a full one.
        parts = [mine[i::count] for i in range(count)]
        for index, part in enumerate(parts):
            last = index == count - 1
            # Gradients meet once, in the last part: every earlier meeting would carry the same sum again.
            with nullcontext() if last else accelerator.no_sync(self.model):
                # A process without an answer in this part still runs one: the others wait in backward for its
                # gradient, which its weight below makes zero.
                part = part or rows[:1]
                loss, figures = self._loss(e.rows(part, accelerator.device), advantage[part], returns[part])
                # By the slice and not by `part`, which may hold a stand-in.
                weight = float(
                    bool(mine[index::count])
                )  # a process without an answer of its own adds nothing
                # DistributedDataParallel takes the mean of the processes' gradients; times their number it is
                # the sum that was divided by all tokens.
                (loss * weight * accelerator.num_processes / tokens).backward()
                sums += figures * weight
        # each part by itself: a value far off would scale the policy's gradient down to nothing
        norm, value_norm = (
            torch.nn.utils.clip_grad_norm_(part, settings.max_grad_norm) for part in self.parts
        )
        # Before the step: AdamW would carry NaN into its moments for good.
        if not torch.isfinite(norm + value_norm):
            raise InputError(
                f"The gradient is {norm.item()} at step {self.step + 1}. Lower --learning_rate, or set "
                "--bf16 false"
            )
        # a minibatch that is left over takes its share of a step: AdamW makes every step as large as any
        # other
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * len(rows) / settings.minibatch_size
        self.optimizer.step()
        sums = accelerator.reduce(sums, "sum") if accelerator.num_processes > 1 else sums
        return torch.cat([sums.cpu(), torch.tensor([float(norm), tokens], dtype=torch.float64)])

    def _loss(self, e: Experience, advantage: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        settings, device = self.settings, self.accelerator.device
        advantage, returns = advantage.to(device), returns.to(device)
        part = (e.prompts, e.prompt_mask, e.answers, e.mask, self.sampling.temperature)
        with checkpointed(self.policy.network, settings.gradient_checkpointing):
            log_probs, values, entropies = self.model(*part, bool(settings.entropy_coefficient))
        policy, held = ppo.policy_loss(log_probs, e.log_probs, advantage, e.mask, settings.clip)
        value, value_held = ppo.value_loss(values, e.values, returns, e.mask, self.value.value_clip)
        loss = policy.sum() + value.sum()  # two losses of two sets of weights
        # Where it is 0, the entropies were not computed.
        if settings.entropy_coefficient:
            loss = loss - settings.entropy_coefficient * entropies.sum()
        # The other way round, old to new: tokens were drawn by the old policy. k3 is never negative.
        moved = (ppo.kl_estimate(e.log_probs, log_probs.detach(), "k3") * e.mask).sum()
        sums = torch.stack([policy.sum(), held.sum(), value.sum(), value_held.sum(), moved]).detach().double()
        return loss, sums

    def _set_rate(self, share: float) -> None:
        # the value head needs no warm-up: the sooner it knows something, the less noise in the advantages
        policy = self.settings.learning_rate * share * min(1.0, (self.step + 1) / 10)
        self.rates = (policy, self.value.value_learning_rate)

    # ---- checkpoints ----

    def trained(self) -> dict[str, Tensor]:
        """Trainable weights by name; a reward adapter on the same base is none of them."""
        return {
            n: p.detach()
            for n, p in self.policy.named_parameters()
            if p.requires_grad and f".{REWARD}." not in n
        }

    def save(self, output: Path, further: dict[str, str] | None = None) -> None:
        """Write and seal checkpoint-STEP, keep it and the one before; on the main process. Chance has no
        state: it follows from (seed, step).

        `further` texts are sealed with it, by file name.
        """
        folder = output / f"checkpoint-{self.step}"
        folder.mkdir(parents=True, exist_ok=True)
        # On the CPU and whole: safetensors takes no views, and a checkpoint is read on any device.
        save_file(
            {n: p.contiguous().cpu() for n, p in self.trained().items()}, folder / "trained.safetensors"
        )
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        texts = {"state.json": json.dumps(self._state())} | (further or {})
        for name, text in texts.items():
            (folder / name).write_text(text)
        # Last: a checkpoint without a seal was cut off, and is not continued from.
        seal(folder)
        rotate(output, 2)

    def _state(self) -> dict[str, Any]:
        return {"step": self.step, "coefficient": self.coefficient, "centre": self.centre,
        "settled": self.settled,
                "spread": self.rewards.spread}  # fmt: skip

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, on every process.

        Raises:
            InputError: its weights are not those that this run trains.
        """
        saved, trained = load_file(folder / "trained.safetensors"), self.trained()
        if set(saved) != set(trained):
            raise InputError(
                f"{folder} holds other trained weights than this run; set --output_dir to a new folder"
            )
        # Into the tensors that are there: the optimizer and a wrapper hold these.
        for name, tensor in saved.items():
            trained[name].copy_(tensor)
        # Tensors and numbers alone, so that no pickled code of the file's is run.
        self.optimizer.load_state_dict(
            torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        )
        state = json.loads((folder / "state.json").read_text())
        self.step, self.coefficient = state["step"], state["coefficient"]
        self.centre, self.settled, self.rewards.spread = (
            tuple(state["centre"]),
            state["settled"],
            state["spread"],
        )
