"""Templates × verbalizers × examples × seeds × models on one data set → scores, and which to take. Knows rows; knows no files.

The prompt is chosen on training rows; what it is worth is said on rows that chose nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.errors import InputError
from finetune.metrics import classification
from prompts.scoring.cache import Memory
from prompts.scoring.score import Request
from prompts.study import calibrate, ensemble
from prompts.study.rows import Row, Table
from prompts.study.search import balanced_accuracy, compositions, search_words, whole_words
from prompts.study.shots import Pool, choose
from prompts.templates.entries import Entry, read_entry
from prompts.templates.prompt import Prompt, compose, split_name
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, corrected

logger = logging.getLogger(__name__)
DOMAIN_INPUTS = 20  # as many as Fei et al. 2023 draw
KEPT = 6  # templates that a search hands on to the study
CALIBRATIONS = ("raw", "contextual", "domain", "pmi", "prior", "batch")


@dataclass
class StudyArguments:
    """Which prompts are asked, how, and of whom."""

    prompts: list[str] = field(
        default_factory=lambda: ["sentiment"],
        metadata={
            "help": "Prompts of one task: entry, entry/template or entry/template/verbalizer; an entry of the library or a file."
        },
    )
    models: list[str] = field(
        default_factory=lambda: ["smollm2"],
        metadata={"help": "Models to ask: hub names, folders, packaged models, or folders of adapters."},
    )
    shots: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Numbers of examples that stand before a question."}
    )
    shot_choice: str = field(
        default="fixed",
        metadata={
            "help": "How examples are chosen: fixed (for all rows), random, balanced, nearest (each row its own)."
        },
    )
    shot_seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "Seeds of the examples and their order."}
    )
    embedder: str = field(default="minilm", metadata={"help": "Encoder by which nearest examples are found."})
    chat: bool = field(default=False, metadata={"help": "Ask through the model's own chat template."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a prompt; the row's own text is cut to fit (default: what the model reads)."
        },
    )
    choose_rows: int = field(
        default=200, metadata={"help": "Training rows that the prompt is chosen on; 0 chooses none."}
    )
    search: bool = field(
        default=False,
        metadata={"help": "Try composed and paraphrased templates, and searched words, on few rows first."},
    )
    soft_rows: int = field(
        default=0,
        metadata={
            "help": "Learn a vector for each label, in place of words, on this many training rows; 0 learns none."
        },
    )
    search_rows: int = field(
        default=64, metadata={"help": "Training rows that a search tries its candidates on."}
    )
    check: bool = field(
        default=False, metadata={"help": "Only read the prompts on the data and say what is wrong with them."}
    )
    cache_file: str | None = field(
        default=None, metadata={"help": "File of answers asked before (default: cache.sqlite in output_dir)."}
    )
    output_dir: str = field(
        default="runs/prompts", metadata={"help": "Folder for rows, figures and the report."}
    )


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
    """A cell's answers: part → scores of labels [rows, labels], for training and unseen rows and for what calibration asks.

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


@dataclass(frozen=True)
class Parts:
    """Rows by what they are for: the study is measured on `unseen`, the rest is of the training split."""

    unseen: list[Row]
    training: list[Row]
    examples: list[Row]
    search: list[Row]
    tuning: list[Row]
    soft: list[Row]


def check_numbers(study: StudyArguments) -> None:
    """
    Raises:
        InputError: a number below what it can be.
    """
    wanted = {"choose_rows": 0, "search_rows": 1, "soft_rows": 0, "max_length": 1, "shots": 0}
    for name, least in wanted.items():
        given = vars(study)[name]
        wrong = next(
            (n for n in (given if isinstance(given, list) else [given]) if n is not None and n < least), None
        )
        if wrong is not None or given == []:
            raise InputError(f"--{name} {'' if wrong is None else wrong}; wanted {least} or more")


def split_rows(training: Table | None, unseen: Table, study: StudyArguments, tuning: int = 0) -> Parts:
    """Training rows in disjoint parts, none of them a row of `unseen`; rows without a label are left out, with a count.

    Raises:
        InputError: no labelled rows, or too few for what was asked.
    """
    kept = [row for row in unseen.rows if row.label >= 0]
    if len(kept) < len(unseen.rows):
        logger.warning(
            "%d of %d rows have no label and are left out", len(unseen.rows) - len(kept), len(unseen.rows)
        )
    if not kept:
        raise InputError("0 rows with a label to measure on. Set --eval_split or --label_column")
    known = {row.identity for row in kept}
    pool = [row for row in training.rows if row.label >= 0 and row.identity not in known] if training else []
    wanted = (study.choose_rows, study.search_rows if study.search else 0, tuning, study.soft_rows)
    if len(pool) < sum(wanted) + max(study.shots):
        raise InputError(
            f"{len(pool)} training rows for {wanted[0]} to choose on, {wanted[1]} to search on, {tuning} to tune on and "
            f"{max(study.shots)} examples. Set --choose_rows, --search_rows, --tune_rows or --shots"
        )
    first, second, third, fourth = np.cumsum(wanted)
    examples = pool[fourth : fourth + 1000]
    return Parts(kept, pool[:first], examples, pool[first:second], pool[second:third], pool[third:fourth])


def examples_of(training: Table | None, unseen: Table, study: StudyArguments) -> list[Row]:
    """Training rows that can stand as examples before texts to write, none of them a row of `unseen`.

    Raises:
        InputError: too few for what was asked.
    """
    known = {row.identity for row in unseen.rows}
    found = [row for row in training.rows if row.identity not in known][:1000] if training else []
    if len(found) < max(study.shots):
        raise InputError(
            f"{len(found)} training rows for {max(study.shots)} examples. Set --shots or --train_split"
        )
    return found


