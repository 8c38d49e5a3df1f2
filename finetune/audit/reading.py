"""A finished run → the rows that it was trained on and those that it wasn't, as its attacks read them. Knows
verbs by what their arguments.yaml says; knows no attack.

A run of a task is read as its task reads. One of no task is asked as a language model: of pretraining each
text, of preferences each prompt with the answer that was to become likelier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

from datasets import Dataset

from finetune.adapters.assess import evaluation_rows, trained_as
from finetune.alignment.pair_input import learnt_answers, read_preferences
from finetune.alignment.preferences import PairArguments
from finetune.artefacts.folder import Artefact
from finetune.cli.recipes import renamed_of
from finetune.data.columns import Columns
from finetune.data.laying import laid_out
from finetune.data.narrowed import CorpusArguments, PreferenceArguments
from finetune.data.sources import DataArguments, FewShotArguments, Rows, load_rows
from finetune.data.streaming import StreamingArguments
from finetune.errors import InputError
from finetune.models.load import architecture, as_trained, load_processor
from finetune.objectives.inputs import lay_out_texts, settled_rows
from finetune.tasks.options import TaskArguments
from finetune.tasks.table import TASKS, recalled
from finetune.tasks.task import Examined, Task

Group = TypeVar("Group")
ANSWERS = ("dpo",)  # verbs that make answers likelier, as arguments.yaml has them
# options that say which rows of a set are read, and nothing of how
WHICH = ("dataset_config", "data_files", "eval_dataset_name", "hold_out", "max_train_rows", "max_eval_rows")


def told(options: dict[str, Any], kind: type[Group], **changes: Any) -> Group:
    """A group of options as an artefact's arguments.yaml has them."""
    # old runs lack options that came later: defaults stand in
    renamed = renamed_of([kind])
    options = options | {new: options[old] for old, new in renamed.items() if options.get(old) is not None}
    known = {one.name: options[one.name] for one in fields(kind) if one.init and one.name in options}  # type: ignore[arg-type]
    return kind(**(known | changes))


@dataclass(frozen=True)
class RunRows:
    """How a run's rows are read.

    Attributes:
        row: of TASKS: the run's own, or that of a language model's texts.
        whole: training and evaluation rows as the run read them.
        others: the name of a data set → its rows, read alike.
        name: of the run's own rows.
        aligned: whether its adapter stands on a start that was merged.
        repeatable: whether training on `row` is what the run did.
    """

    row: Task
    options: TaskArguments
    whole: Examined
    others: Callable[[str], Dataset]
    name: str
    aligned: bool = False
    repeatable: bool = True


def rows_of_run(artefact: Artefact) -> RunRows:
    """The rows of a run of train, sft, pretrain or dpo.

    Raises:
        InputError: a run of another verb, or an objective without a loss of the next token.
    """
    options = artefact.options
    if "objective" in options:
        return _texts(artefact)
    if options.get("task") in ANSWERS:
        return _answers(artefact)
    if options.get("task") not in TASKS:
        raise InputError(
            f"{artefact.folder} holds a run of '{options.get('task') or options.get('algorithm') or 'ppo'}', "
            "whose rows have no loss to attack by. Set --artefact to a run of train, sft, pretrain or dpo"
        )
    row, settings = trained_as(artefact)
    # as the run read its rows, without what only its printing and repeating asked for
    data = told(options, FewShotArguments, seeds=1, check=False, show_rows=0)
    # the same seeds give the same samples and splits as then
    whole = row.examine(row.load(data), data)

    def others(name: str) -> Dataset:
        named = DataArguments(dataset_name=[name])
        # all of them: an attack must tell members from others, and those that are both are refused by name
        found = evaluation_rows(artefact, row, named, keep_trained_rows=True)[0].rows.eval
        assert found is not None
        return found

    return RunRows(row, settings, whole, others, data.name)


def _texts(artefact: Artefact) -> RunRows:
    """A run of pretraining on texts, each of which is a row."""
    options = artefact.options
    if options["objective"] != "clm":
        raise InputError(
            f"{artefact.folder} learnt the objective '{options['objective']}', of which no attack here knows "
            "a text's loss. Set --artefact to a run of --objective clm"
        )
    data = told(options, CorpusArguments, show_rows=0)
    row, settings = _language(artefact)

    def read(rows: Rows, own: CorpusArguments) -> Examined:
        laid, columns = laid_out(rows, own, lay_out_texts)
        text = columns.text
        kept = [
            part and settled_rows(part, {"text": text}, own, where, limit)
            for part, where, limit in (
                (laid.train, "training", own.max_train_rows), (laid.eval, "evaluation", own.max_eval_rows),
            )
        ]  # fmt: skip
        return Examined(Rows(*kept, rows.name), Columns(text, None, text), None)

    whole = read(load_rows(data, fallback=None), data)
    return RunRows(row, settings, whole, partial(_named, read, data), data.name, repeatable=False)


def _answers(artefact: Artefact) -> RunRows:
    """A run on preferences, of which an answer that was to become likelier is a row with its prompt."""
    options = artefact.options
    data, pairs = told(options, PreferenceArguments, check=False, show_rows=0), told(options, PairArguments)
    row, settings = _language(artefact)
    processor = load_processor(str(artefact.folder))

    def read(rows: Rows, own: DataArguments) -> Examined:
        parts = read_preferences(
            own, pairs, processor, options["max_length"], stream=StreamingArguments(),
            single=options.get("algorithm") == "kto", rows=rows,
        )  # fmt: skip
        (train, columns), (held, _) = (learnt_answers(part) for part in parts)  # type: ignore[arg-type]
        return Examined(Rows(train, held, rows.name), columns, None)

    whole = read(load_rows(data), data)
    others = partial(_named, read, data)
    return RunRows(row, settings, whole, others, data.name, aligned=True, repeatable=False)


def _language(artefact: Artefact) -> tuple[Task, TaskArguments]:
    """The row of instruction tuning, which reads bare texts too, as wide as the run read."""
    arguments = {"task": "sft", "max_length": artefact.options["max_length"], "chat": False,
                 "max_new_tokens": 1}  # fmt: skip
    return recalled(arguments, architecture(as_trained(artefact.options, artefact.source)))


def _named(read: Callable[..., Examined], data: Any, name: str) -> Dataset:
    """Rows of another data set by the columns of the run's own."""
    own = replace(data, dataset_name=[name], **dict.fromkeys(WHICH), train_split="train", eval_split=None)
    part = load_rows(own, train=False).eval
    # both splits at once: how these are sampled is the audit's affair
    found = read(Rows(part, part, name), own).rows.eval
    assert found is not None
    return found
