"""Cells whose answers are written: texts, the answers in them, what they are compared with. Knows no figures'
arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from finetune.errors import InputError
from finetune.metrics import bootstrap
from prompts.scoring.generate import Drawing
from prompts.scoring.score import Request
from prompts.study.asking import Asking, Cell, settings
from prompts.study.measures import Measure, of_evaluate, of_texts
from prompts.study.options import AnswerArguments
from prompts.study.parts import Parts
from prompts.study.rows import StudyRow
from prompts.templates.entries import Ending, Entry
from prompts.templates.filters import NOTHING, TEXT_FIGURES, extracted
from prompts.templates.template import Template

AS_WRITTEN = "as written"


@dataclass(frozen=True)
class TextPrompt:
    """A template, what its answers are compared with, and where they end."""

    template: Template
    target: Template
    ending: Ending

    @property
    def name(self) -> str:
        return f"{self.template.name}/{self.ending.name}"

    def wanted(self, row: StudyRow) -> list[str]:
        """The texts that would be right for a row.

        Raises:
            InputError: there are none.
        """
        found = self.target.listed(row.columns)
        if not found:
            raise InputError(f"{self.target.name}: no text to compare with")
        # kept as written where white space counts
        return found if self.ending.keep else [text.strip() for text in found]


@dataclass(frozen=True)
class Written:
    """A cell's texts: part → for each row that was asked, its drawn or single answers; None where none came.

    Attributes:
        wanted: part → each row's references.
        judged: part → a judge's scores of each row, where one was asked.
    """

    cell: Cell
    prompt: TextPrompt
    texts: dict[str, list[list[str | None]]]
    wanted: dict[str, list[list[str]]]
    requests: list[Request]
    places: dict[str, np.ndarray]
    entry: Entry
    metric: str
    judged: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def hows(self) -> tuple[str, ...]:
        """Ways to take the answer out of a text."""
        # an entry without filters takes the text itself
        return tuple(self.entry.filters) or (AS_WRITTEN,)

    def rows(self, part: str = "unseen") -> np.ndarray:
        """Numbers of the rows that were asked."""
        return self.places[part]

    def answers(self, how: str, part: str = "unseen") -> list[list[str]]:
        """What was taken out of each row's texts; "" where none came."""
        steps = self.entry.filters.get(how, ())
        return [extracted(steps, ["" if text is None else text for text in row]) for row in self.texts[part]]

    def measures(self, how: str, part: str = "unseen", all_of_them: bool = True) -> dict[str, Measure]:
        """Figures of the answers: the mean over repeats where there are several; `all_of_them` or the heading
        one alone."""
        answers, wanted = self.answers(how, part), self.wanted[part]
        names = list(TEXT_FIGURES) if all_of_them else [self.metric]
        repeats = max((len(row) for row in answers), default=1)
        made = []
        for number in range(repeats):
            # fewer answers than others: the last again
            said = [row[min(number, len(row) - 1)] for row in answers]
            figures = of_texts(said, wanted, names, self.entry.normalise)
            if self.metric.startswith("evaluate:"):
                figures[self.metric] = of_evaluate(self.metric, said, wanted)
            if how in self.judged.get(part, {}):
                scores = self.judged[part][how][:, min(number, self.judged[part][how].shape[1] - 1)]
                # a judge's silence has no score
                figures["judge"] = _mean_score(scores)
            made.append(figures)
        return {name: over_repeats([figures[name] for figures in made]) for name in made[0]}

    def spread(self, how: str) -> list[float]:
        """The heading figure of each repeat."""
        repeats = max((len(row) for row in self.texts["unseen"]), default=1)
        # each repeat as if it were the only one
        alone = [
            replace(
                self,
                texts={"unseen": [[row[min(i, len(row) - 1)]] for row in self.texts["unseen"]]},
                judged={
                    part: {h: scores[:, [min(i, scores.shape[1] - 1)]] for h, scores in by_how.items()}
                    for part, by_how in self.judged.items()
                },
            )
            for i in range(repeats)
        ]
        return [one.measures(how, "unseen", False)[self.metric].value for one in alone]

    def unmatched(self, how: str, part: str = "unseen") -> np.ndarray:
        """Rows in whose texts a filter found nothing; bool [rows]."""
        return np.array(
            [all(text in (NOTHING, "") for text in row) for row in self.answers(how, part)], dtype=bool
        )


def _mean_score(scores: np.ndarray) -> Measure:
    # without a verdict: no point
    counts = np.stack([np.nan_to_num(scores), np.ones(len(scores))], axis=1)
    return Measure(counts, bootstrap.mean_figure, is_mean=True)


def over_repeats(measures: Sequence[Measure]) -> Measure:
    """The mean of a figure over repeats, as one figure of the rows."""
    if len(measures) == 1:
        return measures[0]
    if all(measure.is_mean for measure in measures):
        # of means the mean by row, which tests can pair
        return Measure(np.mean([m.counts for m in measures], axis=0), bootstrap.mean_figure, is_mean=True)
    width, figure = measures[0].counts.shape[1], measures[0].figure
    parts = range(len(measures))
    # other figures side by side: each repeat is figured from its own sums
    return Measure(
        np.concatenate([m.counts for m in measures], axis=1),
        lambda sums: np.mean([figure(sums[:, i * width : (i + 1) * width]) for i in parts], axis=0),
    )


def text_cells(
    asking: Asking,
    model: str,
    prompts: Sequence[TextPrompt],
    parts: Parts,
    *,
    entry: Entry,
    answers: AnswerArguments,
) -> list[Written]:
    """Every template with an ending × number of examples × seed of one model."""
    found = []
    rows = {"training": parts.training, "unseen": parts.unseen}
    metric = answers.metric or entry.metric_of("text")
    # greedy: one answer
    drawings: list[Drawing | None] = [None]
    if answers.repeats > 1 or answers.temperature > 0:
        # several answers of the likeliest would all be the same
        temperature = answers.temperature or 1.0
        drawings = [Drawing(temperature, answers.top_p, answers.draw_seed, i) for i in range(answers.repeats)]
    for setting in settings(asking.study):
        for prompt in prompts:
            cell = Cell(model, prompt.template.name, prompt.ending.name, *setting)
            texts, wanted, places = {}, {}, {}
            requests: list[Request] = []
            for part, members in rows.items():
                way = partial(_request, asking, prompt, setting)
                places[part], asked = asking.prepared(prompt.name, way, members)
                wanted[part] = [prompt.wanted(members[i]) for i in places[part]]
                # each drawing over all rows
                drawn = [asking.memory.written(asked, prompt.ending, drawing) for drawing in drawings]
                texts[part] = [list(row) for row in zip(*drawn, strict=True)]
                for place, row, request in zip(places[part], texts[part], asked, strict=True):
                    if None in row:
                        reason = f"no answer: {asking.memory.reason(request)}"
                        asking.notes.trouble(model, cell.name, reason, members[place].place)
                # the unseen rows' own, which the report shows
                requests = asked if part == "unseen" else requests
            if requests:
                found.append(Written(cell, prompt, texts, wanted, requests, places, entry, metric))
    return found


def _request(asking: Asking, prompt: TextPrompt, setting: tuple[int, int], row: StudyRow) -> Request:
    # before it is asked: nothing could be said of its answer
    prompt.wanted(row)  # a row without anything to compare with isn't asked
    return asking.text_request(prompt.template, prompt.wanted, row, setting, prompt.ending.tokens)
