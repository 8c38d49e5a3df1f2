"""A learner and prompts → a run: steps, logs, tables, checkpoints, a folder. Knows files; knows no arithmetic."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from finetune.alignment.experience import step_prompts
from finetune.alignment.measure import measure
from finetune.alignment.policy import REWARD, has_adapter
from finetune.alignment.ppo_trainer import Learner
from finetune.alignment.prompts import prompt_ids
from finetune.alignment.rewards import Prompt, Reward
from finetune.alignment.rollout import check_room
from finetune.alignment.trl_options import check_task
from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import save_artefact
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
        metadata={"help": "bf16 autocast over float32 weights (default: where the hardware has it)."},
    )
    save_steps: int = field(default=20, metadata={"help": "A checkpoint every so many steps."})
    eval_steps: int = field(
        default=20,
        metadata={"help": "Measure on held-out prompts every so many steps; always at start and end."},
    )
    eval_prompts: int = field(default=128, metadata={"help": "Held-out prompts to measure on."})
    true_reward: str | None = field(
        default=None,
        metadata={
            "help": "Measure held-out answers by this reward, written as --reward is (default: --reward itself)."
        },
    )
    time_limit: str | None = field(
        default=None,
        metadata={
            "help": "Save and stop (exit 143) before so long has passed, as 3h55m; SIGTERM and SIGUSR1 do it at once."
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
        if self.bf16 is None:
            self.bf16 = has_fast_bf16()


def run(
    learner: Learner,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    settings: RunArguments,
    truth: Reward,
) -> dict[str, Any]:
    """All steps that are left, and the figures of the policy before and after on held-out prompts.

    `log.jsonl` gets one line a step; lines after a checkpoint that the run continues from are written anew.
    """
    folder, main = Path(str(settings.output_dir)), learner.accelerator.is_main_process
    held_out = held_out[: settings.eval_prompts]
    lengths = [len(prompt_ids(learner.processor, prompt)) for prompt in (*prompts, *held_out)]
    check_room(
        learner.policy.network, lengths, learner.sampling.max_new_tokens
    )  # now, not when a long one has its turn
    lines = _lines_before(folder / "log.jsonl", learner.step)
    if learner.step == 0:
        lines.append({"step": 0, **_measured(learner, held_out, truth, settings)})
    steps, notice = learner.settings.steps, Notice(settings.time_limit and seconds_of(settings.time_limit))
    notice.listen()
    while learner.step < steps:
        batch = step_prompts(prompts, learner.seed, learner.step, learner.settings.rollout_batch_size)
        figures, _ = learner.learn(batch)
        if learner.step % settings.eval_steps == 0 or learner.step == steps:
            figures |= _measured(learner, held_out, truth, settings)
        lines.append(figures)
        if main:
            print(line(figures, steps), flush=True)
            write_atomically(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in lines))
        reason = notice.due() if learner.step < steps else None
        if main and learner.step < steps and (reason or learner.step % settings.save_steps == 0):
            learner.save(folder)
        learner.accelerator.wait_for_everyone()
        if reason:
            leave_stopped(reason, f"checkpoint-{learner.step}")
    notice.leave()
    measured = [entry for entry in lines if "true_reward" in entry]
    return {
        "before": _part(measured[0]),
        "after": _part(measured[-1]),
        "steps": steps,
        "seconds": _seconds(lines),
    }


def _measured(
    learner: Learner, held_out: Sequence[Prompt], truth: Reward, settings: RunArguments
) -> dict[str, float]:
    """Held-out figures, on the main process; the others wait at the next step."""
    if not learner.accelerator.is_main_process:
        return {"true_reward": 0.0}
    figures, samples = measure(
        learner.policy, learner.processor, held_out, truth, sampling=learner.sampling, empty_score=learner.empty_score,
        batch_size=learner.settings.per_device_batch_size,
    )  # fmt: skip
    folder = Path(str(settings.output_dir))
    write_atomically(folder / f"samples-{learner.step}.md", sample_table(samples[: settings.samples]))
    print(
        f"held-out | true reward {figures['reward']:.3f} ± {figures['error']:.3f} | KL {figures['kl']:.2f} nats a sequence",
        flush=True,
    )
    return {
        "true_reward": figures["reward"],
        "true_reward_error": figures["error"],
        "held_out_kl": figures["kl"],
    }


def sample_table(samples: Sequence[dict[str, Any]]) -> str:
    """Prompt, answer and score of some answers, as Markdown."""
    rows = [
        {"score": f"{s['score']:.3f}", "prompt": _cell(s["prompt"]), "answer": _cell(s["answer"])}
        for s in samples
    ]
    return markdown(rows) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else value[-1]["content"]
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
        f"length {figures['length']:.1f} | ended {figures['ended']:.2f} | empty {figures['empty']:.2f} | {times}"
    )


def _lines_before(path: Path, step: int) -> list[dict[str, float]]:
    if step == 0 or not path.is_file():
        return []
    entries = [json.loads(text) for text in path.read_text().splitlines()]
    return [entry for entry in entries if entry["step"] <= step]


def _part(entry: dict[str, float]) -> dict[str, float]:
    return {key: entry[key] for key in ("true_reward", "true_reward_error", "held_out_kl") if key in entry}


def _seconds(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for entry in lines for name in entry if name.startswith("seconds_")}
    return {
        name.removeprefix("seconds_"): sum(entry.get(name, 0.0) for entry in lines) for name in sorted(names)
    }


def save_policy(learner: Learner, settings: RunArguments, metrics: dict[str, Any]) -> None:
    """The policy as an artefact, the value head beside it; on the main process."""
    network, folder = learner.policy.network, Path(str(settings.output_dir))
    if has_adapter(network) and REWARD in network.peft_config:
        network.delete_adapter(REWARD)
    save_file(
        {n: p.contiguous().cpu() for n, p in learner.policy.head.state_dict().items()},
        folder / "value_head.safetensors",
    )
    save_artefact(network, learner.processor, folder, None, metrics)
