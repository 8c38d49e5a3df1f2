"""Reward against KL: DPO, PPO, best-of-n and preferred fine-tuning from one tuned start (Rafailov et al.
2023, figure 2, left).

Each run is a file with its points; finished runs are not made again. Knows every method of alignment; knows
no plots.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainerCallback

from finetune.alignment import best_of_n
from finetune.alignment.dpo import DPOTrainingArguments, make_dpo_trainer
from finetune.alignment.experience import step_prompts
from finetune.alignment.measure import measure, standard_error
from finetune.alignment.pairs import make_pairs, scored_answers
from finetune.alignment.policy import Policy, load_scorer, load_start
from finetune.alignment.ppo_options import KLArguments, PPOArguments
from finetune.alignment.ppo_trainer import Learner
from finetune.alignment.preferences import sound_pairs
from finetune.alignment.prompts import beginning, prompt_column, prompts_fingerprint, reward_columns
from finetune.alignment.reward_kinds import load_rewards
from finetune.alignment.reward_model import RewardTrainingArguments, make_reward_trainer, pair_margins
from finetune.alignment.rewards import AskedRewards, RewardArguments
from finetune.alignment.rollout import SamplingArguments
from finetune.alignment.run import line
from finetune.artefacts.checkpoints import newest
from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import save_artefact
from finetune.artefacts.runs import open_run
from finetune.data.sources import DataArguments, Rows, sample
from finetune.device import device
from finetune.errors import InputError
from finetune.experiments.frontier_options import SIZES, FrontierArguments
from finetune.methods import attach
from finetune.models.load import ModelArguments, load_processor
from finetune.training.machine import has_fast_bf16

logger = logging.getLogger(__name__)

Point = dict[str, float]


SAVE_STEPS = 5  # of PPO, whose runs are the longest


class Frontier:
    """Holds what all points share: texts, start, true reward, pairs, learnt reward; each made once
    and kept in the folder.
    """

    def __init__(
        self,
        settings: FrontierArguments,
        model: ModelArguments,
        reward: RewardArguments,
        data: DataArguments,
        rows: Rows,
    ) -> None:
        assert rows.train is not None and rows.eval is not None
        self.settings, self.size, self.folder = settings, SIZES[settings.size], Path(str(settings.output_dir))
        self.model, self.reward, self.bf16 = model, reward, has_fast_bf16()
        self.start = ModelArguments(**(vars(model) | {"model_name_or_path": str(self.folder / "sft")}))
        self.sampling = SamplingArguments(max_new_tokens=self.size.new_tokens)
        self.truth = load_rewards(reward)  # what all points are measured by
        # a sample of all of them is a seeded order
        self.texts, self.test_texts = (
            texts_of(sample(part, None, settings.seed), data) for part in (rows.train, rows.eval)
        )
        needed = (self.size.prompts + self.size.sft_rows, self.size.held_out)
        if len(self.texts) < needed[0] or len(self.test_texts) < needed[1]:
            raise InputError(
                f"The size '{settings.size}' needs {needed[0]} training and {needed[1]} held-out texts; "
                f"{data.name} has "
                f"{len(self.texts)} and {len(self.test_texts)}. Set --size or --dataset_name"
            )

    def prepare(self) -> None:
        """The tuned start, pairs from it, and a reward model on those, where they aren't there yet."""
        processor, network = load_start(self.model)
        cut, size = self.settings.prompt_tokens, self.size
        self.prompts, self.held_out = (
            [AskedRewards(beginning(row.prompt, cut, processor), row.columns) for row in part]
            # held-out prompts are of the test split: no method has seen them
            for part in (self.texts[: size.prompts], self.test_texts[: size.held_out])
        )
        # after the prompts, whose fingerprint is part of what the folder stands for
        self._claim_folder()
        if not (self.folder / "sft" / "metrics.json").is_file():
            # rows beyond the prompts': tuning on the prompts would teach the answers that are judged
            later = self.texts[size.prompts : size.prompts + size.sft_rows]
            self.fine_tune(
                network,
                processor,
                # twice as long as a prompt with its answer: the tuned start shall know how texts go on
                [beginning(row.prompt, 2 * (cut + size.new_tokens), processor) for row in later],
                "sft",
            )
        self.pairs = self._pairs()
        if not (self.folder / "reward" / "metrics.json").is_file():
            self._reward_model()

    def _claim_folder(self) -> None:
        """Refuse a folder that holds another experiment: points of two would stand in one picture."""
        # these may change from call to call, since finished points stay
        free = {"output_dir", "max_points", "only"}
        options = (
            {k: v for k, v in vars(self.settings).items() if k not in free}
            | asdict(self.model)
            | asdict(self.reward)
        )
        # through JSON, as the file has it: tuples have become lists there
        now = json.loads(
            json.dumps(
                options | asdict(self.size) | {"data": prompts_fingerprint([*self.prompts, *self.held_out])}
            )
        )
        file = self.folder / "experiment.json"
        if file.is_file():
            before = json.loads(file.read_text())
            differing = [
                f"{k}: {before.get(k)!r} there, {now[k]!r} now" for k in now if before.get(k) != now[k]
            ]
            if differing:
                raise InputError(
                    f"{self.folder} holds another experiment ({'; '.join(differing[:5])}). Set --output_dir "
                    "to a new folder"
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} holds files that are no experiment's. Set --output_dir to a new folder"
            )
        # the folder is known to be free by now
        (self.folder / "points").mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(now, indent=1))

    def fine_tune(
        self,
        network: Any,
        processor: Any,
        texts: Sequence[str],
        name: str,
        watch: TrainerCallback | None = None,
    ) -> None:
        """LoRA on texts by next-token prediction; leaves an artefact under `name`."""
        torch.manual_seed(self.settings.seed)
        folder = self._claim(name, self.model if name == "sft" else self.start)
        network = attach(network, "lora", None, "CAUSAL_LM")
        options = trl.SFTConfig(
            **self._shared(folder),
            num_train_epochs=1 if name == "sft" else self.size.epochs,
            max_length=128,
            dataset_text_field="text",
        )
        trainer = trl.SFTTrainer(
            model=network, args=options, train_dataset=Dataset.from_dict({"text": list(texts)}),
            processing_class=processor,
            callbacks=[watch] if watch else None,
        )  # fmt: skip
        trainer.train()
        save_artefact(network, processor, folder, None, {"texts": len(texts)})

    def _claim(self, name: str, base: ModelArguments) -> Path:
        shutil.rmtree(
            self.folder / name, ignore_errors=True
        )  # a step that was stopped in the middle starts again
        options = {
            "output_dir": str(self.folder / name),
            "task": name,
            "method": "lora",
            "model_name_or_path": base.model_name_or_path,
        }
        open_run(options, "frontier")
        return self.folder / name

    def _shared(self, folder: Path) -> dict[str, Any]:
        return {
            "output_dir": str(folder), "learning_rate": self.settings.learning_rate, "bf16": self.bf16,
            "report_to": "none",
            "per_device_train_batch_size": 16, "save_strategy": "no", "eval_strategy": "no",
            "logging_steps": 5,
            "disable_tqdm": True, "activation_checkpointing": False, "gradient_checkpointing": None,
            "use_cpu": device().type == "cpu",
            "seed": self.settings.seed, "warmup_steps": 0.1, "dataloader_pin_memory": device().type == "cuda",
        }  # fmt: skip

    def _pairs(self) -> Dataset:
        file = self.folder / "pairs.json"
        # kept as a file: sampling them is the most expensive step that all share
        if not file.is_file():
            processor, network = load_start(self.start)
            pairs = make_pairs(
                self._placed(network), processor, self.prompts, self.truth, 4,
                sampling=self.sampling, seed=self.settings.seed, bf16=self.bf16,
            )  # fmt: skip
            # what no trainer could learn from is left out here, once for all
            rows = sound_pairs(Dataset.from_list(pairs), processor, 512, True, "training")
            write_atomically(file, json.dumps(rows.to_list()))
        return Dataset.from_list(json.loads(file.read_text()))

    def _reward_model(self) -> None:
        torch.manual_seed(self.settings.seed)
        processor, network = load_scorer(self.start)
        folder = self._claim("reward", self.start)
        rows = self.pairs.select_columns(["prompt", "chosen", "rejected"])
        # a fifth of the pairs is held out for the reward model's own accuracy
        kept = rows.train_test_split(test_size=max(1, len(rows) // 5), seed=self.settings.seed)
        network = attach(network, "lora", None, "SEQ_CLS")
        options = RewardTrainingArguments(
            **self._shared(folder), num_train_epochs=self.size.epochs, max_length=512
        )
        trainer = make_reward_trainer(network, processor, options, kept["train"], kept["test"])
        trainer.train()
        right = pair_margins(network, processor, kept["test"], 512) > 0  # the chosen answer scores higher
        save_artefact(
            network, processor, folder, None, {"accuracy": float(right.mean()), "pairs": len(right)}
        )

    def _placed(self, network: Any) -> Any:
        return network.to(device()).eval()

    # ---- runs: each gives points {steps, kl, reward, error, ...} on the held-out prompts ----

    def start_point(self, setting: float) -> list[Point]:
        return [self._measured(self._policy()[1])]

    def best_of(self, n: float) -> list[Point]:
        """n answers to each prompt, the learnt reward's favourite kept; its KL to the start as
        `best_of_n` counts it.
        """
        processor, network = load_start(self.start)
        rewards = load_rewards(RewardArguments(reward=[f"model:{self.folder / 'reward'}"]))
        found = scored_answers(
            self._placed(network),
            processor,
            self.held_out,
            rewards,
            each=int(n),
            sampling=self.sampling,
            seed=77,
            bf16=self.bf16,
        )
        best = [best_of_n.favourite(*one) for one in zip(found.texts, found.scores, strict=True)]
        empty = np.array([not text.strip() for text in best])  # an empty answer may have a score of its own
        # the true reward counts, and not the one by which it was chosen
        true = self.truth.plain().combine(self.truth.ask(self.held_out, best), empty).total
        known = true[~np.isnan(true)].tolist()
        kl = float(np.mean([best_of_n.kl_of_scores(scores, int(n)) for scores in found.scores]))
        return [{"reward": float(np.mean(known)), "error": standard_error(known), "kl": kl}]

    def preferred(self, setting: float) -> list[Point]:
        processor, network = load_start(self.start)
        watch = Watch(self)
        self.fine_tune(
            network, processor, [row["prompt"] + row["chosen"] for row in self.pairs], "preferred", watch
        )
        return watch.points

    def dpo(self, beta: float) -> list[Point]:
        torch.manual_seed(self.settings.seed)
        processor, network = load_start(self.start)
        network = attach(network, "lora", None, "CAUSAL_LM")
        options = DPOTrainingArguments(
            **self._shared(self.folder / "work"), num_train_epochs=self.size.epochs, max_length=512, beta=beta
        )
        rows = self.pairs.select_columns(["prompt", "chosen", "rejected"])
        # evaluation is asked for by the trainer, and not used: one row will do
        trainer = make_dpo_trainer(network, processor, options, rows, rows.select([0]))
        watch = Watch(self)
        trainer.add_callback(watch)
        trainer.train()
        return watch.points

    def ppo(self, coefficient: float, learnt: bool = True) -> list[Point]:
        processor, policy = self._policy()
        self._placed(policy)
        rewards, size = self.truth, self.size
        # a reward model on the same base shares its weights with the policy
        if learnt:
            rewards = load_rewards(
                RewardArguments(reward=[f"model:{self.folder / 'reward'}"]), policy, self.start
            )
        learner = Learner(
            policy, processor, rewards,
            Accelerator(mixed_precision="bf16" if self.bf16 else "no", cpu=device().type == "cpu"),
             # as TRL's is
            settings=PPOArguments(learning_rate=self.settings.learning_rate, rollout_batch_size=size.rollout,
                                  minibatch_size=size.rollout // 2),
            kl=KLArguments(kl_coefficient=coefficient), sampling=self.sampling, seed=self.settings.seed,
        )  # fmt: skip
        unfinished = self.folder / "unfinished" / f"{'ppo' if learnt else 'ppo-true'}-{coefficient}"
        checkpoint = newest(unfinished)
        # points of the steps before, which aren't made again
        points: list[Point] = json.loads((checkpoint / "points.json").read_text()) if checkpoint else []
        if checkpoint:
            learner.restore(checkpoint)
        while learner.step < size.ppo_steps:
            figures = learner.learn(
                step_prompts(self.prompts, self.settings.seed, learner.step, size.rollout)
            )
            logger.warning("%s", line(figures, size.ppo_steps))
            # by the step and not by time: a resumed run is measured at the same ones
            if learner.step in moments_of(size.ppo_steps, size.measured):
                points.append(self._measured(policy) | {"steps": learner.step})
            if learner.step % SAVE_STEPS == 0:
                # both at once, so that points belong to the state that they were measured on
                learner.save(unfinished, {"points.json": json.dumps(points)})
        # a finished run is its file of points
        shutil.rmtree(unfinished, ignore_errors=True)
        return points

    def ppo_true(self, coefficient: float) -> list[Point]:
        return self.ppo(coefficient, learnt=False)

    def _policy(self) -> tuple[Any, Policy]:
        torch.manual_seed(self.settings.seed)
        processor, network = load_start(self.start)
        return processor, Policy(attach(network, "lora", None, "CAUSAL_LM"), self.bf16)

    def _measured(self, policy: Policy) -> Point:
        processor = load_processor(self.start.model_name_or_path)
        self._placed(policy)
        return measure(policy, processor, self.held_out, self.truth, sampling=self.sampling)[0]

    def plan(self) -> list[tuple[str, float, Callable[[float], list[Point]]]]:
        """(method, setting, what makes the run), cheap ones first."""
        size = self.size
        every: list[tuple[str, float, Callable[[float], list[Point]]]] = [("start", 0, self.start_point)]
        every += [("best-of-n", n, self.best_of) for n in size.best_of]
        every += [("preferred-ft", 0, self.preferred)]
        every += [("dpo", beta, self.dpo) for beta in size.betas]
        for method, make in (("ppo", self.ppo), ("ppo-true", self.ppo_true)):
            every += [(method, coefficient, make) for coefficient in size.coefficients]
        only = self.settings.only  # the start stays in any case: every way begins at it
        return [run for run in every if not only or run[0] in (*only, "start")]


class Watch(TrainerCallback):
    """Measures the model that one of TRL's trainers is training, `measured` times on its way."""

    def __init__(self, experiment: Frontier) -> None:
        self.experiment, self.points = experiment, list[Point]()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in moments_of(state.max_steps, self.experiment.size.measured):
            policy = Policy(model, self.experiment.bf16)
            self.points.append(self.experiment._measured(policy) | {"steps": state.global_step})
            model.train()  # measuring leaves it in evaluation mode


def moments_of(steps: int, count: int) -> set[int]:
    """Steps at which a run of so many is measured, evenly spaced, the last one included."""
    return {round(steps * (i + 1) / count) for i in range(count)} - {0}


def texts_of(rows: Dataset, data: DataArguments) -> list[Any]:
    """The texts of some rows, each with its row's columns."""
    texts = rows[prompt_column(rows, data)][:]
    return [AskedRewards(text, row) for text, row in zip(texts, reward_columns(rows), strict=True)]


def run_points(frontier: Frontier) -> list[dict[str, Any]]:
    """All runs of the plan that are missing, at most `max_points` of them; gives back every point
    that is there.
    """
    made = 0
    for method, setting, make in frontier.plan():
        file = frontier.folder / "points" / f"{method}-{setting}.json"
        if not file.is_file() and (
            frontier.settings.max_points is None or made < frontier.settings.max_points
        ):
            logger.warning("%s %s", method, setting)
            started = time.perf_counter()
            points = [{"method": method, "setting": setting, "steps": 0, **point} for point in make(setting)]
            # whole or not at all: a file is the sign that the run is done
            write_atomically(
                file, json.dumps({"points": points, "seconds": time.perf_counter() - started}, indent=1)
            )
            made += 1
    files = sorted((frontier.folder / "points").glob("*.json"))
    return [point for file in files for point in json.loads(file.read_text())["points"]]
