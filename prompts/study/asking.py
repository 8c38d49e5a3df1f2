"""Prompts × rows → requests, and who answers them. Knows templates and a scorer; knows no files and no
figures.

A row that can't be asked by a prompt (its template says nothing of it, a column is missing, it is too long)
is left out of that prompt's rows and noted; it ends nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.errors import InputError
from prompts.scoring.cache import Memory
from prompts.scoring.score import Request
from prompts.study.options import StudyArguments
from prompts.study.rows import StudyRow
from prompts.study.shots import Pool, choose
from prompts.templates.layout import Layout
from prompts.templates.prompt import Prompt, compose
from prompts.templates.template import Rendered, Skipped, Template, TooLong


@dataclass(frozen=True)
class Cell:
    """One prompt, asked one way of one model."""

    model: str
    template: str
    verbalizer: str  # or what the choices are, or where a written answer ends
    shots: int
    seed: int

    @property
    def name(self) -> str:
        shots = f" {self.shots} shots, seed {self.seed}" if self.shots else ""
        return f"{self.template}/{self.verbalizer}{shots}"


@dataclass
class Notes:
    """What didn't go as asked: counted, and named with the first rows that it befell.

    Attributes:
        troubles: (model, prompt, reason) → rows; they make a run's exit status 1.
        expected: the same for what the user asked for: rows that a template skips, rows that are cut or
            dropped.
    """

    troubles: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    expected: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)

    def trouble(self, model: str, prompt: str, reason: str, row: int = -1) -> None:
        self.troubles.setdefault((model, prompt, reason), []).append(row)

    def expect(self, model: str, prompt: str, reason: str, row: int = -1) -> None:
        self.expected.setdefault((model, prompt, reason), []).append(row)

    def lines(self) -> list[dict[str, Any]]:
        """For tables and findings.json."""
        return [
            {
                "model": model,
                "prompt": prompt,
                "what": what,
                # -1 stands for a whole prompt, which is one thing that went wrong
                "rows": sum(row >= -1 for row in rows) or 1,
                # the first five by number, and each once
                "first": ", ".join(str(row) for row in sorted(set(rows))[:5] if row >= 0),
                "ends_well": well,
            }
            for well, kept in ((False, self.troubles), (True, self.expected))
            for (model, prompt, what), rows in kept.items()
        ]


@dataclass(frozen=True)
class AskedPrompts:
    """A prompt's answers to the rows of one part that could be asked.

    Attributes:
        places: numbers of those rows in the part.
        answers: for each, token log-probabilities of each answer, or None where no answer came.
    """

    places: np.ndarray
    requests: list[Request]
    answers: list[Any]


class Asking:
    """How rows become requests in one study: limits, examples, chat."""

    def __init__(
        self,
        memory: Memory,
        study: StudyArguments,
        examples: list[StudyRow],
        vectors: dict[str, np.ndarray] | None = None,
        layout: Layout | None = None,
        *,
        notes: Notes | None = None,
    ) -> None:
        self.memory, self.study, self.examples, self.vectors = memory, study, examples, vectors or {}
        texts = [row.identity for row in examples]
        # by the examples' own order, as `choose` counts them
        table = np.stack([self.vectors[text] for text in texts]) if self.vectors else None
        # identities tell rows apart, so that none is its own example
        self.pool = Pool([row.label for row in examples], texts, table)
        # the study's own limit and chat go over the entry's
        self.layout = replace(layout or Layout(), limit=study.max_length, chat=study.chat)
        self.notes, self.model = notes or Notes(), ""
        self.counted: Counter[str] = Counter()

    def ask(
        self, prompts: list[Prompt], rows: dict[str, list[StudyRow]], shots: int, seed: int
    ) -> dict[str, dict[str, Any]]:
        """Scores of every prompt on every part: prompt's name → part → [rows, labels]; `words`, `asked`: part
        → the same.

        Templates with several verbalizers go through the model once, unless examples show their words.
        """
        # with examples the verbalizer's words stand in the prompt, so that each is a prompt of its own
        groups = _groups(prompts, together=shots == 0)
        asked = self.weigh(
            {
                # bound now: the loop goes on before it is called
                key: (lambda row, group=group: self.request(group, row, shots, seed))
                for key, group in groups.items()
            },
            rows,
        )
        found: dict[str, dict[str, Any]] = {prompt.name: {"asked": {}, "words": {}} for prompt in prompts}
        for key, group in groups.items():
            # all words of the group in one request, each once
            words = _words(group)
            for part in rows:
                own = asked[key, part]
                for prompt in group:
                    # each verbalizer's own among them, in its order
                    places = [words.index(word) for word in prompt.verbalizer.flat]
                    some = [None if row is None else [row[i] for i in places] for row in own.answers]
                    scored = prompt.verbalizer.word_scores(_filled(some, len(places)))
                    found[prompt.name]["words"][part] = scored
                    found[prompt.name][part] = prompt.verbalizer.label_scores(scored)
                    found[prompt.name]["asked"][part] = own
        return found

    def weigh(
        self, ways: Mapping[str, Callable[[StudyRow], Request]], rows: Mapping[str, Sequence[StudyRow]]
    ) -> dict[tuple[str, str], AskedPrompts]:
        """(name, part) → answers of the rows that could be asked, all of them through the model together."""
        # all requests before any is answered: what they share is computed once for all prompts
        made = {
            (key, part): self.prepared(key, way, rows[part]) for key, way in ways.items() for part in rows
        }
        # answers come in the order of requests, which is that of `made`
        answers = iter(self.memory([request for _, requests in made.values() for request in requests]))
        return {
            key: AskedPrompts(places, requests, [next(answers) for _ in requests])
            for key, (places, requests) in made.items()
        }

    def prepared(
        self, name: str, way: Callable[[StudyRow], Request], rows: Sequence[StudyRow]
    ) -> tuple[np.ndarray, list[Request]]:
        """Requests of the rows that can be asked, and their places; what can't is noted."""
        places, requests = [], []
        for place, row in enumerate(rows):
            try:
                requests.append(way(row))
                places.append(place)
            except Skipped as error:
                self.notes.expect(self.model, name, str(error), row.place)
            except TooLong:
                self.notes.expect(self.model, name, "too long, and dropped (--on_long)", row.place)
            except InputError as error:
                # the user wanted the run to stop at a long row; other errors are this row's alone
                if self.layout.on_long == "stop" and "--on_long" in str(error):
                    raise
                self.notes.trouble(self.model, name, str(error), row.place)
        return np.array(places, dtype=int), requests

    def request(self, group: list[Prompt], row: StudyRow, shots: int, seed: int) -> Request:
        """One row's question behind its examples, with the words of all verbalizers of a group."""
        # they differ in words alone, which stand in the answers
        prompt = group[0]
        shown = self.shown(
            prompt.template, lambda example: prompt.verbalizer.answer(example.label), row, (shots, seed)
        )
        return self.compose(prompt.template, row, shown, _words(group))

    def compose(
        self,
        template: Template,
        row: StudyRow,
        shown: list[tuple[Rendered, str]],
        answers: Sequence[str],
        reserve: str | None = None,
    ) -> Request:
        """A request, with what was cut or left out counted."""
        made = compose(
            template,
            self.memory.scorer,
            row.columns,
            shown,
            answers=answers,
            layout=self.layout,
            reserve=reserve,
        )
        if made.was_cut:
            self.notes.expect(self.model, template.name, "cut to fit (--max_length)", row.place)
        if made.left_out:
            reason = "asked behind fewer examples, which didn't fit"
            self.notes.expect(self.model, template.name, reason, row.place)
        return made.request

    def text_request(
        self,
        template: Template,
        wanted: Callable[[StudyRow], Sequence[str]],
        row: StudyRow,
        setting: tuple[int, int],
        room: int,
    ) -> Request:
        """One row's question behind its (examples, seed), with room for a text of so many tokens."""
        # nothing is weighed here: one empty answer stands for it
        shown = self.shown(template, lambda example: wanted(example)[0], row, setting)
        # so many short words hold the room that the text will need
        made = self.compose(template, row, shown, [""], reserve=" the" * room)
        # one space is the first word's; further ones are the prompt's own
        return replace(made, context=made.context + made.answers[0][:-1])

    def shown(
        self, template: Template, answer: Callable[[StudyRow], str], row: StudyRow, setting: tuple[int, int]
    ) -> list[tuple[Rendered, str]]:
        """The examples before a row, as they are written, with their answers; those that can't be are left
        out."""
        written = []
        for index in self._chosen(row, *setting):
            example = self.examples[index]
            try:
                # an example that its template says nothing of, or that has no answer
                written.append(((self.layout.example or template).render(example.columns), answer(example)))
            except InputError as error:
                self.notes.expect(self.model, template.name, f"example left out: {error}", example.place)
        return written

    def _chosen(self, row: StudyRow, shots: int, seed: int) -> list[int]:
        vector = self.vectors.get(row.identity)
        way = self.study.shot_choice if shots else "none"
        if way == "nearest" and vector is None:  # what calibration asks is near to nothing
            # evenly over the classes, as calibration wants to know what no content gives
            way = "balanced"
        return choose(way, self.pool, shots, seed, text=row.identity, vector=vector)


def _filled(rows: list[Any], words: int) -> list[Any]:
    """Rows without an answer as ones whose scores are no numbers."""
    # one number is enough: any sum with it is nan
    nothing = [np.array([np.nan], dtype=np.float32)] * words
    return [nothing if row is None else row for row in rows]


def _groups(prompts: list[Prompt], together: bool) -> dict[str, list[Prompt]]:
    """Prompts that render alike: those of one template, unless examples show the verbalizer's words."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        # without examples templates render alike, whatever their words
        groups.setdefault(prompt.template.name if together else prompt.name, []).append(prompt)
    return groups


def _words(group: list[Prompt]) -> list[str]:
    return list(dict.fromkeys(word for prompt in group for word in prompt.verbalizer.flat))


def settings(study: StudyArguments) -> list[tuple[int, int]]:
    """(examples, seed) that every prompt is asked with; without examples one seed says all."""
    return [
        (shots, seed)
        # all seeds give the same prompt then
        for shots in study.shots
        for seed in (study.shot_seeds if shots else study.shot_seeds[:1])
    ]
