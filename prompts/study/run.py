"""A study from the rows to the report: the steps of scripts/prompt.py. Knows all of the package; knows no
command line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import resolved_options
from finetune.errors import InputError
from prompts.scoring.cache import Memory
from prompts.scoring.connection import EndpointArguments
from prompts.scoring.endpoint import Endpoint
from prompts.scoring.load import ScoringArguments, embed, load_asked, model_fingerprint
from prompts.study.asking import Asking, Notes
from prompts.study.findings import Findings
from prompts.study.judge import Judging, judged
from prompts.study.options import AnswerArguments, StudyArguments, StudyRunArguments
from prompts.study.outcomes import AnyAnswers, outcomes
from prompts.study.parts import Parts
from prompts.study.prompts import choice_prompts, for_family, text_prompts
from prompts.study.report import write_report
from prompts.study.rows import StudyRow
from prompts.study.search import searched, write_entry
from prompts.study.soft import soft_cells
from prompts.study.study import Loaded, together
from prompts.study.weighed import Answers, choice_cells, label_cells
from prompts.study.written import text_cells
from prompts.templates.entries import Entry
from prompts.templates.lint import refusals
from prompts.templates.prompt import Prompt, split_name
from prompts.templates.reading import entry_file
from prompts.templates.template import Skipped

logger = logging.getLogger(__name__)
ENTRIES = "prompts"  # folder of the entry's file, in the run's


@dataclass(frozen=True)
class Options:
    """All that a study is told, as the script's options say it."""

    study: StudyArguments
    scoring: ScoringArguments = field(default_factory=ScoringArguments)
    answers: AnswerArguments = field(default_factory=AnswerArguments)
    endpoint: EndpointArguments = field(default_factory=EndpointArguments)
    run: StudyRunArguments = field(default_factory=StudyRunArguments)


def keep_options(folder: Path, *groups: Any) -> None:
    """Every option as resolved, in `arguments.yaml`, which --config takes again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "arguments.yaml",
        yaml.safe_dump(resolved_options(*groups), sort_keys=False, allow_unicode=True),
    )


def keep_entry(folder: Path, prompts: Sequence[str], other: Path | None = None) -> None:
    """The file of the prompts as it is now, in the run's folder, for --rescore where the file is gone."""
    source = entry_file(split_name(prompts[0])[0])
    kept = folder / ENTRIES / source.name
    # where it is gone, what another run kept of it
    source = source if source.is_file() or other is None else other / ENTRIES / source.name
    if source == kept:
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, source.read_text(encoding="utf-8"))


def study_all(loaded: Loaded, options: Options) -> list[Findings]:
    """Ask every model every prompt; the main process writes a report for each kind of prompts that the entry
    has.

    A model or a prompt that can't be asked is noted, and doesn't end the others.

    Raises:
        InputError: nothing could be asked at all.
    """
    entry, prompts, parts, notes = loaded.entry, loaded.prompts, loaded.parts, loaded.notes
    asked: dict[str, list[AnyAnswers]] = {}
    combined: dict[str, dict[str, np.ndarray]] = {}
    templates = {template.name: template for template in entry.templates.values()}
    told: dict[str, str] = {}
    texts = text_prompts(entry, options.study.prompts)
    choices = choice_prompts(entry, options.study.prompts)
    # once for all models: they are made by an encoder of its own
    vectors = _vectors(options.study, parts)
    memory = None
    for name, memory in _memories(options, notes):
        asking = Asking(
            memory,
            options.study,
            parts.examples,
            vectors,
            # the entry's layout, the user's word on long rows
            replace(entry.layout, on_long=options.answers.on_long),
            notes=notes,
        )
        asking.model = name
        try:
            fit = _fit(asking, loaded, options) if prompts else []
            # a search adds prompts, whose texts the report shows
            templates |= {prompt.template.name: prompt.template for prompt in fit}
            own = label_cells(asking, name, fit, parts) if fit else []
            # type: ignore[operator]
            own += soft_cells(asking, name, fit, parts) if options.study.soft_rows and fit else []
            # kinds apart, since their figures are
            asked.setdefault("labels", []).extend(own)
            if choices:
                asked.setdefault("choices", []).extend(choice_cells(asking, name, choices, parts))
            if texts:
                asked.setdefault("text", []).extend(
                    text_cells(asking, name, texts, parts, entry=entry, answers=options.answers)
                )
        # one model's trouble ends that model alone
        except InputError as error:
            notes.trouble(name, "all", str(error))
            logger.error("%s: %s", name, str(error).removeprefix(f"{name}: "))
            continue
        combined[name] = together(own, {"unseen": parts.unseen, "training": parts.training})
        told[name] = _told(memory)
        logger.warning("%s: %d rows, %d answers computed", name, len(parts.unseen), memory.computed)
    found = []
    # a kind that nothing could be asked of has no report
    for kind in [kind for kind, answers in asked.items() if answers]:
        findings = _findings(loaded, kind, asked[kind], options)
        extra = combined if kind == "labels" else {}
        found.append(replace(findings, ensembles=extra, models=told, templates=templates))
    if not found:
        reasons = "; ".join(dict.fromkeys(what for _, _, what in notes.troubles))
        raise InputError(f"'{entry.name}': nothing could be asked. {reasons}")
    # every process has all answers; one writes
    if memory is None or memory.state.is_main_process:
        for one in found:
            if options.study.search and one.chosen and isinstance(one.chosen.answers, Answers):
                write_winner(one, Path(options.study.output_dir) / "winner.yaml")
            # one kind has the folder to itself
            folder = Path(options.study.output_dir) / (one.kind if len(found) > 1 else "")
            write_report(one, folder)
            print((folder / "report.md").read_text(encoding="utf-8"))
    return found


