"""Better instructions, written by a model that sees what went wrong (Zhou et al. 2023; Pryzant et al. 2023).
Knows studies.

Proposals stand before a hand-written template. They race on training rows by successive halving (Jamieson &
Talwalkar 2016): the worse half leaves, and so does what a paired test finds worse; the rows double. The
winner is measured beside the hand-written prompt on rows that chose nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.errors import InputError
from finetune.metrics.bootstrap import draws
from finetune.metrics.significance import compare
from prompts.scoring.generate import Drawing
from prompts.scoring.score import Request
from prompts.study.asking import Asking, Notes
from prompts.study.measures import Measure
from prompts.study.outcomes import in_words, measures_of
from prompts.study.parts import Parts
from prompts.study.prompts import choice_prompts, text_prompts
from prompts.study.rows import StudyRow
from prompts.study.run import Options, memory_of
from prompts.study.study import Loaded, Trial
from prompts.study.weighed import ChoicePrompt, choice_cells, label_cells
from prompts.study.written import TextPrompt, text_cells
from prompts.templates.entries import Ending
from prompts.templates.prompt import Prompt

logger = logging.getLogger(__name__)
ASKED = """Here is a task, and the instruction that a model was given for it:

{instruction}

It failed on these examples:

{failures}

Write a better instruction for the task, in one or two sentences, without the examples.
Better instruction:"""
# a paragraph: a writer that goes on begins another text
WRITTEN = Ending("paragraph", ("\n\n",), 96)
SHOWN = 4  # failures that the writer sees
LONGEST = 600  # characters of an instruction
AnyPrompt = Prompt | ChoicePrompt | TextPrompt


@dataclass
class InstructArguments:
    """Search for instructions by a model that writes, on training rows."""

    instruct: str | None = field(
        default=None,
        metadata={
            "help": "Model that writes instructions, from what went wrong: a local one or openai:NAME."
        },
    )
    instruct_rounds: int = field(
        default=2, metadata={"help": "Times that it writes, each from the best so far."}
    )
    instruct_proposals: int = field(default=6, metadata={"help": "Instructions that it writes each time."})
    instruct_rows: int = field(
        default=32, metadata={"help": "Training rows that a race begins with; they double."}
    )
    instruct_budget: int = field(default=2000, metadata={"help": "Answers that the search may take in all."})


class Race:
    """Candidates measured on training rows, within a budget of answers."""

    def __init__(self, asking: Asking, loaded: Loaded, options: Options, budget: int) -> None:
        self.asking, self.loaded, self.options, self.left = asking, loaded, options, budget
        self.kind = loaded.entry.kinds[0]
        self.metric = options.answers.metric or loaded.entry.metric_of(self.kind)
        self.known: dict[tuple[str, int], tuple[Measure, list[str]]] = {}

    def measure(self, prompt: AnyPrompt, rows: Sequence[StudyRow]) -> tuple[Measure, list[str]]:
        """The heading figure of a prompt on some rows, and what was said of each; rows asked before cost
        nothing."""
        # rows are taken from the front, so that their number says which
        key = prompt.template.text, len(rows)
        if key not in self.known:
            # counted before asking: what fails has cost something too
            self.left -= len(rows)
            parts = Parts(list(rows), [], self.loaded.parts.examples, [], [], [])
            answers = self._answers(prompt, parts)
            # another set of rows would make its figure incomparable
            if len(answers.rows()) < len(rows):
                raise InputError(
                    f"{prompt.name}: only {len(answers.rows())} of {len(rows)} rows could be asked"
                )
            how = answers.hows[0]
            # by the first way, as prompts are ranked
            measures = measures_of(answers, how, "unseen", {"unseen": list(rows)}, self.loaded.labels)
            self.known[key] = measures[self.metric], in_words(answers, how, self.loaded.labels)
        return self.known[key]

    def _answers(self, prompt: AnyPrompt, parts: Parts) -> Any:
        if isinstance(prompt, Prompt):
            found: Sequence[Any] = label_cells(self.asking, self.asking.model, [prompt], parts)
        elif isinstance(prompt, ChoicePrompt):
            found = choice_cells(self.asking, self.asking.model, [prompt], parts)
        else:
            found = text_cells(
                self.asking,
                self.asking.model,
                [prompt],
                parts,
                entry=self.loaded.entry,
                answers=self.options.answers,
            )
        if not found:
            raise InputError(f"{prompt.name}: no row could be asked")
        return found[0]

    def run(self, candidates: list[AnyPrompt], rows: Sequence[StudyRow], start: int) -> tuple[AnyPrompt, int]:
        """The candidate that stays, and on how many rows it was measured."""
        count = min(start, len(rows))
        # until one is left, or rows, or the budget
        while True:
            figures = {prompt.template.text: self.measure(prompt, rows[:count])[0] for prompt in candidates}
            ranked = sorted(candidates, key=lambda prompt: -figures[prompt.template.text].value)
            # few draws: a race is decided by many small tests
            drawn = draws(count, 500, 0)
            best = figures[ranked[0].template.text]
            # the worse half goes whatever a test says
            half = ranked[: max(1, len(ranked) // 2)]
            # what is significantly worse than the best goes too
            candidates = [p for p in half if compare(best, figures[p.template.text], drawn).low <= 0]
            more = min(2 * count, len(rows))
            # asking the others on more rows would go over the budget
            if len(candidates) == 1 or more == count or self.left < more * len(candidates):
                return ranked[0], count
            count = more


def instructed(loaded: Loaded, options: Options, instruct: InstructArguments) -> Loaded:
    """The study with the best instruction found added to its prompts, to be measured beside the hand-written
    ones.

    Raises:
        InputError: no training rows to search on, a writer that can't be had.
    """
    rows = loaded.parts.training
    if len(rows) < 8:
        raise InputError(
            f"{len(rows)} training rows to search instructions on; wanted 8 or more. Set --choose_rows or "
            "--train_split"
        )
    writer = memory_of(str(instruct.instruct), options)
    name = options.study.models[0]
    # one model for both is loaded once
    memory = writer if name == instruct.instruct else memory_of(name, options)
    asking = Asking(
        memory,
        # one number of examples: candidates are compared under one setting
        replace(options.study, shots=options.study.shots[:1]),
        loaded.parts.examples,
        layout=loaded.entry.layout,
    )
    # notes of its own: candidates that fail are no trouble of the study
    asking.model, asking.notes = name, Notes()
    race = Race(asking, loaded, options, instruct.instruct_budget)
    hand, tried = _hand_written(loaded, options), 0
    base, _ = race.run(hand, rows, instruct.instruct_rows)
    best = base
    for number in range(instruct.instruct_rounds):
        if race.left < instruct.instruct_rows:
            break
        # the same rows that the race begins with: failures are known without asking
        made = propose(
            writer, race, base, best, rows=rows[: instruct.instruct_rows], instruct=instruct, number=number
        )
        tried += len(made)
        # the best so far races again, beside its successors
        best, _ = race.run([best, *made], rows, instruct.instruct_rows)
    logger.warning(
        "%d instructions tried, %d of %d answers used",
        tried,
        instruct.instruct_budget - race.left,
        instruct.instruct_budget,
    )
    found = best if best is not base else None
    trial = Trial(base.template.name, found.template.name if found else None, tried)
    return replace(_with(loaded, found), trial=trial) if found else replace(loaded, trial=trial)


def _hand_written(loaded: Loaded, options: Options) -> list[AnyPrompt]:
    """One prompt of each template of the entry's first kind."""
    kind, names = loaded.entry.kinds[0], options.study.prompts
    if kind == "labels":
        by_template = {prompt.template.name: prompt for prompt in reversed(loaded.prompts)}
        # reversed twice: the first verbalizer of each template, in the entry's order
        return [*reversed(by_template.values())]
    return (
        [*choice_prompts(loaded.entry, names)] if kind == "choices" else [*text_prompts(loaded.entry, names)]
    )


