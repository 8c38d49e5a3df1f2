"""Cells whose answers are weighed: labels that are the same for all rows, and choices of each row's own.
Knows arrays.

Both give [rows, answers] of log-probabilities, with NaN where no answer came and -inf where a row has fewer
choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.errors import InputError
from prompts.scoring.score import Request
from prompts.study import calibrate
from prompts.study.asking import AskedPrompts, Asking, Cell, settings
from prompts.study.options import StudyArguments
from prompts.study.parts import Parts
from prompts.study.rows import StudyRow
from prompts.templates.prompt import Prompt
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, corrected

DOMAIN_INPUTS = 20  # as many as Fei et al. 2023 draw
CALIBRATIONS = ("raw", "contextual", "domain", "pmi", "prior", "batch")
# of choices: characters is lm-evaluation-harness's acc_norm
WAYS = ("sum", "characters", "bytes", "tokens", "pmi")


@dataclass(frozen=True)
class Answers:
    """A cell's answers: part → scores of labels [rows, labels], for training and unseen rows and for what
    calibration asks.

    Attributes:
        words: part → scores of the verbalizer's words [rows, words].
        places: part → numbers of the rows that were asked (default: all).
    """

    cell: Cell
    labels: dict[str, np.ndarray]
    requests: list[Request]
    verbalizer: Verbalizer
    words: dict[str, np.ndarray]
    places: dict[str, np.ndarray] | None = None

    hows = CALIBRATIONS

    def rows(self, part: str = "unseen") -> np.ndarray:
        """Numbers of the rows that were asked."""
        # without places all rows were asked
        return np.arange(len(self.labels[part])) if self.places is None else self.places[part]

    def scores(self, how: str, part: str = "unseen") -> np.ndarray:
        """Scores after a calibration, one of CALIBRATIONS; `part` is training or unseen."""
        own = self.labels[part]
        if how == "raw":
            return own
        if how == "batch":
            # over the rows themselves, so that silent ones must not count
            return _on_answered(calibrate.batch, own)
        if how == "prior":
            return self.verbalizer.label_scores(
                # each word less its own mean, before words are joined to labels
                _on_answered(lambda words: corrected(words, words), self.words[part])
            )
        # all three ask inputs without content, under the same names
        return {"contextual": calibrate.contextual, "domain": calibrate.domain, "pmi": calibrate.pmi}[how](
            own, self.labels[how]
        )


@dataclass(frozen=True)
class StoredAnswers:
    """Answers as a run left them: how → part → scores [rows, labels]."""

    cell: Cell
    by_how: dict[str, dict[str, np.ndarray]]
    requests: list[Request]
    places: dict[str, np.ndarray]

    @property
    def hows(self) -> tuple[str, ...]:
        return tuple(self.by_how)

    def rows(self, part: str = "unseen") -> np.ndarray:
        """Numbers of the rows that were asked."""
        return self.places[part]

    def scores(self, how: str, part: str = "unseen") -> np.ndarray:
        """Scores after a calibration, as they were kept."""
        return self.by_how[how][part]


def _on_answered(function: Any, scores: np.ndarray) -> np.ndarray:
    """What looks at all rows together, on those that got an answer."""
    # means over rows would be nan by a single one
    answered = ~np.isnan(scores).any(axis=1)
    made = np.full_like(scores, np.nan)
    if answered.any():
        made[answered] = function(scores[answered])
    return made


def said(scores: np.ndarray) -> np.ndarray:
    """The likeliest answer of each row, -1 where none came: [rows, answers] → [rows]."""
    none = np.isnan(scores).any(axis=1)
    # -inf where nan stood: argmax would take nan for the largest
    return np.where(none, -1, np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1))


def label_cells(asking: Asking, model: str, prompts: list[Prompt], parts: Parts) -> list[Answers]:
    """Every prompt × number of examples × seed of one model."""
    found = []
    blanks = blank_rows(prompts, parts, asking.study)
    for shots, seed in settings(asking.study):
        # what calibration asks goes along, and shares what it can
        scores = asking.ask(
            prompts, {"training": parts.training, "unseen": parts.unseen, **blanks}, shots, seed
        )
        for prompt in prompts:
            own = scores[prompt.name]
            # the verbalizer's name is the last part
            template, verbalizer = prompt.name.rsplit("/", 1)
            cell = Cell(model, template, verbalizer, shots, seed)
            labels = {part: own[part] for part in ("training", "unseen", *blanks)}
            places = {part: own["asked"][part].places for part in labels}
            requests = own["asked"]["unseen"].requests
            for part in ("training", "unseen"):
                note_silence(asking, cell, labels[part], own["asked"][part], getattr(parts, part))
            # without any row there is no cell
            if len(requests):
                found.append(Answers(cell, labels, requests, prompt.verbalizer, own["words"], places))
    return found


def note_silence(
    asking: Asking, cell: Cell, scores: np.ndarray, asked: AskedPrompts, rows: Sequence[StudyRow]
) -> None:
    """Note the rows that no answer came for."""
    for missing, place, request in zip(
        np.isnan(scores).any(axis=1), asked.places, asked.requests, strict=True
    ):
        if missing:
            reason = f"no answer: {asking.memory.reason(request)}"
            asking.notes.trouble(cell.model, cell.name, reason, rows[place].place)


def blank_rows(prompts: list[Prompt], parts: Parts, study: StudyArguments) -> dict[str, list[StudyRow]]:
    """What calibration asks: rows without content, of random words of the rows' own, and empty ones."""
    first = parts.unseen[0].columns
    kept = {
        column: first[column] for prompt in prompts for column in prompt.template.columns
    }  # numbers and lists as they are
    # columns that are no text stay as the first row has them
    columns = sorted(column for column, value in kept.items() if value is None or isinstance(value, str))
    words = [row.columns[column] or "" for row in parts.unseen[:500] for column in columns]
    texts = {
        "contextual": list(calibrate.CONTENT_FREE),
        "domain": calibrate.random_inputs(words, DOMAIN_INPUTS, study.shot_seeds[0]),
        "pmi": [""],
    }
    return {
        how: [StudyRow({**kept, **dict.fromkeys(columns, text)}, -1, f"{how}: {text}") for text in given]
        for how, given in texts.items()
    }


