"""A learner and prompts → a run: steps, logs, tables, checkpoints, a folder. Knows files; knows no
arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from safetensors.torch import save_file

from finetune.alignment import record
from finetune.alignment.experience import step_prompts
from finetune.alignment.measure import measure
from finetune.alignment.policy import REWARD, has_adapter
from finetune.alignment.ppo_trainer import Learner
from finetune.alignment.prompts import prompt_ids
from finetune.alignment.rewards import AskedRewards, Rewards
from finetune.alignment.rollout import check_room
from finetune.alignment.trl_options import check_task
from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import save_artefact
from finetune.device import device
from finetune.errors import InputError, check_least
from finetune.reports.tables import markdown
from finetune.training.interrupts import Notice, leave_stopped, seconds_of
from finetune.training.machine import has_fast_bf16

logger = logging.getLogger(__name__)


@dataclass
class RunArguments:
    """Where a run goes and what it leaves behind."""

    task: str = field(
        default="ppo",
        metadata={"help": "What arguments.yaml says of the run, which is a recipe: always ppo."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; a run that was stopped in it is continued."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of prompts, answers and minibatches."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 autocast over float32 weights (default: where it is faster here)."},
    )
    save_steps: int = field(default=20, metadata={"help": "A checkpoint every so many steps."})
    eval_steps: int = field(
        default=20,
        metadata={"help": "Measure on held-out prompts every so many steps; always at start and end."},
    )
    eval_prompts: int = field(default=128, metadata={"help": "Held-out prompts to measure on."})
    true_reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "Measure held-out answers by these rewards, written as --reward is (default: --reward "
            "itself)."
        },
    )
    report_to: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also log to these (tensorboard, wandb, mlflow, ...), as far as they are installed."
        },
    )
    time_limit: str | None = field(
        default=None,
        metadata={
            "help": "Save and stop (exit 143) before so long has passed, as 3h55m; SIGTERM and SIGUSR1 do it "
            "at once."
        },
    )
    samples: int = field(default=8, metadata={"help": "Answers in the table of samples."})

    def __post_init__(self) -> None:
        check_task(self.task, "ppo")
        check_least(self, 1, "save_steps", "eval_steps", "eval_prompts")
        if self.time_limit is not None:
            seconds_of(self.time_limit)
        if self.output_dir is None:
            raise InputError("No output folder; set --output_dir")
        if isinstance(self.true_reward, str):
            self.true_reward = [self.true_reward]
        if self.bf16 is None:
            self.bf16 = has_fast_bf16()


def run(
    learner: Learner,
    rows: Sequence[AskedRewards],
    held_out: Sequence[AskedRewards],
    settings: RunArguments,
    truth: Rewards,
) -> dict[str, Any]:
    """All steps that are left, and the figures of the policy before and after on held-out prompts.

    Leaves what record.py describes; lines after a checkpoint that the run continues from are written anew.
    """
    folder, main = Path(str(settings.output_dir)), learner.accelerator.is_main_process
    # The first ones: the same prompts at every measurement, and after a restart.
    held_out = held_out[: settings.eval_prompts]
    lengths = [len(prompt_ids(learner.processor, row.prompt, row.tools)) for row in (*rows, *held_out)]
    # now, not when a long one has its turn
    check_room(learner.policy.network, lengths, learner.sampling.max_new_tokens)
    log, answers = (
        record.lines_before(folder / name, learner.step) for name in (record.LOG, record.ANSWERS_FILE)
    )
    # Only where it begins: a continued run has this line already.
    if learner.step == 0:
        log.append({"step": 0, **_measured(learner, held_out, truth, settings, answers)})
    steps, notice = learner.settings.steps, Notice(settings.time_limit and seconds_of(settings.time_limit))
    notice.listen()
    while learner.step < steps:
        figures = learner.learn(
            step_prompts(rows, learner.seed, learner.step, learner.settings.rollout_batch_size)
        )
        if learner.step % settings.eval_steps == 0 or learner.step == steps:
            # The last step too, or there would be no figure of what is saved.
            figures |= _measured(learner, held_out, truth, settings, answers)
        log.append(figures)
        learner.accelerator.log(figures, step=learner.step)
        # One process writes.
        if main:
            print(line(figures, steps), flush=True)
            record.write_lines(folder / record.LOG, log)
            record.write_lines(folder / record.ANSWERS_FILE, answers)
        # Asked on all processes: one that left alone would leave the others waiting.
        reason = notice.due() if learner.step < steps else None
        # Not at the last step: the finished policy is saved whole, and needs no checkpoint.
        if main and learner.step < steps and (reason or learner.step % settings.save_steps == 0):
            learner.save(folder)
        # Nobody goes on, or leaves, before the checkpoint is sealed.
        learner.accelerator.wait_for_everyone()
        if reason:
            leave_stopped(reason, f"checkpoint-{learner.step}")
    # Other handlers come back.
    notice.leave()
    learner.accelerator.end_training()
    if not main:
        return {}
    found = record.write_summary(folder, "ppo", log, answers)
    parts = {name: found[name] for name in ("before", "after", "difference")}
    seconds = _seconds(log)
    return {**parts, "steps": steps, "seconds": sum(seconds.values()), "seconds_by_part": seconds}


def _measured(
    learner: Learner,
    held_out: Sequence[AskedRewards],
    truth: Rewards,
    settings: RunArguments,
    answers: list[record.RecordLine],
) -> record.RecordLine:
    """Held-out figures, on the main process; the others wait at the next step."""
    if not learner.accelerator.is_main_process:
        return {}
    figures, samples = measure(
        learner.policy, learner.processor, held_out, truth, sampling=learner.sampling,
        batch_size=learner.settings.per_device_batch_size,
    )  # fmt: skip
    folder = Path(str(settings.output_dir))
    write_atomically(folder / f"samples-{learner.step}.md", sample_table(samples[: settings.samples]))
    answers.append(record.answers_line(learner.step, figures, samples))
    print(
        f"held-out | true reward {figures['reward']:.3f} ± {figures['error']:.3f} | KL {figures['kl']:.2f} "
        "nats a sequence",
        flush=True,
    )
    return record.measured(figures)


def sample_table(samples: Sequence[dict[str, Any]]) -> str:
    """Prompt, answer and score of some answers, as Markdown."""
    rows = [
        {
            "score": "" if s["score"] is None else f"{s['score']:.3f}",
            "prompt": _cell(s["prompt"]),
            "answer": _cell(s["answer"]),
        }
        for s in samples
    ]
    return markdown(rows) + "\n"


def _cell(value: Any) -> str:
    # The last turn is what was asked; earlier ones would fill the cell.
    text = value if isinstance(value, str) else value[-1]["content"]
    # A bar would end the cell and a line break the row.
    return text.replace("|", "\\|").replace("\n", " ⏎ ")[:240]


def line(figures: dict[str, float], steps: int) -> str:
    """One step for a person to read, with where its time went."""
    parts = {
        name.removeprefix("seconds_"): value for name, value in figures.items() if name.startswith("seconds_")
    }
    times = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
    return (
        f"step {figures['step']}/{steps} | reward {figures['reward']:.3f} | KL {figures['kl']:.2f} | "
        f"entropy {figures['entropy']:.2f} | "
        f"clipped {figures['clip_share']:.2f} | value loss {figures['value_loss']:.3f} | "
        f"explained {figures['explained_variance']:.2f} | "
        f"length {figures['length']:.1f} | ended {figures['ended']:.2f} | empty {figures['empty']:.2f} | "
        f"{times}"
    )


def _seconds(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for entry in lines for name in entry if name.startswith("seconds_")}
    return {
        name.removeprefix("seconds_"): sum(entry.get(name, 0.0) for entry in lines) for name in sorted(names)
    }


def save_policy(learner: Learner, settings: RunArguments, metrics: dict[str, Any]) -> None:
    """The policy as an artefact, the value head beside it; on the main process."""
    network, folder = learner.policy.network, Path(str(settings.output_dir))
    if has_adapter(network) and REWARD in network.peft_config:
        # The reward's adapter stands on the same base, and is no part of what was trained.
        network.delete_adapter(REWARD)
    save_file(
        {n: p.contiguous().cpu() for n, p in learner.policy.head.state_dict().items()},
        folder / "value_head.safetensors",
    )
    save_artefact(network, learner.processor, folder, None, metrics)


def make_accelerator(settings: RunArguments) -> Accelerator:
    """The processes of a run and its trackers; PPO casts by itself."""
    cpu = device().type == "cpu"
    # "no": the policy has an autocast of its own, and accelerate's would cast its outputs back.
    return Accelerator(
        mixed_precision="no", cpu=cpu, log_with=trackers(settings), project_dir=settings.output_dir
    )


def trackers(settings: RunArguments) -> list[str] | None:
    """The names of --report_to, as accelerate knows them.

    Raises:
        InputError: one that isn't installed, or that accelerate hasn't heard of.
    """
    # transformers' word for none, which recipes carry.
    wanted = [name for name in settings.report_to or [] if name != "none"]
    there = [str(kind.value) for kind in get_available_trackers()]
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise InputError(
            f"--report_to names {missing[0]}, which is not installed or not known; there are: "
            f"{', '.join(there) or 'none'}"
        )
    return wanted or None