def _with(loaded: Loaded, prompt: AnyPrompt) -> Loaded:
    """The study with a prompt more."""
    short = prompt.template.name.partition("/")[2]
    # under the entry's name, so that reports and files find it
    entry = replace(loaded.entry, templates={**loaded.entry.templates, short: prompt.template})
    if isinstance(prompt, Prompt):
        return replace(loaded, entry=entry, prompts=[*loaded.prompts, prompt])
    extra = {"targets": {**entry.targets, short: prompt.target}}
    if isinstance(prompt, ChoicePrompt):
        extra["choices"] = {**entry.choices, short: prompt.choices}
    return replace(loaded, entry=replace(entry, **extra))


def propose(
    writer: Any,
    race: Race,
    base: AnyPrompt,
    best: AnyPrompt,
    *,
    rows: Sequence[StudyRow],
    instruct: InstructArguments,
    number: int,
) -> list[AnyPrompt]:
    """Prompts with instructions that the writer thought of, from rows that the best so far has wrong."""
    measure, said = race.measure(best, rows)
    # a figure that is no mean has no scores by row: the first rows then
    scores = measure.each if measure.is_mean else np.zeros(len(rows))
    # the worst first, and no row that was right
    wrong = [i for i in np.argsort(scores, kind="stable") if scores[i] < 1][:SHOWN]
    failures = "\n".join(
        f"- {_shown(rows[i])}\n  it said: {said[i][:80]!r}; right: {_right(race, base, rows[i])[:80]!r}"
        for i in wrong
    )
    # the instruction alone, without the template that follows it
    instruction = best.template.text if best is base else best.template.text.removesuffix(base.template.text)
    asked = ASKED.format(instruction=_unescaped(instruction)[:1500], failures=failures or "- none")
    # an endpoint lays a chat out by itself
    request = Request(asked, ("",), turns=(("user", asked),) if writer.scorer.tokenizer is None else ())
    texts: dict[str, None] = {}
    for repeat in range(instruct.instruct_proposals):
        # a seed for each round and proposal: asked again, the same
        drawing = Drawing(1.0, 0.95, seed=number, repeat=repeat)
        written = writer.written([request], WRITTEN, drawing)[0]
        # on one line, without the quotes that models put around it
        text = " ".join((written or "").split()).strip('"')[:LONGEST]
        # fewer letters are no instruction
        if len(text) > 10:
            # each once: a writer repeats itself
            texts[text] = None
    return [_instructed(base, text, f"instructed_{number}_{place}") for place, text in enumerate(texts)]


def _instructed(base: AnyPrompt, text: str, name: str) -> AnyPrompt:
    # what is written is no template: its braces would be run
    escaped = "{% raw %}" + re.sub(r"\{%|%\}", "", text) + "{% endraw %}\n\n"
    entry = base.template.name.partition("/")[0]
    return replace(
        base,
        template=replace(
            base.template.composed(f"{entry}/{name}", before=escaped), follows="written by a model"
        ),
    )


def _unescaped(text: str) -> str:
    return text.replace("{% raw %}", "").replace("{% endraw %}", "").strip()


def _shown(row: StudyRow) -> str:
    return " / ".join(str(value) for value in row.columns.values() if isinstance(value, str))[:240]


def _right(race: Race, prompt: AnyPrompt, row: StudyRow) -> str:
    if isinstance(prompt, Prompt):
        return race.loaded.labels[row.label]
    if isinstance(prompt, ChoicePrompt):
        choices, gold = prompt.of(row)
        return choices[gold]
    # the first of several references
    return prompt.wanted(row)[0]
