"""Answers and their rows → scores: several rewards, asked, checked and added up. Knows what a reward is;
knows no kind of it.

A reward is a function `f(prompts, completions, **columns)` that gives one number an answer; True and False
count as 1 and 0, and None says that it doesn't apply. `columns` are the columns of the data set, each a list
as long as the prompts. It sees text
alone and tokenises it itself: ids of one tokenizer mean nothing to another.

Several rewards become one score an answer, for every verb the same way:

    R = Σ_k w_k · z_k   over the rewards k that apply,   z_k = r_k, or (r_k - mean_k) / deviation_k with
    --normalise_rewards,

mean and deviation over the answers that are scored together (a step's, or all of a file), over all processes.
An answer without
text is asked about by nobody: it gets --empty_score, or what lies one deviation below the lowest R of the
others, so that it never wins, whatever the scale. The deviation is the largest that this run has seen:
answers that have all come to score alike must not make room for empty ones. As long as no two have ever
differed it is 0, and nothing is taught. R - --missing_eos_penalty is the score of an answer that didn't end
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.alignment.reward_calls import Score, called
from finetune.errors import InputError, check_above, check_least

RewardPrompt = str | list[dict[str, Any]]
Reward = Callable[..., Sequence[Score]]
Array = np.ndarray


@dataclass(frozen=True)
class AskedRewards:
    """A prompt, as text or conversation, the columns of the row that it came from, and the tools that a
    conversation is asked with (JSON schemas).
    """

    prompt: RewardPrompt
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None


@dataclass
class RewardArguments:
    """What scores an answer."""

    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or several of: classifier:FOLDER[:LABEL] (probability of a label, by default the "
            "last), "
            "model:FOLDER[:HEAD=WEIGHT,...] (a reward model), process:FOLDER[:min|product|last] (one that "
            "judges steps), function:FILE.py:NAME or function:MODULE:NAME (f(prompts, "
            "completions, "
            "**columns) → numbers), prompt:MODEL:TEXT|GOOD|BAD (how much likelier GOOD is than BAD after "
            "TEXT, which holds "
            "{text}), judge:MODEL_OR_URL[|TEXT] (a mark that a language model gives), same_number[:COLUMN], "
            "length:WORDS, "
            "format:REGEX, regex:REGEX, unit_tests[:COLUMN]. FILE.py is run."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward (default: 1 each)."}
    )
    normalise_rewards: bool = field(
        default=False,
        metadata={
            "help": "Bring each reward to mean 0 and deviation 1 over a step's answers before they are added "
            "up."
        },
    )
    reward_errors: str = field(
        default="stop",
        metadata={
            "help": "Where a reward fails on a row, takes too long or gives no number: stop, or none (that "
            "row gets no score "
            "from it, the log counts them, and the run goes on)."
        },
    )
    reward_timeout: float = field(
        default=600.0, metadata={"help": "Seconds that a function or judge may take for a batch."}
    )
    reward_logit: bool = field(
        default=False, metadata={"help": "A classifier's log-odds of the label instead of its probability."}
    )
    reward_part: str = field(
        default="full", metadata={"help": "What models read: full (prompt and answer) or answer."}
    )
    reward_on_policy_base: bool = field(
        default=True,
        metadata={
            "help": "Load a reward model that is an adapter of the policy's base onto that base, instead of "
            "its own."
        },
    )
    reward_batch_size: int = field(default=32, metadata={"help": "Texts scored together."})
    missing_eos_penalty: float = field(
        default=0.0, metadata={"help": "Taken from the score of an answer that didn't end by itself."}
    )
    empty_score: float | None = field(
        default=None,
        metadata={
            "help": "Score of an answer without text (default: one deviation below the lowest of the others)."
        },
    )

    def __post_init__(self) -> None:
        if self.reward_part not in ("full", "answer"):
            raise InputError(f"--reward_part is '{self.reward_part}'; wanted full or answer")
        if self.reward_errors not in ("stop", "none"):
            raise InputError(f"--reward_errors is '{self.reward_errors}'; wanted stop or none")
        check_least(self, 1, "reward_batch_size")
        check_above(self, 0, "reward_timeout")
        if isinstance(self.reward, str):
            self.reward = [self.reward]


def as_text(prompt: RewardPrompt, answer: str, part: str) -> str:
    """What a model reads: the answer, or prompt and answer as one text (of a conversation, one
    message a line).
    """
    if part == "answer":
        return answer
    if isinstance(prompt, str):
        return prompt + answer
    # A turn that calls a tool has no content.
    return "\n".join([*(message["content"] or "" for message in prompt), answer])


@dataclass(frozen=True)
class Part:
    """One reward by its name and weight."""

    name: str
    score: Reward
    weight: float = 1.0


@dataclass(frozen=True)
class Scores:
    """What answers got: total [answers], NaN where no reward applies; each reward's own scores
    [answers, rewards] likewise.
    """

    total: Array
    parts: Array


class Rewards:
    """Several rewards as one.

    Raises:
        InputError: weights of another number than the rewards.
    """

    def __init__(self, parts: Sequence[Part], settings: RewardArguments | None = None) -> None:
        self.parts, self.settings = list(parts), settings or RewardArguments()
        self.weights = np.array([part.weight for part in self.parts], dtype=np.float64)
        # Kept over steps; see the module's first lines.
        self.spread = 0.0  # the largest deviation of scores so far

    @classmethod
    def of(cls, **rewards: Reward) -> Rewards:
        """Functions by name, each of weight 1."""
        return cls([Part(name, score) for name, score in rewards.items()])

    def plain(self) -> Rewards:
        """The same without normalising or a penalty, whose sums can be compared from one measurement
        to the next.
        """
        # Neither changes the policy's answers; both would change how two measurements compare.
        return Rewards(self.parts, replace(self.settings, normalise_rewards=False, missing_eos_penalty=0.0))

    def ask(self, rows: Sequence[AskedRewards], answers: Sequence[str]) -> Array:
        """Each reward's score of each answer, [answers, rewards]; NaN where it doesn't apply or the answer
        has no text.

        Raises:
            InputError: a reward that fails or gives no number, where --reward_errors is stop.
        """
        asked = [i for i, answer in enumerate(answers) if answer.strip()]
        table = np.full((len(answers), len(self.parts)), np.nan)
        if not asked:
            return table
        prompts, texts = [rows[i].prompt for i in asked], [answers[i] for i in asked]
        columns = as_lists([rows[i] for i in asked])
        # A limit a reward, since each may hang by itself.
        stop, limit = self.settings.reward_errors == "stop", self.settings.reward_timeout
        for place, part in enumerate(self.parts):
            found = called(part.name, part.score, prompts, texts, columns, stop=stop, limit=limit)
            table[asked, place] = [np.nan if score is None else score for score in found]
        return table

    def combine(self, table: Array, empty: Array, ended: Array | None = None) -> Scores:
        """The scores of answers from what each reward said, [answers, rewards]; see the module's formula.

        Args:
            empty: [answers], true where an answer has no text.
            ended: [answers], true where one ended by itself; None asks for no penalty.
        """
        settings, parts = self.settings, table
        if settings.normalise_rewards:
            table = np.stack([standardised(column) for column in table.T], axis=1)
        applies = ~np.isnan(table)
        # NaN is not 0: an answer that no reward applies to is unscored, one that is scored 0 is bad.
        total = np.where(applies, table * self.weights, 0.0).sum(1)
        total[~applies.any(1)] = np.nan
        # Without the empty ones, whose score is about to follow from this.
        self.spread = max(self.spread, deviation_of(total[~empty]))
        # `initial` for a batch in which all are empty.
        lowest = np.nanmin(total[~empty], initial=np.inf)
        # Nothing to lie below: 0, the middle of standardised scores.
        below = lowest - self.spread if np.isfinite(lowest) else 0.0
        total[empty] = below if settings.empty_score is None else settings.empty_score
        if ended is not None:
            # Empty answers too: one may be cut, if all of its tokens are blank.
            total = total - settings.missing_eos_penalty * ~ended
        return Scores(total, parts)

    def figures(self, parts: Array) -> dict[str, float]:
        """Mean, deviation and share of answers that each reward applied to, by TRL's names; parts
        [answers, rewards].
        """
        found: dict[str, float] = {}
        for part, column in zip(self.parts, parts.T, strict=True):
            # NaN out first: numpy warns of a mean of nothing.
            kept = column[~np.isnan(column)]
            found[f"rewards/{part.name}/mean"] = float(kept.mean()) if len(kept) else 0.0
            found[f"rewards/{part.name}/std"] = float(kept.std()) if len(kept) else 0.0
            found[f"rewards/{part.name}/applies"] = len(kept) / max(len(column), 1)
        return found


def as_lists(rows: Sequence[AskedRewards]) -> dict[str, list[Any]]:
    """The columns of some rows, each a list; a column that a row lacks is None there."""
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return {name: [row.columns.get(name) for row in rows] for name in names}


def standardised(scores: Array) -> Array:
    """Scores less their mean, in their deviations; all alike become 0, and NaN stays. [answers]"""
    # All NaN would give a mean of nothing.
    if np.isnan(scores).all():
        return scores
    mean, deviation = centre(scores)
    return (scores - mean) / deviation


def centre(scores: Array) -> tuple[float, float]:
    """Mean and deviation of the scores that are numbers; 0 and 1 without any, and 1 where they differ
    by rounding alone.
    """
    kept, deviation = scores[~np.isnan(scores)], deviation_of(scores)
    if not deviation:
        return float(kept[0]) if len(kept) else 0.0, 1.0  # a computed mean could miss it by a rounding
    return float(kept.mean()), deviation


def deviation_of(scores: Array) -> float:
    """Standard deviation of the scores that are numbers; 0 without any, or where they differ by
    rounding alone.
    """
    kept = scores[~np.isnan(scores)]
    # Equal scores computed in another order differ by rounding; divided by that they'd look like opinions.
    if not len(kept) or np.ptp(kept) <= 1e-9 * max(1.0, float(np.abs(kept).max())):
        return 0.0
    return float(kept.std())


def weighed(named: Sequence[tuple[str, Reward]], settings: RewardArguments) -> Rewards:
    """Rewards by the weights of the options; names that come twice get a number.

    Raises:
        InputError: weights of another number, or that are no numbers.
    """
    weights = settings.reward_weights or [1.0] * len(named)
    if len(weights) != len(named) or not np.isfinite(weights).all():
        raise InputError(
            f"--reward_weights has {len(weights)} ({', '.join(map(str, weights))}); wanted one number for "
            "each of the "
            f"{len(named)} rewards in --reward"
        )
    parts: list[Part] = []
    for (name, score), weight in zip(named, weights, strict=True):
        # `function_2` is the second `function`.
        before = sum(part.name.rpartition("_")[0] == name or part.name == name for part in parts)
        parts.append(Part(f"{name}_{before + 1}" if before else name, score, weight))
    return Rewards(parts, settings)
