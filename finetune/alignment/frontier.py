"""Reward against KL: DPO, PPO, best-of-n and preferred fine-tuning from one tuned start (Rafailov et al. 2023, figure 2, left).

Each point is a file; finished points are not run again. Knows every method of alignment; knows no plots.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate import Accelerator
from datasets import Dataset

from finetune.adapters.artefact import save_artefact
from finetune.alignment.learner import KLArguments, Learner, PPOArguments, step_prompts
from finetune.alignment.measure import measure, standard_error
from finetune.alignment.pairwise import (
    DPOTrainingArguments,
    RewardTrainingArguments,
    make_dpo_trainer,
    make_reward_trainer,
    pair_margins,
)
from finetune.alignment.policy import Policy, load_base, load_scorer
from finetune.alignment.preferences import sound_pairs
from finetune.alignment.prompts import beginning
from finetune.alignment.rewards import Reward, RewardArguments, load_reward, on_policy_base
from finetune.alignment.rollout import SamplingArguments
from finetune.alignment.sampling import make_pairs, scored_answers
from finetune.data.sources import sample
from finetune.errors import InputError
from finetune.methods import attach
from finetune.models.load import ModelArguments
from finetune.training.checkpoints import open_run, write_atomically
from finetune.training.plan import has_fast_bf16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """How much of everything. Rows and prompts in numbers, lengths in tokens."""

    sft_rows: int
    prompts: int
    held_out: int
    new_tokens: int
    epochs: int
    ppo_steps: int
    rollout: int
    betas: tuple[float, ...]
    coefficients: tuple[float, ...]
    best_of: tuple[int, ...]


SIZES = {
    "smoke": Size(32, 16, 16, 12, 1, 2, 16, (0.1,), (0.05,), (2,)),
    "cpu": Size(512, 256, 128, 24, 2, 40, 48, (0.05, 0.1, 0.5, 1.0), (0.01, 0.05, 0.2), (2, 4, 8)),
    "gpu": Size(20000, 8000, 512, 48, 3, 200, 256, (0.05, 0.1, 0.2, 0.5, 1.0), (0.003, 0.01, 0.03, 0.1, 0.3), (2, 4, 8, 16)),
}


@dataclass
class FrontierArguments:
    """Which experiment, how large."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the experiment; finished points in it stay."})
    size: str = field(default="smoke", metadata={"help": "smoke (minutes on two cores), cpu (hours, point by point), gpu."})
    max_points: int | None = field(default=None, metadata={"help": "Run at most so many points that are missing, then stop."})
    only: list[str] | None = field(
        default=None, metadata={"help": "Only these methods: best-of-n preferred-ft dpo ppo ppo-true."}
    )
    prompt_tokens: int = field(default=8, metadata={"help": "The first so many tokens of a review are its prompt."})
    ppo_steps: int | None = field(default=None, metadata={"help": "Steps of each PPO point instead of the size's own."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of every method, on LoRA of rank 16."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        if self.size not in SIZES:
            raise InputError(f"--size is '{self.size}'; wanted one of: {', '.join(SIZES)}")


class Frontier:
    """Holds what all points share: texts, start, true reward, pairs, learnt reward; each made once and kept in the folder."""

    def __init__(
        self, settings: FrontierArguments, model: ModelArguments, reward: RewardArguments, train: Dataset, test: Dataset
    ) -> None:
        self.settings, self.size, self.folder = settings, SIZES[settings.size], Path(str(settings.output_dir))
        self.model, self.reward, self.bf16 = model, reward, has_fast_bf16()
        self.start = ModelArguments(**(vars(model) | {"model_name_or_path": str(self.folder / "sft")}))
        self.sampling = SamplingArguments(max_new_tokens=self.size.new_tokens)
        self.truth = load_reward(reward)
        self.train, self.test = (sample(part, None, settings.seed) for part in (train, test))
        (self.folder / "points").mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """The tuned start, pairs from it, and a reward model on those, where they aren't there yet."""
        processor, network = load_base(self.model)
        column = "text"
        cut = [beginning(text, self.settings.prompt_tokens, processor) for text in self.train[column][: self.size.prompts]]
        later = self.train[column][self.size.prompts : self.size.prompts + self.size.sft_rows]
        self.prompts = cut
        self.held_out = [
            beginning(text, self.settings.prompt_tokens, processor) for text in self.test[column][: self.size.held_out]
        ]
        if not (self.folder / "sft" / "metrics.json").is_file():
            reach = self.settings.prompt_tokens + self.size.new_tokens
            self.fine_tune(network, processor, [beginning(text, 2 * reach, processor) for text in later], "sft")
        self.pairs = self._pairs()
        if not (self.folder / "reward" / "metrics.json").is_file():
            self._reward_model()

    def fine_tune(self, network: Any, processor: Any, texts: Sequence[str], name: str) -> Any:
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
            model=network, args=options, train_dataset=Dataset.from_dict({"text": list(texts)}), processing_class=processor
        )
        trainer.train()
        save_artefact(network, processor, folder, None, {"texts": len(texts)})
        return network

    def _claim(self, name: str, base: ModelArguments) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)  # a step that was stopped in the middle starts again
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
            "output_dir": str(folder), "learning_rate": self.settings.learning_rate, "bf16": self.bf16, "report_to": "none",
            "per_device_train_batch_size": 16, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 5,
            "disable_tqdm": True, "activation_checkpointing": False, "gradient_checkpointing": None,
            "use_cpu": not torch.cuda.is_available(),
            "seed": self.settings.seed, "warmup_steps": 0.1, "dataloader_pin_memory": torch.cuda.is_available(),
        }  # fmt: skip

    def _pairs(self) -> Dataset:
        file = self.folder / "pairs.json"
        if not file.is_file():
            processor, network = load_base(self.start)
            pairs = make_pairs(
                self._placed(network), processor, self.prompts, self.truth, 4,
                sampling=self.sampling, seed=self.settings.seed, bf16=self.bf16,
            )  # fmt: skip
            rows = sound_pairs(Dataset.from_list(pairs), processor, 512, True, "training")
            write_atomically(file, json.dumps(rows.to_list()))
        return Dataset.from_list(json.loads(file.read_text()))

    def _reward_model(self) -> None:
        torch.manual_seed(self.settings.seed)
        processor, network = load_scorer(self.start)
        folder = self._claim("reward", self.start)
        rows = self.pairs.select_columns(["prompt", "chosen", "rejected"])
        kept = rows.train_test_split(test_size=max(1, len(rows) // 5), seed=self.settings.seed)
        network = attach(network, "lora", None, "SEQ_CLS")
        options = RewardTrainingArguments(**self._shared(folder), num_train_epochs=self.size.epochs, max_length=512)
        trainer = make_reward_trainer(network, processor, options, kept["train"], kept["test"])
        trainer.train()
        right = pair_margins(network, processor, kept["test"], 512) > 0
        save_artefact(network, processor, folder, None, {"accuracy": float(right.mean()), "pairs": len(right)})

    def _placed(self, network: Any) -> Any:
        return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    # ---- points: each gives {reward, error, kl, ...} on the held-out prompts ----

    def dpo(self, beta: float) -> dict[str, float]:
        torch.manual_seed(self.settings.seed)
        processor, network = load_base(self.start)
        policy = Policy(attach(network, "lora", None, "CAUSAL_LM"))
        options = DPOTrainingArguments(
            **self._shared(self.folder / "work"), num_train_epochs=self.size.epochs, max_length=512, beta=beta
        )
        rows = self.pairs.select_columns(["prompt", "chosen", "rejected"])
        make_dpo_trainer(policy.network, processor, options, rows, rows.select([0])).train()
        return self._measured(policy, processor)

    def ppo(self, coefficient: float, learnt: bool = True) -> dict[str, float]:
        torch.manual_seed(self.settings.seed)
        processor, network = load_base(self.start)
        policy = Policy(attach(network, "lora", None, "CAUSAL_LM"))
        reward = self.truth
        if learnt:
            shared = on_policy_base(policy, self.start, RewardArguments(reward=f"model:{self.folder / 'reward'}"))
            assert shared is not None
            reward = shared
        size = self.size
        learner = Learner(
            policy, processor, reward, Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available()),
            settings=PPOArguments(learning_rate=self.settings.learning_rate, rollout_batch_size=size.rollout,
                                  minibatch_size=size.rollout // 2, whiten_rewards=learnt),
            kl=KLArguments(kl_coefficient=coefficient), sampling=self.sampling, bf16=self.bf16, seed=self.settings.seed,
        )  # fmt: skip
        while learner.step < (self.settings.ppo_steps or size.ppo_steps):
            figures, _ = learner.learn(step_prompts(self.prompts, self.settings.seed, learner.step, size.rollout))
            logger.warning("step %d: reward %.3f, KL %.2f", learner.step, figures["reward"], figures["kl"])
        return self._measured(policy, processor)

    def ppo_true(self, coefficient: float) -> dict[str, float]:
        return self.ppo(coefficient, learnt=False)

    def preferred(self, setting: float) -> dict[str, float]:
        processor, network = load_base(self.start)
        texts = [row["prompt"] + row["chosen"] for row in self.pairs]
        return self._measured(Policy(self.fine_tune(network, processor, texts, "preferred")), processor)

    def best_of(self, n: float) -> dict[str, float]:
        """n answers to each prompt, the learnt reward's favourite kept; its KL to the start is log n - (n - 1) / n."""
        processor, network = load_base(self.start)
        reward: Reward = load_reward(RewardArguments(reward=f"model:{self.folder / 'reward'}"))
        answers, scores = scored_answers(
            self._placed(network), processor, self.held_out, reward, each=int(n), sampling=self.sampling, seed=77, bf16=self.bf16
        )
        best = [texts[max(range(len(texts)), key=values.__getitem__)] for texts, values in zip(answers, scores, strict=True)]
        true = self.truth(self.held_out, [text or " " for text in best])
        return {"reward": sum(true) / len(true), "error": standard_error(true), "kl": math.log(n) - (n - 1) / n}

    def _measured(self, policy: Policy, processor: Any) -> dict[str, float]:
        self._placed(policy)
        return measure(policy, processor, self.held_out, self.truth, sampling=self.sampling, bf16=self.bf16)[0]

    def start_point(self, setting: float) -> dict[str, float]:
        processor, network = load_base(self.start)
        return self._measured(Policy(attach(network, "lora", None, "CAUSAL_LM")), processor)

    def plan(self) -> list[tuple[str, float, Callable[[float], dict[str, float]]]]:
        """(method, setting, what makes the point), cheap ones first."""
        size = self.size
        every: list[tuple[str, float, Callable[[float], dict[str, float]]]] = [("start", 0, self.start_point)]
        every += [("best-of-n", n, self.best_of) for n in size.best_of]
        every += [("preferred-ft", 0, self.preferred)]
        every += [("dpo", beta, self.dpo) for beta in size.betas]
        for method, make in (("ppo", self.ppo), ("ppo-true", self.ppo_true)):
            every += [(method, coefficient, make) for coefficient in size.coefficients]
        only = self.settings.only
        return [point for point in every if not only or point[0] in (*only, "start")]


def run_points(frontier: Frontier) -> list[dict[str, Any]]:
    """All points of the plan that are missing, at most `max_points` of them; gives back every point that is there."""
    done: list[dict[str, Any]] = []
    for method, setting, make in frontier.plan():
        file = frontier.folder / "points" / f"{method}-{setting}.json"
        if not file.is_file() and (frontier.settings.max_points is None or len(done) < frontier.settings.max_points):
            logger.warning("%s %s", method, setting)
            steps = frontier.settings.ppo_steps or frontier.size.ppo_steps if method.startswith("ppo") else 0
            write_atomically(file, json.dumps({"method": method, "setting": setting, **make(setting), "ppo_steps": steps}))
            done.append(file)
    return [json.loads(file.read_text()) for file in sorted((frontier.folder / "points").glob("*.json"))]
