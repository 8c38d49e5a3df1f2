"""Prompts × rows → requests and their answers, one cell a way of asking. Knows templates and a scorer; knows
no files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompts.scoring.cache import Memory
from prompts.scoring.score import Request
from prompts.study import calibrate
from prompts.study.options import StudyArguments
from prompts.study.parts import Parts
from prompts.study.rows import Row
from prompts.study.shots import Pool, choose
from prompts.templates.prompt import Prompt, compose
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, corrected

logger = logging.getLogger(__name__)
DOMAIN_INPUTS = 20  # as many as Fei et al. 2023 draw
CALIBRATIONS = ("raw", "contextual", "domain", "pmi", "prior", "batch")


@dataclass(frozen=True)
class Cell:
    """One prompt, asked one way of one model."""

    model: str
    template: str
    verbalizer: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        shots = f" {self.shots} shots, seed {self.seed}" if self.shots else ""
        return f"{self.template}/{self.verbalizer}{shots}"


@dataclass(frozen=True)
class Answers:
    """A cell's answers: part → scores of labels [rows, labels], for training and unseen rows and for what
    calibration asks.

    Attributes:
        words: part → scores of the verbalizer's words [rows, words].
    """

    cell: Cell
    labels: dict[str, np.ndarray]
    requests: list[Request]
    verbalizer: Verbalizer
    words: dict[str, np.ndarray]

    def scores(self, how: str, part: str = "unseen") -> np.ndarray:
        """Scores after a calibration, one of CALIBRATIONS; `part` is training or unseen."""
        own = self.labels[part]
        if how == "raw":
            return own
        if how == "batch":
            return calibrate.batch(own)
        if how == "prior":
            return self.verbalizer.label_scores(corrected(self.words[part], self.words[part]))
        return {"contextual": calibrate.contextual, "domain": calibrate.domain, "pmi": calibrate.pmi}[how](
            own, self.labels[how]
        )


class Asking:
    """How rows become requests in one study: limits, examples, chat."""

    def __init__(
        self,
        memory: Memory,
        study: StudyArguments,
        examples: list[Row],
        vectors: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.memory, self.study, self.examples, self.vectors = memory, study, examples, vectors or {}
        texts = [row.identity for row in examples]
        table = np.stack([self.vectors[text] for text in texts]) if self.vectors else None
        self.pool = Pool([row.label for row in examples], texts, table)
        self.cut = 0

    def ask(
        self, prompts: list[Prompt], rows: dict[str, list[Row]], shots: int, seed: int
    ) -> dict[str, dict[str, Any]]:
        """Scores of every prompt on every part: prompt's name → part → [rows, labels]; `words`, `requests`:
        part → the same."""
        groups = _groups(prompts, together=shots == 0)
        flat: list[tuple[str, str, Request]] = []
        for part, members in rows.items():
            for row in members:
                for key, group in groups.items():
                    flat.append((part, key, self.request(group, row, shots, seed)))
        answers = self.memory([request for *_, request in flat])
        found: dict[str, dict[str, Any]] = {prompt.name: {"requests": {}, "words": {}} for prompt in prompts}
        for key, group in groups.items():
            words = _words(group)
            for part in rows:
                mine = [
                    (request, row)
                    for (p, k, request), row in zip(flat, answers, strict=True)
                    if (p, k) == (part, key)
                ]
                for prompt in group:
                    places = [words.index(word) for word in prompt.verbalizer.flat]
                    scored = prompt.verbalizer.word_scores([[row[i] for i in places] for _, row in mine])
                    found[prompt.name]["words"][part] = scored
                    found[prompt.name][part] = prompt.verbalizer.label_scores(scored)
                    found[prompt.name]["requests"][part] = [request for request, _ in mine]
        return found

    def request(self, group: list[Prompt], row: Row, shots: int, seed: int) -> Request:
        """One row's question behind its examples, with the words of all verbalizers of a group."""
        prompt, words = group[0], _words(group)
        chosen = self._chosen(row, shots, seed)
        shown = [
            (
                prompt.template.render(self.examples[i].columns),
                prompt.verbalizer.answer(self.examples[i].label),
            )
            for i in chosen
        ]
        request, was_cut = compose(
            prompt.template,
            self.memory.scorer,
            row.columns,
            shown,
            words,
            self.study.max_length,
            self.study.chat,
        )
        self.cut += was_cut
        return request

    def text_request(
        self, template: Template, target: Template, row: Row, setting: tuple[int, int], room: int
    ) -> Request:
        """One row's question behind its (examples, seed), with room for a text of so many tokens."""
        examples = [self.examples[i].columns for i in self._chosen(row, *setting)]
        shown = [(template.render(columns), target.plain(columns).strip()) for columns in examples]
        limit, chat = self.study.max_length, self.study.chat
        request, was_cut = compose(
            template, self.memory.scorer, row.columns, shown, [""], limit, chat, " the" * room
        )
        self.cut += was_cut
        return request

    def _chosen(self, row: Row, shots: int, seed: int) -> list[int]:
        vector = self.vectors.get(row.identity)
        way = self.study.shot_choice if shots else "none"
        if way == "nearest" and vector is None:  # what calibration asks is near to nothing
            way = "balanced"
        return choose(way, self.pool, shots, seed, row.identity, vector)