def _findings(loaded: Loaded, kind: str, answers: list[AnyAnswers], options: Options) -> Findings:
    metric = options.answers.metric or loaded.entry.metric_of(kind)
    rows = {"unseen": loaded.parts.unseen, "training": loaded.parts.training}
    word = ""
    # the judge's scores are figures of the answers, so that it is asked before
    if kind == "text" and (metric == "judge" or options.answers.judge):
        answers, word = _judged(loaded.entry, answers, rows, options, loaded.notes)
    return Findings(
        loaded.entry,
        kind,
        metric,
        tuple(loaded.labels),
        rows,
        outcomes(answers, rows, loaded.labels, metric),
        loaded.population,
        notes=loaded.notes,
        judge=word,
        power=options.run.power,
        trial=loaded.trial,
    )


def _judged(
    entry: Entry, answers: list[AnyAnswers], rows: dict[str, list[StudyRow]], options: Options, notes: Notes
) -> tuple[list[AnyAnswers], str]:
    """The written answers with a judge's scores, and what its word is worth."""
    if entry.judge is None:
        raise InputError(
            f"'{entry.name}' has no `judge` with a template and labels; add one to the entry, or leave "
            "out --judge"
        )
    # the user's judge goes before the entry's
    judge = replace(entry.judge, model=options.answers.judge or entry.judge.model)
    memory = memory_of(judge.model, options)
    judging = Judging(judge, memory, notes)
    made, stayed = [], []
    for one in answers:
        scores, consistent = judged(one, judging, rows)  # type: ignore[arg-type]
        made.append(replace(one, judged=scores))  # type: ignore[arg-type]
        stayed.append(consistent)
    known_shares = [share for share in stayed if not np.isnan(share)]
    # a template that names no place asks the same in both orders, which shows nothing
    share = 100 * float(np.mean(known_shares or [0.0]))
    swapped = (
        f"its label stayed in {share:.0f} % of answers when places were swapped. "
        if {"first", "second"} & set(judge.template.columns)
        else "its template names no `first` and `second`, so that no places were swapped. "
    )
    silent = "it named none of its labels, so that nothing is judged. "
    word = f"Judge: {judge.model}; {swapped if known_shares else silent}"
    if options.answers.judge_rows:
        known = judging.agreement(options.answers.judge_rows)
        word += (
            f"It agrees with people in {known['agreement']:.3f} of {known['rows']} labelled answers "
            f"(Cohen's kappa {known['kappa']:.2f})."
        )
    else:
        word += "Its agreement with people is unmeasured (--judge_rows)."
    return made, word


