"""A study from the rows to the report: the steps of scripts/prompt.py. Knows all of the package; knows no
command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import PartialState

from finetune.artefacts.files import write_atomically
from finetune.artefacts.folder import resolved_options
from finetune.data.sources import DataArguments, load_rows, sample
from finetune.errors import InputError
from finetune.metrics import texts
from finetune.metrics.bootstrap import interval
from finetune.reports.tables import markdown, with_interval
from prompts.scoring.cache import Memory
from prompts.scoring.load import ScoringArguments, embed, fingerprint, load_scorer
from prompts.scoring.score import Scorer
from prompts.study.asking import Answers, Asking, run_cells, settings
from prompts.study.options import StudyArguments, check_numbers
from prompts.study.parts import Parts, examples_of, split_rows
from prompts.study.report import Findings, write_report
from prompts.study.rows import Row, read_rows, source_of
from prompts.study.search import searched
from prompts.study.soft import soft_cells
from prompts.study.study import choose_prompt, ensembles, for_family, named_prompts, value_of
from prompts.study.tune import TuneArguments, is_tuned, save_tuned, tune
from prompts.templates.entries import Ending, Entry
from prompts.templates.lint import check_prompt, check_target, check_template, refusals
from prompts.templates.prompt import Prompt, split_name
from prompts.templates.template import Template

logger = logging.getLogger(__name__)


def keep_options(folder: Path, *groups: Any) -> None:
    """Every option as resolved, in `arguments.yaml`, which --config takes again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "arguments.yaml",
        yaml.safe_dump(resolved_options(*groups), sort_keys=False, allow_unicode=True),
    )


def read_parts(
    study: StudyArguments, data: DataArguments, tuning: TuneArguments
) -> tuple[Entry, list[Prompt], Parts, tuple[str, ...]]:
    """Rows by what they are for, and the prompts that are asked, for labels that the data may name.

    Raises:
        InputError: nothing there under a name, columns or labels that don't fit, too few rows.
    """
    check_numbers(study)
    entry, _ = _entry(study)
    if entry.targets and (study.search or study.soft_rows or tuning.tune):
        raise InputError(
            f"'{entry.name}' has texts written, no labels weighed: leave out --search, --soft_rows and --tune"
        )
    needs_training = bool(
        max(study.shots)
        or (not entry.targets and (study.choose_rows or study.search or study.soft_rows or tuning.tune))
    )
    rows = load_rows(data, train=needs_training and not study.check)
    source = source_of(entry, data.name)
    column = data.label_column or source.columns.get("label")
    by_class = column if rows.eval is not None and column in rows.eval.column_names else None
    splits = [split for split in (rows.eval, rows.train) if split is not None]
    asked = sample(rows.eval, data.max_eval_rows, data.sample_seed, by_class)
    unseen = read_rows(asked, entry, source, data.label_column, splits)
    prompts = [] if entry.targets else named_prompts(study.prompts, unseen.labels, unseen.values)[1]
    if study.check:
        return entry, prompts, Parts(unseen.rows, [], [], [], [], []), unseen.labels
    training = None
    if rows.train is not None:
        chosen = sample(rows.train, data.max_train_rows or 5000, data.sample_seed, by_class)
        training = read_rows(chosen, entry, source, data.label_column, splits)
    if entry.targets:
        return entry, [], Parts(unseen.rows, [], examples_of(training, unseen, study), [], [], []), ()
    return (
        entry,
        prompts,
        split_rows(training, unseen, study, tuning.tune_rows if tuning.tune else 0),
        unseen.labels,
    )


def _entry(study: StudyArguments) -> tuple[Entry, list[tuple[str | None, str | None]]]:
    from prompts.templates.reading import read_entry

    names = [split_name(name) for name in study.prompts]
    if len({file for file, *_ in names}) != 1:
        raise InputError(
            f"Prompts of several entries ({', '.join(study.prompts)}); wanted one task a run. Set --prompts"
        )
    return read_entry(names[0][0]), [(template, ending) for _, template, ending in names]