@dataclass(frozen=True)
class ChoicePrompt:
    """A template whose answers each row names itself."""

    template: Template
    choices: Template
    target: Template
    keys: Template | None = None
    target_is: str | None = None

    @property
    def name(self) -> str:
        return f"{self.template.name}/choices"

    def of(self, row: StudyRow) -> tuple[list[str], int]:
        """A row's choices, and which of them is right.

        Raises:
            InputError: choices that are empty or fewer than two, a target that is none of them.
        """
        choices = self.choices.listed(row.columns)
        # an empty choice would be scored as nothing
        if len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise InputError(
                f"{self.choices.name}: {len(choices)} choices, or an empty one; wanted two or more texts"
            )
        wanted = self.target.listed(row.columns)
        if len(wanted) != 1:
            raise InputError(f"{self.target.name}: {len(wanted)} texts; wanted one, which names a choice")
        return choices, self._place(wanted[0].strip(), choices, row)

    def _place(self, target: str, choices: list[str], row: StudyRow) -> int:
        # keys, texts and numbers are how data name the right choice
        keys = [key.strip() for key in self.keys.listed(row.columns)] if self.keys else []
        bare = [choice.strip() for choice in choices]
        readings = {
            "key": keys.index(target) if target in keys else None,
            "text": bare.index(target) if target in bare else None,
            "index": int(target) if target.isdigit() and int(target) < len(choices) else None,
        }
        if self.target_is == "index_first":  # as lm-evaluation-harness reads a target of digits
            # digits are a place there, even where a choice has that text
            readings = {"index": readings["index"]} if target.isdigit() else {"text": readings["text"]}
        elif self.target_is:
            readings = {self.target_is: readings[self.target_is]}
        found = {place for place in readings.values() if place is not None}
        if keys and readings.get("key") is not None:
            # a key goes before what else it could mean
            found = {readings["key"]}
        # two readings that agree are one
        if len(found) != 1:
            what = (
                "could be two of them; set target_is: index or text"
                if found
                else f"is none of {', '.join(bare)[:120]}"
            )
            raise InputError(
                f"{self.target.name}: '{target[:60]}' {what}. Mend the entry's `target`, `keys` or `choices`"
            )
        return found.pop()  # type: ignore[return-value]