def named_prompts(
    names: Sequence[str], labels: Sequence[str] | None = None, values: Sequence[Any] | None = None
) -> tuple[Entry, list[Prompt]]:
    """The entry that all names are of, and its prompts: every template with every verbalizer where none is named.

    Args:
        values: what stands in the data for each label, which promptsource's answers are made of.

    Raises:
        InputError: names of several entries, or nothing there under a name.
    """
    files = {split_name(name)[0] for name in names}
    if len(files) != 1:
        raise InputError(
            f"Prompts of several entries ({', '.join(sorted(files))}); wanted one task a run. Set --prompts"
        )
    entry = read_entry(files.pop())
    found: dict[str, Prompt] = {}
    for name in names:
        _, template, verbalizer = split_name(name)
        for t in [template] if template else entry.templates:
            own = [t] if entry.paired else list(entry.words)
            for v in [verbalizer] if verbalizer else own:
                prompt = Prompt(entry.template(t), entry.verbalizer(v, labels, values))
                found.setdefault(prompt.name, prompt)
    return entry, list(found.values())


def for_family(prompts: list[Prompt], family: str, row: Row) -> list[Prompt]:
    """The prompts that a kind of model can be asked: text after the slot is out of a causal model's sight."""
    fit = [p for p in prompts if family != "causal" or not p.template.render(row.columns).after.strip()]
    left = sorted({p.template.name for p in prompts} - {p.template.name for p in fit})
    if left and fit:
        logger.warning("Left out for a causal model, as text follows their slot: %s", ", ".join(left))
    if not fit:
        raise InputError(
            f"{', '.join(left)}: text follows the slot, which a causal model can't see; wanted {{{{ mask }}}} at the end. "
            "Set --prompts, or --models to a masked model"
        )
    return fit


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
        """Scores of every prompt on every part: prompt's name → part → [rows, labels]; `words`, `requests`: part → the same."""
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


def searched(asking: Asking, prompts: list[Prompt], parts: Parts, labels: Sequence[str]) -> list[Prompt]:
    """The prompts, and with them the best of what a search makes of them, tried on a few labelled rows."""
    gold = np.array([row.label for row in parts.search])
    absent = [label for number, label in enumerate(labels) if number not in gold]
    if absent:
        raise InputError(
            f"No row of '{absent[0]}' among the {len(gold)} that words are searched on. Set --search_rows"
        )
    by_template = {prompt.template.name: prompt.template for prompt in prompts}
    verbalizers = list({prompt.verbalizer.name: prompt.verbalizer for prompt in prompts}.values())
    row = parts.search[0]
    made = [
        t
        for t in compositions(list(by_template.values()))
        if asking.memory.scorer.family != "causal" or _ends(t, row)
    ]
    candidates = [Prompt(template, verbalizer) for template in made for verbalizer in verbalizers]
    tried = asking.ask([*prompts, *candidates], {"search": parts.search}, 0, 0)
    ranked = sorted([*prompts, *candidates], key=lambda p: -balanced_accuracy(tried[p.name]["search"], gold))
    best = list({prompt.template.name: prompt.template for prompt in ranked}.values())[:KEPT]
    requests = [asking.request([Prompt(best[0], verbalizers[0])], row, 0, 0) for row in parts.search]
    distributions = asking.memory.scorer.distributions(requests)
    tokens = whole_words(
        asking.memory.scorer.tokenizer, distributions.shape[1], best[0].render(row.columns).gap
    )
    words = search_words(distributions, gold, tokens, labels)
    logger.warning("Words found for %s: %s", ", ".join(labels), ", ".join(w[0] for w in words.words))
    verbalizers.append(words)
    found = {prompt.name: prompt for prompt in [*prompts, *(Prompt(t, v) for t in best for v in verbalizers)]}
    return list(found.values())


def _ends(template: Template, row: Row) -> bool:
    return not template.render(row.columns).after.strip()


def value_of(scores: np.ndarray, gold: np.ndarray, labels: Sequence[str], metric: str) -> float:
    """One figure of scores [rows, labels]: accuracy, macro_f1, micro_f1 or matthews."""
    figures = classification.labels(scores, gold, labels)
    if metric not in figures:
        raise InputError(
            f"Unknown metric '{metric}'; wanted one of: {', '.join(figures)}. Mend the entry's `metric`"
        )
    return figures[metric]


def choose_prompt(
    found: list[Answers], gold: np.ndarray, labels: Sequence[str], metric: str
) -> tuple[Answers, str]:
    """The cell and calibration with the best figure on the training rows; the first of equal ones."""
    options = [(answers, how) for answers in found for how in CALIBRATIONS]
    return max(
        options, key=lambda option: value_of(option[0].scores(option[1], "training"), gold, labels, metric)
    )


def ensembles(found: list[Answers], gold_training: np.ndarray | None) -> dict[str, np.ndarray]:
    """Scores on unseen rows of all prompts together: mean, vote, weighted by training accuracy; raw and batch-calibrated."""
    made = {}
    for how in ("raw", "batch"):
        stack = np.stack([answers.scores(how) for answers in found])
        made[f"mean, {how}"], made[f"vote, {how}"] = ensemble.mean(stack), ensemble.vote(stack)
        if gold_training is not None and len(gold_training):
            right = [(answers.scores(how, "training").argmax(1) == gold_training).mean() for answers in found]
            made[f"weighted, {how}"] = ensemble.weighted(stack, np.array(right) + 1e-9)
    return made
