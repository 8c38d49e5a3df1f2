"""A prompt → what a language model says of unseen rows: without examples, behind them, behind the nearest.
Knows the parts of a study; knows no budget's plan and no training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from finetune.data.columns import class_ids
from finetune.errors import InputError
from prompts.ladder.budget import TimeBudget
from prompts.ladder.options import LadderArguments
from prompts.ladder.rows import LadderRows
from prompts.ladder.tuned import Said
from prompts.scoring.cache import Memory
from prompts.scoring.load import embed, load_prompt_scorer, model_fingerprint
from prompts.study import calibrate
from prompts.study.asking import Asking
from prompts.study.options import StudyArguments
from prompts.study.parts import Parts
from prompts.study.rows import StudyRow, source_of
from prompts.study.weighed import blank_rows, said
from prompts.templates.layout import Layout
from prompts.templates.prompt import Prompt, split_name
from prompts.templates.reading import read_entry
from prompts.templates.template import Template
from prompts.templates.verbalizer import make_verbalizer

PORTION = 25  # rows between two looks at the clock
EMBEDDER = "minilm"
PLAIN = "{{ text }}\n\nCategory: {{ mask }}"


def ladder_prompt(name: str | None, labels: list[str], dataset: str = "") -> tuple[Prompt, Layout]:
    """A prompt of the library, its labels in the rows' order, or the plain one, which names the classes in
    front.

    Args:
        dataset: whose labels the prompt's entry may have other names for.

    Raises:
        InputError: no such prompt, or one whose labels are others.
    """
    if name is not None:
        prompt, entry = Prompt.load(name, labels), read_entry(split_name(name)[0])
        # the entry may call the data set's labels otherwise
        own = [source_of(entry, dataset).labels.get(label, label) for label in labels]
        known = prompt.verbalizer
        if set(known.labels) != set(own):
            raise InputError(
                f"--prompt {name} knows {', '.join(known.labels)}; the rows have {', '.join(labels)}. Set "
                "another, or leave it out"
            )
        # words in the rows' order: a label's number is its place there
        words = tuple(known.words[known.labels.index(label)] for label in own)
        return Prompt(prompt.template, replace(known, labels=tuple(labels), words=words)), Layout()
    verbalizer = make_verbalizer("ladder/named", labels, "{name}")
    # braces would be read as the template's own
    listed = ", ".join(verbalizer.flat).replace("{", "(").replace("}", ")")
    front = Template("ladder/classes", f"Categories: {listed}.")
    return Prompt(Template("ladder/category", PLAIN), verbalizer), Layout(description=front)


@dataclass
class LadderPrompts:
    """One language model, asked of the unseen rows in several ways.

    Attributes:
        folder: where answers are kept, so that none is asked twice.
    """

    rows: LadderRows
    options: LadderArguments
    clock: TimeBudget
    folder: Path

    @cached_property
    def memory(self) -> Memory:
        """The model, loaded when it is first asked."""
        scorer = load_prompt_scorer(self.options.prompt_model)
        return Memory(scorer, model_fingerprint(scorer), self.folder / "cache.sqlite")

    @cached_property
    def prompt(self) -> tuple[Prompt, Layout]:
        """What is asked."""
        return ladder_prompt(self.options.prompt, self.rows.labels, self.rows.name)

    @cached_property
    def unseen(self) -> list[StudyRow]:
        """The rows that are asked about."""
        return self._study_rows(self.rows.unseen)

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """Embeddings of the unseen rows; those of examples join them."""
        return self._embedded(self.unseen)

    def ask(self, way: str, train: Dataset, seed: int) -> list[Said]:
        """Answers without examples or behind some of `train`; fixed ones also calibrated, from the same
        questions.

        Raises:
            BudgetSpent: time ran out before the end; what was asked is kept.
            InputError: no such model, or rows that can't be asked.
        """
        examples = self._study_rows(train)
        # a ladder's smallest numbers of labels may be below the shots
        count = 0 if way == "zero_shot" else min(self.options.shots, len(examples))
        nearest = way == "nearest"
        vectors = (self.vectors | self._embedded(examples)) if nearest else None
        prompt, layout = self.prompt
        study = StudyArguments(
            shots=[count], shot_choice="nearest" if nearest else "fixed", shot_seeds=[seed],
            max_length=min(self.memory.scorer.longest, 1024),
        )  # fmt: skip
        asking = Asking(self.memory, study, examples, vectors, layout)
        start, parts = time.perf_counter(), []
        for first in range(0, len(self.unseen), PORTION):
            # the pace of this way itself, which tells better than any guess
            pace = (time.perf_counter() - start) / max(first, 1)
            self.clock.check(pace * (len(self.unseen) - first) if first else 0.0)
            rows = {"unseen": self.unseen[first : first + PORTION]}
            parts.append(self._scores(asking, prompt, rows, (count, seed))["unseen"])
        # in portions: what was asked before the clock stopped is kept by the memory
        scores, done = np.concatenate(parts), time.perf_counter()
        found = [self._said(scores, done - start)]
        if way == "few_shot":
            # calibration asks of inputs without content, behind the same examples
            blanks = blank_rows([prompt], Parts(self.unseen, [], examples, [], [], []), study)
            blank = self._scores(asking, prompt, {"blank": blanks["contextual"]}, (count, seed))["blank"]
            # the same answers, so that it takes no time of its own
            found.append(self._said(calibrate.contextual(scores, blank), done - start))
        return found

    def _scores(
        self, asking: Asking, prompt: Prompt, rows: dict[str, list[StudyRow]], setting: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """Scores of labels [rows, labels], by part; a row that can't be asked has none (NaN)."""
        asked, made = asking.ask([prompt], rows, *setting)[prompt.name], {}
        for part, given in rows.items():
            # nan stays where a row could not be asked
            made[part] = np.full((len(given), len(self.rows.labels)), np.nan)
            made[part][asked["asked"][part].places] = asked[part]
        return made

    def _said(self, scores: np.ndarray, seconds: float) -> Said:
        chosen = said(scores)
        bare = self.memory.scorer.network
        # as it stands in memory, where asking has loaded it
        held = sum(p.numel() * p.element_size() for p in bare.parameters()) / 2**20
        return Said([int(one) for one in chosen], 0.0, 1000 * seconds / len(scores), 0.0, held, len(scores))

    def _study_rows(self, rows: Dataset) -> list[StudyRow]:
        """Rows as templates read them; texts cut to as many tokens as a tuned model reads."""
        tokenizer, limit = self.memory.scorer.tokenizer, self.options.max_length
        columns = self.rows.columns
        texts = [cut(text, tokenizer, limit) for text in rows[columns.text][:]]
        classes = class_ids(rows, columns.label, self.rows.labels)
        return [
            # the place is part of it: equal texts are rows of their own
            StudyRow({"text": text}, label, f"{place} {text}", place)
            for place, (text, label) in enumerate(zip(texts, classes, strict=True))
        ]

    def _embedded(self, rows: list[StudyRow]) -> dict[str, np.ndarray]:
        found = embed(EMBEDDER, [row.columns["text"] for row in rows])
        return {row.identity: vector for row, vector in zip(rows, found, strict=True)}


def cut(text: str, tokenizer: Any, limit: int) -> str:
    """The first `limit` tokens of a text, as text."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    # by characters, so that the cut text is what the tokenizer had read
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]