@dataclass(frozen=True)
class ChoiceAnswers(StoredAnswers):
    """The same for choices: how, one of WAYS → part → scores [rows, most choices]; gold: part → [rows]."""

    gold: dict[str, np.ndarray]
    texts: dict[str, list[list[str]]]

    def right(self, how: str, part: str = "unseen") -> np.ndarray:
        """Whether the likeliest choice is the right one, or says the same as it; bool [rows]."""
        chosen = said(self.scores(how, part))
        rows = zip(chosen, self.gold[part], self.texts[part], strict=True)
        # two choices of one text are both right
        return np.array(
            [one >= 0 and texts[one].strip() == texts[gold].strip() for one, gold, texts in rows], dtype=bool
        )


def choice_cells(
    asking: Asking, model: str, prompts: Sequence[ChoicePrompt], parts: Parts
) -> list[ChoiceAnswers]:
    """Every template with choices × number of examples × seed of one model."""
    found = []
    rows = {"training": parts.training, "unseen": parts.unseen}
    for setting in settings(asking.study):
        ways = {
            p.name: (lambda row, p=p, setting=setting: _choice_request(asking, p, row, setting))
            for p in prompts
        }
        # all prompts through the model together
        asked = asking.weigh(ways, rows)
        for prompt in prompts:
            cell = Cell(model, prompt.template.name, "choices", *setting)
            own = {part: asked[prompt.name, part] for part in rows}
            if len(own["unseen"].places):
                found.append(_choice_answers(asking, cell, prompt, own, rows))
    return found


def _choice_request(asking: Asking, prompt: ChoicePrompt, row: StudyRow, setting: tuple[int, int]) -> Request:
    choices, _ = prompt.of(row)
    # as asked: the data is so
    if len({choice.strip() for choice in choices}) < len(choices):
        asking.notes.expect(asking.model, prompt.name, "two of the choices are equal", row.place)

    def answer(example: StudyRow) -> str:
        own, gold = prompt.of(example)
        return own[gold]

    return asking.compose(prompt.template, row, asking.shown(prompt.template, answer, row, setting), choices)


def _choice_answers(
    asking: Asking, cell: Cell, prompt: ChoicePrompt, own: dict[str, Any], rows: dict[str, list[StudyRow]]
) -> ChoiceAnswers:
    gold, texts = {}, {}
    by_how: dict[str, dict[str, np.ndarray]] = {how: {} for how in WAYS}
    # how likely each choice is with nothing before it (Brown et al. 2020; lm-evaluation-harness's
    # acc_mutual_info)
    alone = (
        None
        if asking.study.chat or not asking.memory.exact
        else asking.memory(
            [
                Request("", request.answers, special=request.special)
                for part in rows
                for request in own[part].requests
            ]
        )
    )
    if alone is None:
        # an endpoint that doesn't say whole answers, or a chat, has no such figure
        del by_how["pmi"]
    counted = iter(alone or ())
    for part, members in rows.items():
        pairs = [prompt.of(members[i]) for i in own[part].places]
        texts[part] = [choices for choices, _ in pairs]
        gold[part] = np.array([place for _, place in pairs], dtype=int)
        lines: dict[str, list[Any]] = {how: [] for how in by_how}
        for answers, choices in zip(own[part].answers, texts[part], strict=True):
            sums = (
                # no answer has no scores, of any length
                np.array([np.nan] * len(choices))
                if answers is None
                # in float64: sums of many tokens
                else np.array([a.sum(dtype=np.float64) for a in answers])
            )
            tokens = [1] * len(choices) if answers is None else [len(a) for a in answers]
            lines["sum"].append(sums)
            lines["characters"].append(sums / [len(choice) for choice in choices])
            lines["bytes"].append(sums / [len(choice.encode()) for choice in choices])
            lines["tokens"].append(sums / tokens)
            if "pmi" in lines:
                bare = next(counted)
                # an endpoint may have answered the one and not the other
                lines["pmi"].append(
                    sums * np.nan if bare is None else sums - [a.sum(dtype=np.float64) for a in bare]
                )
        # as many columns as the most choices; -inf wins nothing
        width = max((len(choices) for choices in texts[part]), default=1)
        for how, values in lines.items():
            by_how[how][part] = np.array(
                [np.pad(v, (0, width - len(v)), constant_values=-np.inf) for v in values]
            ).reshape(-1, width)
        note_silence(asking, cell, by_how["sum"][part], own[part], members)
    return ChoiceAnswers(
        cell, by_how, own["unseen"].requests, {part: own[part].places for part in rows}, gold, texts
    )