def _fit(asking: Asking, loaded: Loaded, options: Options) -> list[Prompt]:
    """The prompts that this model can be asked, with what a search adds to them; the others are noted."""
    scorer, name = asking.memory.scorer, asking.model
    entry, parts, labels = loaded.entry, loaded.parts, loaded.labels
    fit = []
    askable = _askable(loaded.prompts, parts.unseen, asking.notes, name)
    for prompt in for_family(askable, scorer.family, parts.unseen, asking.notes, name) if askable else []:
        # one row is enough to see whether words and slot fit the tokenizer
        rendered = first_rendered(prompt, parts.unseen)
        faults = refusals(prompt, rendered, scorer.tokenizer) if rendered and scorer.tokenizer else []
        # one fault is enough to say
        for fault in faults[:1]:
            asking.notes.trouble(name, prompt.name, fault)
        if not faults:
            fit.append(prompt)
    if options.study.search and fit:
        fit = searched(asking, fit, parts, labels)
        # one process writes what all found alike
        if asking.memory.state.is_main_process:
            write_entry(entry, fit, labels, Path(options.study.output_dir) / "searched.yaml")
    return fit


def _askable(prompts: Sequence[Prompt], rows: Sequence[StudyRow], notes: Notes, model: str) -> list[Prompt]:
    """The prompts whose template renders for some row, or skips it; the others are noted, once a template."""
    faults: dict[str, str] = {}
    for template in {prompt.template.name: prompt.template for prompt in prompts}.values():
        for row in rows:
            try:
                template.render(row.columns)
            # on purpose: each such row is noted where it is asked
            except Skipped:
                pass
            except InputError as error:
                faults.setdefault(template.name, str(error))
                continue
            # one row is enough: those that it can't be asked of are noted by themselves
            faults.pop(template.name, None)
            break
    for name, fault in faults.items():
        notes.trouble(model, name, fault)
    return [prompt for prompt in prompts if prompt.template.name not in faults]


def write_winner(found: Findings, path: Path) -> None:
    """The chosen prompt as an entry that --prompts reads; words that were learnt as vectors can't be
    written."""
    assert found.chosen is not None
    answers = found.chosen.answers
    assert isinstance(answers, Answers)
    template = found.templates.get(answers.cell.template)
    # vectors are no words that a file could hold
    if template is not None and answers.cell.verbalizer != "soft":
        write_entry(found.entry, [Prompt(template, answers.verbalizer)], found.labels, path)


def first_rendered(prompt: Prompt, rows: Sequence[StudyRow]) -> Any:
    """The first row that a template says anything of; None where there is none."""
    # rows that a template says nothing of can't show how it renders
    for row in rows:
        try:
            return prompt.template.render(row.columns)
        except InputError:
            continue
    return None


def _memories(options: Options, notes: Notes) -> Iterator[tuple[str, Memory]]:
    """Each model's name with what asks it, one after the other; one that can't be had is noted."""
    for name in options.study.models:
        try:
            memory = memory_of(name, options)
        except InputError as error:
            notes.trouble(name, "all", str(error))
            logger.error("%s: %s", name, str(error).removeprefix(f"{name}: "))
            continue
        yield name, memory


def memory_of(name: str, options: Options) -> Memory:
    """What asks a model, with what it answered before.

    Raises:
        InputError: no such model, or an address that doesn't answer.
    """
    # the fingerprint knows the weights, so that the file may hold several models
    scorer = load_asked(name, options.scoring, options.endpoint)
    kept = options.study.cache_file or Path(options.study.output_dir) / "cache.sqlite"
    return Memory(scorer, model_fingerprint(scorer), Path(kept))


def _told(memory: Memory) -> str:
    """How a model answers, and what it took."""
    scorer = memory.scorer
    if not isinstance(scorer, Endpoint):
        return "here: log-probabilities of the whole answers; texts greedily, unless they are drawn"
    used = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in scorer.tokens.items())
    cost = f", {scorer.cost:.4f} at the prices given" if scorer.cost else ""
    return f"{scorer.told}; {used}{cost}"


def _vectors(study: StudyArguments, parts: Parts) -> dict[str, np.ndarray] | None:
    """Embeddings of all rows where examples are chosen by them."""
    if study.shot_choice != "nearest" or not max(study.shots):
        return None
    # all that may be asked, and all that may stand before it
    rows: list[StudyRow] = [*parts.unseen, *parts.training, *parts.examples]
    shown = [" ".join(str(value) for value in row.columns.values()) for row in rows]
    return {row.identity: vector for row, vector in zip(rows, embed(study.embedder, shown), strict=True)}


def troubles(found: Sequence[Findings]) -> int:
    """What went wrong and was noted; a run with any ends with status 1."""
    # notes are shared by all kinds of a run
    return sum(len(one.notes.troubles) for one in found[:1])
