"""A model that says what written answers are worth (Zheng et al. 2023). Knows prompts and a scorer; knows no
figures.

Each answer is judged twice, its place and its reference's swapped, because judges prefer places. What a
judge's word is worth is its agreement with people's labels, where they are given; else the report says that
it is unmeasured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import cohen_kappa_score

from finetune.errors import InputError
from prompts.scoring.cache import Memory
from prompts.scoring.score import Request
from prompts.study.asking import Notes
from prompts.study.written import Written
from prompts.templates.entries import Judge
from prompts.templates.layout import Layout
from prompts.templates.prompt import compose
from prompts.templates.verbalizer import Verbalizer, make_verbalizer

LEAST = 0.01  # probability of all labels together below which a judge named none of them
SWAPPED = {"first": "second", "second": "first"}  # labels that mean a place


@dataclass(frozen=True)
class Verdicts:
    """Labels of answers: scores [answers] of how often the good one was given (NaN: none), and how sure one
    can be.

    Attributes:
        labels: the label of each answer from both orders together, None where the judge named none.
        consistent: share of answers whose label stayed when the places were swapped; NaN where none has one.
    """

    scores: np.ndarray
    labels: list[str | None]
    consistent: float


class Judging:
    """Asks one judge."""

    def __init__(self, judge: Judge, memory: Memory, notes: Notes, chat: bool = False) -> None:
        self.judge, self.memory, self.notes = judge, memory, notes
        # no examples: what is judged stands in the template
        self.layout = Layout(chat=chat)
        self.words: Verbalizer = make_verbalizer("judge", list(judge.words), judge.words)

    def verdicts(
        self,
        rows: Sequence[tuple[Mapping[str, Any], str, str]],
        prompt: str,
        places: Sequence[int] | None = None,
    ) -> Verdicts:
        """(columns, written, wanted) of each answer → its label; `places` are their rows' in the file."""
        # both orders, because a judge may prefer a place
        passes = [self._pass(rows, swapped) for swapped in (False, True)]
        good = list(self.judge.words).index(self.judge.good)
        chosen = [
            # nan where it named nothing, which argmax would take for the largest
            np.where(np.isnan(p).any(axis=1), -1, np.nan_to_num(p, nan=-np.inf).argmax(axis=1))
            for p in passes
        ]
        both = np.stack(passes)
        # an answer that is silent in one order has no verdict
        silent = np.isnan(both).any(axis=(0, 2))
        for number in np.flatnonzero(silent):
            row = -1 if places is None else places[number]
            self.notes.trouble(self.judge.model, prompt, "the judge named none of its labels", row)
        # half of the good label where the orders disagree
        scores = np.where(silent, np.nan, np.mean([c == good for c in chosen], axis=0))
        # both orders' probabilities added up
        together = logsumexp(both, axis=0)
        labels = [
            None if none else self.words.labels[int(row.argmax())]
            for none, row in zip(silent, together, strict=True)
        ]
        # of answers that have both
        agree = (chosen[0] == chosen[1])[~silent]
        return Verdicts(scores, labels, float(agree.mean()) if len(agree) else float("nan"))

    def _pass(self, rows: Sequence[tuple[Mapping[str, Any], str, str]], swapped: bool) -> np.ndarray:
        """Log-probabilities of the labels, [answers, labels], NaN where it named none; labels of places
        turned back."""
        requests = [self._request(*row, swapped) for row in rows]
        answers = self.memory(requests)
        scored = np.full((len(rows), len(self.words.labels)), np.nan)
        for index, row in enumerate(answers):
            if row is None:
                continue
            values = self.words.label_scores(self.words.word_scores([row]))[0]
            # an endpoint that shows the first tokens alone knows no whole probability
            if np.exp(logsumexp(values)) >= LEAST or not self.memory.exact:
                scored[index] = values
        if swapped:
            # a label that means a place means the other one when places are swapped
            order = [
                self.words.labels.index(SWAPPED.get(label, label))
                if SWAPPED.get(label, label) in self.words.labels
                # labels that mean no place stay
                else place
                for place, label in enumerate(self.words.labels)
            ]
            scored = scored[:, order]
        return scored

    def _request(self, columns: Mapping[str, Any], written: str, wanted: str, swapped: bool) -> Request:
        first, second = (wanted, written) if swapped else (written, wanted)
        # templates may ask by role or by place
        given = {**columns, "written": written, "wanted": wanted, "first": first, "second": second}
        return compose(
            self.judge.template, self.memory.scorer, given, [], answers=self.words.flat, layout=self.layout
        ).request

    def agreement(self, path: str) -> dict[str, Any]:
        """How often the judge says what people said, on answers that they labelled; Cohen's kappa beside it.

        Raises:
            InputError: a file that can't be read, or a line without `written` and `label`.
        """
        lines = _read_lines(path)
        strange = next((line["label"] for line in lines if str(line["label"]) not in self.words.labels), None)
        if strange is not None:
            raise InputError(
                f"{path}: the label '{strange}'; the judge has {', '.join(self.words.labels)}. Set "
                "--judge_rows"
            )
        found = self.verdicts(
            [(line, line["written"], str(line.get("wanted", ""))) for line in lines], "judge_rows"
        )
        pairs = [
            (own, str(line["label"]))
            for own, line in zip(found.labels, lines, strict=True)
            if own is not None
        ]
        same = [own == given for own, given in pairs]
        # kappa isn't defined where all pairs are one
        kappa = cohen_kappa_score(*zip(*pairs, strict=True)) if len(set(pairs)) > 1 else float("nan")
        return {"rows": len(pairs), "agreement": float(np.mean(same)) if same else 0.0, "kappa": float(kappa)}


def _read_lines(path: str) -> list[dict[str, Any]]:
    try:
        lines = [
            json.loads(line)
            for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}. Set --judge_rows") from error
    wrong = next(
        (
            i
            for i, line in enumerate(lines)
            if not isinstance(line, dict) or not {"written", "label"} <= set(line)
        ),
        None,
    )
    if wrong is not None or not lines:
        raise InputError(
            f"{path}, line {(wrong or 0) + 1}: wanted an object with `written` and `label`. Set --judge_rows"
        )
    return lines


def judged(
    written: Written, judging: Judging, parts: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, dict[str, np.ndarray]], float]:
    """A cell's scores by the judge: part → how → [rows, repeats]; and how often the label stayed when
    swapped, NaN where the judge named no label."""
    found: dict[str, dict[str, np.ndarray]] = {}
    stayed = []
    for part, rows in parts.items():
        found[part] = {}
        for how in written.hows:
            answers = written.answers(how, part)
            if not answers:
                continue
            # rows may have fewer answers than others: the last of theirs again, to make a table
            width = max(len(row) for row in answers)
            flat = [
                # the first reference is the judge's
                (rows[place].columns, row[min(i, len(row) - 1)], wanted[0])
                for place, row, wanted in zip(written.rows(part), answers, written.wanted[part], strict=True)
                for i in range(width)
            ]
            numbers = [rows[place].place for place in written.rows(part) for _ in range(width)]
            verdicts = judging.verdicts(flat, written.cell.name, numbers)
            found[part][how] = verdicts.scores.reshape(len(answers), width)
            stayed.append(verdicts.consistent)
    known = [share for share in stayed if not np.isnan(share)]
    return found, float(np.mean(known)) if known else float("nan")