def _groups(prompts: list[Prompt], together: bool) -> dict[str, list[Prompt]]:
    """Prompts that render alike: those of one template, unless examples show the verbalizer's words."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.template.name if together else prompt.name, []).append(prompt)
    return groups


def _words(group: list[Prompt]) -> list[str]:
    return list(dict.fromkeys(word for prompt in group for word in prompt.verbalizer.flat))


def run_cells(asking: Asking, model: str, prompts: list[Prompt], parts: Parts) -> list[Answers]:
    """Every prompt × number of examples × seed of one model."""
    found = []
    blanks = blank_rows(prompts, parts, asking.study)
    for shots, seed in settings(asking.study):
        scores = asking.ask(
            prompts, {"training": parts.training, "unseen": parts.unseen, **blanks}, shots, seed
        )
        for prompt in prompts:
            own = scores[prompt.name]
            template, verbalizer = prompt.name.rsplit("/", 1)
            cell = Cell(model, template, verbalizer, shots, seed)
            labels = {part: own[part] for part in ("training", "unseen", *blanks)}
            found.append(Answers(cell, labels, own["requests"]["unseen"], prompt.verbalizer, own["words"]))
    if asking.cut:
        logger.warning("%d prompts of %s were cut to fit (--max_length)", asking.cut, model)
    return found


def settings(study: StudyArguments) -> list[tuple[int, int]]:
    """(examples, seed) that every prompt is asked with; without examples one seed says all."""
    return [
        (shots, seed)
        for shots in study.shots
        for seed in (study.shot_seeds if shots else study.shot_seeds[:1])
    ]


def blank_rows(prompts: list[Prompt], parts: Parts, study: StudyArguments) -> dict[str, list[Row]]:
    """What calibration asks: rows without content, of random words of the rows' own, and empty ones."""
    first = parts.unseen[0].columns
    kept = {
        column: first[column] for prompt in prompts for column in prompt.template.columns
    }  # numbers and lists as they are
    columns = sorted(column for column, value in kept.items() if value is None or isinstance(value, str))
    words = [row.columns[column] or "" for row in parts.unseen[:500] for column in columns]
    texts = {
        "contextual": list(calibrate.CONTENT_FREE),
        "domain": calibrate.random_inputs(words, DOMAIN_INPUTS, study.shot_seeds[0]),
        "pmi": [""],
    }
    return {
        how: [Row({**kept, **dict.fromkeys(columns, text)}, -1, f"{how}: {text}") for text in given]
        for how, given in texts.items()
    }