def tune_first(prompt: Prompt, parts: Parts, study: StudyArguments, tuning: TuneArguments) -> str:
    """Train an adapter on the first model at the prompt's slot, once; the folder it stands in, for the study
    to ask."""
    folder = Path(study.output_dir) / f"tuned_{tuning.tune}"
    state = PartialState()
    with state.main_process_first():
        if state.is_main_process:
            scorer = load_scorer(study.models[0], ScoringArguments(dtype="float32"))
            made_from = _made_from(scorer, prompt, parts.tuning, tuning)
            if not is_tuned(folder, made_from):
                network = tune(scorer, prompt, parts.tuning, tuning)
                save_tuned(network, scorer.tokenizer, folder, study.models[0], made_from, tuning)
    return str(folder)


def _made_from(scorer: Scorer, prompt: Prompt, rows: list[Row], tuning: TuneArguments) -> str:
    """Hash of all that an adapter follows from: model, prompt, rows, options."""
    told = [
        prompt.template.text,
        prompt.verbalizer.words,
        [(row.identity, row.label) for row in rows],
        vars(tuning),
    ]
    return sha256(json.dumps([fingerprint(scorer), *told]).encode()).hexdigest()


def study_prompts(
    entry: Entry,
    prompts: list[Prompt],
    parts: Parts,
    labels: tuple[str, ...],
    study: StudyArguments,
    scoring: ScoringArguments,
) -> Findings:
    """Ask every model every prompt; the main process writes the report. The same findings in every
    process."""
    found: list[Answers] = []
    together: dict[str, dict[str, np.ndarray]] = {}
    training = np.array([row.label for row in parts.training])
    memory = None
    for name, memory in _memories(study, scoring):
        fit = for_family(prompts, memory.scorer.family, parts.unseen[0])
        first = parts.unseen[0].columns
        refused = [
            line for p in fit for line in refusals(p, p.template.render(first), memory.scorer.tokenizer)
        ]
        if refused:
            raise InputError(f"{name}: {refused[0]}")
        asking = Asking(memory, study, parts.examples, _vectors(study, parts))
        if study.search:
            fit = searched(asking, fit, parts, labels)
        own = run_cells(asking, name, fit, parts) + (
            soft_cells(asking, name, fit, parts) if study.soft_rows else []
        )
        found += own
        if len(own) > 1:
            together[name] = ensembles(own, training)
        logger.warning(
            "%s: %d prompts, %d rows, %d answers computed", name, len(own), len(parts.unseen), memory.computed
        )
    chosen, value = None, None
    if len(training):
        chosen = choose_prompt(found, training, labels, entry.metric)
        value = value_of(chosen[0].scores(chosen[1], "training"), training, labels, entry.metric)
    findings = Findings(entry.name, entry.metric, labels, parts.unseen, found, chosen, value, together)
    if memory is not None and memory.state.is_main_process:
        write_report(findings, Path(study.output_dir))
        print((Path(study.output_dir) / "report.md").read_text(encoding="utf-8"))
    return findings


def _memories(study: StudyArguments, scoring: ScoringArguments) -> Iterator[tuple[str, Memory]]:
    """Each model's name with what asks it, one after the other."""
    for name in study.models:
        scorer = load_scorer(name, scoring)
        memory = Memory(
            scorer, fingerprint(scorer), Path(study.cache_file or Path(study.output_dir) / "cache.sqlite")
        )
        yield name, memory


def _vectors(study: StudyArguments, parts: Parts) -> dict[str, np.ndarray] | None:
    """Embeddings of all rows where examples are chosen by them."""
    if study.shot_choice != "nearest" or not max(study.shots):
        return None
    rows: list[Row] = [*parts.unseen, *parts.training, *parts.examples]
    shown = [" ".join(str(value) for value in row.columns.values()) for row in rows]
    return {row.identity: vector for row, vector in zip(rows, embed(study.embedder, shown), strict=True)}


