"""Alignment's log → sections: reward, KL, entropy, answers through time, and warnings in words. Knows
what the log holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.reports import charts
from finetune.reports.blocks import Chart, Section, Table, Words, cut_text
from finetune.reports.run_folder import RunFolder

# what each figure of a step is called on the page, in the order of looking
STEP = {
    "reward": "reward", "kl": "KL, nats", "entropy": "entropy, nats a token", "length": "tokens an answer",
    "ended": "share that ended", "empty": "share empty", "clip_share": "share clipped",
    "value_loss": "value loss",
    "explained_variance": "value explains",
}  # fmt: skip
FAR = 10.0  # nats: beyond this a policy rarely writes what its start would


def alignment_sections(run: RunFolder) -> list[Section]:
    """Curves over steps, held-out figures before and after, answers through time; nothing for other runs."""
    # the log holds lines of measurements too
    steps = [line for line in run.steps if "reward" in line]
    if not steps:
        return []
    summary = run.mapping("alignment.json")
    # what the run said of itself at its end; of one that goes on the curves are judged here
    said = [one["text"] for one in summary.get("warnings", [])] if summary else warnings(steps)
    blocks: list[Table | Chart | Words] = [Words(text, warns=True) for text in said]
    # parts of a reward that is put together, each under a name of its own
    parts = sorted(
        {key for line in steps for key in line if key.startswith("rewards/") and key.endswith("/mean")}
    )
    named = STEP | {key: f"reward {key.split('/')[1]}" for key in parts}
    # a figure that no step has (a method without a value) gets no chart
    series = {
        title: _series(steps, key) for key, title in named.items() if any(key in line for line in steps)
    }
    blocks.append(Chart(charts.panels(series, "step")))
    return [Section("Learning by reward", blocks), *_held_out(run), *_answers(run)]


def reward_headline(run: RunFolder) -> str:
    """The held-out reward before and after with the paired difference's interval; nothing for other runs."""
    summary = run.mapping("alignment.json")
    bounds = summary.get("difference", {}).get("interval")
    # too few prompts with a score have none
    if not bounds:
        return ""
    before, after = (summary[moment]["true_reward"] for moment in ("before", "after"))
    return (
        f"reward {before:.3f} → {after:.3f}, by prompt {summary['difference']['mean']:+.3f} "
        f"({bounds[0]:+.3f} to {bounds[1]:+.3f})"
    )


def warnings(steps: Sequence[dict[str, Any]]) -> list[str]:
    """What a person who knows the method would say of these curves."""
    first, last, said = steps[0], steps[-1], []
    if last["reward"] > first["reward"] and last.get("kl", 0) > FAR:
        said.append(
            f"The reward rose while KL passed {FAR:.0f} nats: read the answers before you believe it."
        )
    # twice the start's share and a tenth at least: some answers are empty from the beginning
    if last.get("empty", 0) > max(2 * first.get("empty", 0), 0.1):
        said.append(
            f"{100 * last['empty']:.0f} % of the last answers are empty: the reward may like silence."
        )
    # the last ten: a single step's is too noisy to say anything
    tail = [line["explained_variance"] for line in steps[-10:] if "explained_variance" in line]
    if tail and sum(tail) / len(tail) < 0.05:
        said.append("The value explains nothing of the returns: advantages are as noisy as the rewards.")
    # without the figure the two defaults make no warning
    if last.get("entropy", 1.0) < 0.1 * first.get("entropy", 0.0):
        said.append("Entropy fell below a tenth of the start's: the policy says nearly always the same.")
    return said


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    there = [line for line in lines if line.get(key) is not None]
    # a step that lacks the figure leaves no gap in the others
    return [line["step"] for line in there], [line[key] for line in there]


def _held_out(run: RunFolder) -> list[Section]:
    measured = [line for line in run.steps if "true_reward" in line]
    if not measured:
        return []
    rows = [
        {
            "step": line["step"],
            "true reward ± standard error": f"{line['true_reward']:.3f} ± "
            f"{line.get('true_reward_error', 0):.3f}",
            "KL, nats a sequence": f"{line['held_out_kl']:.2f}" if "held_out_kl" in line else "",
        }
        for line in measured
    ]
    blocks: list[Any] = [Table(rows)]
    change = run.mapping("alignment.json").get("difference", {})
    # too few prompts give no interval
    if change.get("interval"):
        low, high = change["interval"]
        blocks.append(
            Words(
                f"By prompt, the reward changed by {change['mean']:+.3f} (95 %: {low:+.3f} to {high:+.3f}, "
                f"{change['prompts']} prompts)."
            )
        )
    return [Section("On held-out prompts", blocks)]


def _answers(run: RunFolder) -> list[Section]:
    """The same prompts' answers at each measurement, from `answers.jsonl`, as
    finetune/alignment/record.py describes it.
    """
    lines = [one | {"step": line["step"]} for line in run.lines("answers.jsonl") for one in line["answers"]]
    if not lines:
        return []
    rows = [
        {"prompt": cut_text(one["prompt"], 160), "step": one["step"], "answer": cut_text(one["answer"], 240),
         "score": "" if one["score"] is None else f"{one['score']:.3f}"}
        # by prompt and then by step, so that a reader sees one prompt's answers change
        for one in sorted(lines, key=lambda one: (str(one["prompt"]), one["step"]))
    ]  # fmt: skip
    return [Section("Answers through time", [Table(rows)])]
