"""What one sees of a run of alignment, in three files of its folder. Knows figures; knows no model, no
trainer and no page.

`log.jsonl`, a line a step:
    {"step": 12, "reward": ..., "rewards/NAME/mean": ..., "rewards/NAME/std": ..., "rewards/NAME/applies":
    ..., "kl": ...,
     "length": ..., "ended": ..., "empty": ..., "entropy": ..., "clip_share": ..., ...}
    kl in nats a sequence, entropy in nats a token, length in tokens, the others shares. Step 0 and every step
    that is measured also have "true_reward", "true_reward_error" and "held_out_kl" of the held-out prompts.
    PPO adds its value model's figures.

`answers.jsonl`, a line each time the policy is measured, always on the same prompts with the same uniforms:
    {"step": 0, "answers": [{"prompt": text or messages, "answer": text, "score": number or null, "ended":
    bool}, ... 8],
     "scores": [number or null, ...], "kl": number}       scores of all held-out prompts, in their order

`alignment.json`, at the end:
    {"algorithm": "ppo", "prompts": 128, "before": {...}, "after": {...},    the first and the last
    measurement
     "difference": {"mean": ..., "interval": [low, high], "prompts": ...},   of the scores, paired by prompt,
     95 % "warnings": [{"name": "far", "text": "The reward rose from ..."}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.artefacts.files import write_atomically
from finetune.metrics import bootstrap

LOG, ANSWERS_FILE, SUMMARY = "log.jsonl", "answers.jsonl", "alignment.json"
SHOWN = 8  # prompts whose answers are shown through time
FAR = 10.0  # nats of KL a sequence from where a rising reward is suspicious
RecordLine = dict[str, Any]


def lines_before(file: Path, step: int) -> list[RecordLine]:
    """The lines of a file up to a step that a run continues from; none where it begins."""
    # A run that begins anew leaves its predecessor's lines behind.
    if step == 0 or not file.is_file():
        return []
    # by line feeds alone: a text may hold other signs that Python splits at
    entries = [json.loads(text) for text in file.read_text(encoding="utf-8").split("\n") if text]
    # Steps after the checkpoint are made again and would stand there twice.
    return [entry for entry in entries if entry["step"] <= step]


def write_lines(file: Path, lines: Sequence[RecordLine]) -> None:
    # Written whole each time: a line that a kill cut short would end the reading of all.
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def answers_line(step: int, figures: dict[str, float], samples: Sequence[dict[str, Any]]) -> RecordLine:
    """A line of answers.jsonl from what `measure` gives."""
    scores = [sample["score"] for sample in samples]
    return {"step": step, "answers": list(samples[:SHOWN]), "scores": scores, "kl": figures["kl"]}


def measured(figures: dict[str, float]) -> RecordLine:
    """What a measurement adds to the log."""
    return {
        "true_reward": figures["reward"], "true_reward_error": figures["error"], "held_out_kl": figures["kl"],
        "held_out_length": figures["length"], "held_out_ended": figures["ended"],
        "held_out_empty": figures["empty"],
    }  # fmt: skip


def summary(algorithm: str, log: Sequence[RecordLine], answers: Sequence[RecordLine]) -> dict[str, Any]:
    """What alignment.json holds."""
    # Step 0 and the last step are always measured, so that there is a first and a last.
    seen = [line for line in log if "true_reward" in line]
    names = (
        "true_reward",
        "true_reward_error",
        "held_out_kl",
        "held_out_length",
        "held_out_ended",
        "held_out_empty",
    )
    before, after = ({name: line[name] for name in names if name in line} for line in (seen[0], seen[-1]))
    return {
        "algorithm": algorithm,
        "prompts": len(answers[0]["scores"]) if answers else 0,
        "before": before,
        "after": after,
        "difference": paired(answers[0]["scores"], answers[-1]["scores"]) if answers else {},
        "warnings": warnings_of(log),
    }


def paired(before: Sequence[float | None], after: Sequence[float | None]) -> dict[str, Any]:
    """Mean of after - before over the prompts that have both scores, with its bootstrap interval over
    prompts.
    """
    # Only prompts with both: a mean over different prompts would be no difference of the policies.
    both = [
        (one, other)
        for one, other in zip(before, after, strict=True)
        if one is not None and other is not None
    ]
    if not both:
        return {"prompts": 0}
    change = np.array([other - one for one, other in both])
    return {
        "mean": float(change.mean()),
        "interval": list(bootstrap.interval(change)),
        "prompts": len(both),
    }


def warnings_of(log: Sequence[RecordLine]) -> list[dict[str, str]]:
    """What a person should look at, in words; from the lines of steps, of which it wants five or more."""
    # Step 0 is a measurement without a reward of its own.
    steps = [line for line in log if line["step"] > 0 and "reward" in line]
    if len(steps) < 5:
        return []
    # Means of five steps: a single step's figures are noise.
    first, last = (_means(part) for part in (steps[:5], steps[-5:]))
    found = {
        # A rise alone is what training is for; far away, it may be the reward alone that is pleased.
        "far": last["kl"] > FAR and last["reward"] > first["reward"]
        and f"The reward rose from {first['reward']:.3g} to {last['reward']:.3g} while KL passed {FAR:g} "
        f"nats a sequence ({last['kl']:.1f}): read the answers, the policy may please the reward alone.",
        # Twice what it was: some prompts are answered by nothing from the start.
        "empty": last.get("empty", 0) > 0.05 and last["empty"] > 2 * first["empty"]
        and f"Answers become empty: {first['empty']:.0%} in the first steps, "
        f"{last['empty']:.0%} in the last.",
        "cut": last["ended"] < 0.1
        and f"{1 - last['ended']:.0%} of the last answers were cut before their end; raise the longest "
        "answer, or set --missing_eos_penalty.",
        "values": "explained_variance" in last
        # Twenty: values begin at nothing and need a while.
        and len(steps) >= 20
        and last["explained_variance"] < 0.05
        and "The values explain nothing of the returns (explained variance "
        f"{last['explained_variance']:.2f}): advantages are noisy; set --value_from "
        "reward, or a higher --value_learning_rate.",
        # Below 0.1 at the start a policy was sure from the beginning.
        "silent": first["entropy"] > 0.1 and last["entropy"] < 0.1 * first["entropy"]
        and f"Entropy fell from {first['entropy']:.2f} to {last['entropy']:.2f} nats a token: the policy "
        "says the same again and again; lower the learning rate or raise the KL coefficient.",
        "flat": all(line.get("reward_std", 1.0) == 0 for line in steps)
        and "The reward was the same for all answers of every step: there was nothing to learn.",
    }  # fmt: skip
    found |= {
        f"unscored {name}": f"The reward {name} applied to no answer of any step: nothing was learnt from "
        "it, and its mean of 0 stands for no figure."
        for name in _unscored(steps)
    }
    return [{"name": name, "text": str(text)} for name, text in found.items() if text]


def _unscored(steps: Sequence[RecordLine]) -> list[str]:
    """Rewards that said nothing of any answer; lines name their shares `rewards/NAME/applies`."""
    shares: dict[str, list[float]] = {}
    for line in steps:
        for key, value in line.items():
            if key.startswith("rewards/") and key.endswith("/applies"):
                shares.setdefault(key.split("/")[1], []).append(value)
    return [name for name, values in shares.items() if not any(values)]


def _means(lines: Sequence[RecordLine]) -> dict[str, float]:
    names = {name for line in lines for name, value in line.items() if isinstance(value, (int, float))}
    # Lines of an older or another trainer may lack a figure.
    means = {name: float(np.mean([line[name] for line in lines if name in line])) for name in names}
    # What isn't logged must raise no warning: 1 for `ended`, 0 for the others.
    return dict.fromkeys(("kl", "reward", "empty", "entropy"), 0.0) | {"ended": 1.0} | means


def write_summary(
    folder: Path, algorithm: str, log: Sequence[RecordLine], answers: Sequence[RecordLine]
) -> dict[str, Any]:
    """Write alignment.json and say its warnings and the paired difference."""
    found = summary(algorithm, log, answers)
    write_atomically(folder / SUMMARY, json.dumps(found, indent=1))
    if found["difference"].get("interval"):
        low, high = found["difference"]["interval"]
        print(
            f"held-out reward {found['before']['true_reward']:.3f} → {found['after']['true_reward']:.3f}, by "
            "prompt "
            f"{found['difference']['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    for warning in found["warnings"]:
        print(f"warning: {warning['text']}")
    return found