def check(
    entry: Entry, prompts: list[Prompt], parts: Parts, study: StudyArguments, scoring: ScoringArguments
) -> list[str]:
    """Print what is wrong with the prompts on the data, for every model.

    Raises:
        InputError: something is.
    """
    lines = []
    for name in study.models:
        scorer = load_scorer(name, scoring)
        limit = min(study.max_length or scorer.longest, scorer.longest)
        for prompt in prompts:
            lines += [
                f"{name}: {line}"
                for line in check_prompt(prompt, parts.unseen, scorer.tokenizer, limit, scorer.family)
            ]
        for template, target, _ in _asked_texts(entry, study) if entry.targets else ():
            found = check_template(template, parts.unseen, scorer.tokenizer, limit, scorer.family)
            lines += [f"{name}: {line}" for line in [*found, *check_target(target, parts.unseen)]]
    for line in dict.fromkeys(lines):
        print(line)
    if lines:
        raise InputError(
            f"{len(set(lines))} things are wrong with the prompts of '{entry.name}', listed above"
        )
    print(
        f"{len(prompts) or len(entry.templates)} prompts of '{entry.name}' on {len(parts.unseen)} rows: "
        "nothing wrong"
    )
    return lines


def generate_all(
    entry: Entry, parts: Parts, study: StudyArguments, scoring: ScoringArguments
) -> list[dict[str, str]]:
    """Have every model write an answer for every row by every template, and compare with the wanted texts."""
    table, lines, memory = [], [], None
    vectors = _vectors(study, parts)
    for name, memory in _memories(study, scoring):
        asking = Asking(memory, study, parts.examples, vectors)
        for (shots, seed), (template, target, ending) in product(settings(study), _asked_texts(entry, study)):
            wanted = [target.plain(row.columns).strip() for row in parts.unseen]
            requests = [
                asking.text_request(template, target, row, (shots, seed), ending.tokens)
                for row in parts.unseen
            ]
            written = memory.written(requests, ending)
            figures = texts.text_figures(written, wanted)
            each = [
                texts.text_figures([one], [other])["rougeL"]
                for one, other in zip(written, wanted, strict=True)
            ]
            prompt = f"{template.name}/{ending.name}" + (f" {shots} shots, seed {seed}" if shots else "")
            values = {k: f"{v:.3f}" for k, v in figures.items() if k != "rougeL"}
            table.append(
                {
                    "model": name,
                    "prompt": prompt,
                    "rougeL": with_interval(figures["rougeL"], interval(np.array(each))),
                    **values,
                }
            )
            lines += [
                {"model": name, "prompt": prompt, "written": w, "wanted": g}
                for w, g in zip(written, wanted, strict=True)
            ]
        if asking.cut:
            logger.warning("%d prompts of %s were cut to fit (--max_length)", asking.cut, name)
    if memory is not None and memory.state.is_main_process:
        folder = Path(study.output_dir)
        report = f"# {entry.name}: {len(parts.unseen)} rows, texts written by models\n\n{markdown(table)}\n"
        write_atomically(folder / "report.md", report)
        write_atomically(
            folder / "texts.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
        print(report)
    return table


def _asked_texts(entry: Entry, study: StudyArguments) -> list[tuple[Template, Template, Ending]]:
    """Templates with what their texts are compared with, and where they end."""
    found = []
    for template, ending in _entry(study)[1]:
        if ending and ending not in entry.endings:
            raise InputError(
                f"{entry.name}: no ending '{ending}'; there are: {', '.join(entry.endings)}. Set --prompts"
            )
        for t in [template] if template else entry.templates:
            found.append(
                (entry.template(t), entry.targets[t], entry.endings[ending or next(iter(entry.endings))])
            )
    return found
