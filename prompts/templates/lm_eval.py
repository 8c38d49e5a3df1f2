"""lm-evaluation-harness's task files → entries of this project. Knows both forms; runs no Python that a file
names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

METRICS = {"exact_match": "exact_match", "bleu": "bleu", "chrf": "chrf", "f1": "token_f1"}  # of texts
WEIGHED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # of choices, all of which are reported
# what says nothing of the prompts, or what this project has other ways for
ASIDE = {
    *(
        "task",
        "task_alias",
        "tag",
        "group",
        "metadata",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
    ),
    *(
        "validation_split",
        "test_split",
        "fewshot_split",
        "num_fewshot",
        "output_type",
        "should_decontaminate",
        "include",
    ),
    *("doc_to_decontamination_query", "metric_list", "unsafe_code", "custom_dataset"),
}
READ = {"doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter",
"fewshot_delimiter", "generation_kwargs",
        "filter_list", "gen_prefix", "repeats", "fewshot_config"}  # fmt: skip
NAMED = re.compile(r"[A-Za-z_]\w*")
FILTERS = {"lowercase": "lower", "uppercase": "upper", "remove_whitespace": "lstrip",
"take_first": "take_first",
           "majority_vote": "majority_vote"}  # fmt: skip


# kept as a name: what a file calls is never run
class Python:
    """What `!function module.name` stands for."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Loader(yaml.SafeLoader):
    pass


# a SafeLoader refuses tags that it doesn't know, and this one is common
_Loader.add_constructor("!function", lambda loader, node: Python(str(node.value)))


@dataclass
class Imported:
    """An entry's content as YAML would have it, and what could not be carried over, in words."""

    name: str
    content: dict[str, Any]
    left: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


def load(path: Path, seen: frozenset[Path] = frozenset()) -> dict[str, Any]:
    """A task file with those that it includes under it.

    Raises:
        InputError: a file that can't be read, or that includes itself.
    """
    if path in seen:
        raise InputError(f"{path} includes itself")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read {path}: {error}. Name another file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; wanted a task")
    below = content.get("include") or []
    under: dict[str, Any] = {}
    # the first of several goes over those behind it, and a task's own entries over all
    for name in reversed([below] if isinstance(below, str) else list(below)):
        under |= load(path.parent / str(name), seen | {path})
    return under | content


def imported(path: Path) -> Imported:
    """A task as an entry.

    Raises:
        InputError: a task that can't be carried at all: its prompts or answers are Python, or a kind that
            isn't asked here.
    """
    task = load(path)
    if isinstance(task.get("task"), list):
        members = ", ".join(str(one.get("task") if isinstance(one, dict) else one) for one in task["task"])
        raise InputError(f"{path} is a group of tasks ({members[:200]}); import each by its own file")
    name = re.sub(r"[^\w.-]+", "_", str(task.get("task") or path.stem))
    made = Imported(name, {})
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "process_docs"):
        if isinstance(task.get(key), Python):
            raise InputError(
                f"{path}: `{key}` is Python ({task[key].name}), which isn't run here; write it as a "
                "template, or give the rows "
                "the columns that it makes"
            )
    made.left += [
        f"`{key}` (Python, {value.name})" for key, value in task.items() if isinstance(value, Python)
    ]
    # what is left out must not be read as if it were a text
    task = {key: value for key, value in task.items() if not isinstance(value, Python)}
    # said and not dropped: another figure may come of what is missing
    made.left += [f"`{key}`" for key in task if key not in ASIDE | READ]
    kind = task.get("output_type", "generate_until")
    if kind not in ("multiple_choice", "generate_until"):
        raise InputError(
            f"{path}: output_type {kind}; what is asked here is multiple_choice or generate_until"
        )
    missing = next((key for key in ("doc_to_text", "doc_to_target") if task.get(key) is None), None)
    if missing:
        raise InputError(f"{path} has no `{missing}`; wanted a task with its prompt and what is right")
    delimiter = str(task.get("target_delimiter", " "))
    asked = _template(task.get("doc_to_text", ""))
    content: dict[str, Any] = {}
    if kind == "generate_until" and not delimiter and asked.endswith(" "):
        made.left.append("the blank at the prompt's end, where a written answer begins here")
    if kind == "multiple_choice":
        content |= _choices(path, task, made)
    else:
        content |= _written(path, task, made)
    if task.get("description"):
        # the description brings its own blank lines there
        content |= {"description": str(task["description"]), "description_separator": ""}
    content["separator"] = str(task.get("fewshot_delimiter", "\n\n"))
    if task.get("gen_prefix"):
        content["prefill"] = str(task["gen_prefix"])
    content["templates"] = {
        "task": {"text": asked + delimiter + "{{ mask }}", "follows": "lm-evaluation-harness"}
    }
    made.content = content
    _hint(task, made)
    return made


def _template(value: Any) -> str:
    """A template's text; a bare name is a column."""
    text = str(value)
    # lm-evaluation-harness reads a bare word as a column
    return f"{{{{ {text} }}}}" if NAMED.fullmatch(text) else text


def _choices(path: Path, task: dict[str, Any], made: Imported) -> dict[str, Any]:
    given = task.get("doc_to_choice")
    metrics = [one for one in task.get("metric_list") or () if isinstance(one, dict)]
    # another figure heads the report here than there, which has to be said
    made.left += [f"the metric {_name(one)}" for one in metrics if str(one.get("metric")) not in WEIGHED]
    made.left += ["`filter_list`, of choices"] if task.get("filter_list") else []
    if given is None:
        raise InputError(f"{path}: multiple_choice without `doc_to_choice`")
    if isinstance(given, dict):
        # a mapping's values are the choices, its keys their names
        given = list(given.values())
    listed = (
        # as JSON, which is an expression of Jinja too
        "{{ " + json.dumps([str(one) for one in given], ensure_ascii=False) + " }}"
        if isinstance(given, list)
        else _template(given)
    )
    target = task.get("doc_to_target", "")
    return {
        # how lm-evaluation-harness reads digits (see weighed.ChoicePrompt)
        "metric": "accuracy", "choices": listed, "target_is": "index_first",
        "target": str(target) if isinstance(target, int) else _template(target),
    }  # fmt: skip


def _written(path: Path, task: dict[str, Any], made: Imported) -> dict[str, Any]:
    how = task.get("generation_kwargs") or {}
    # its own defaults
    until = how.get("until") or [str(task.get("fewshot_delimiter", "\n\n"))]
    tokens = how.get("max_gen_toks", how.get("max_new_tokens", 256))
    numbers = {
        "tokens": tokens,
        "temperature": how.get("temperature") or 0,
        "repeats": task.get("repeats") or 1,
    }
    wrong = next((f"{key}: {value!r}" for key, value in numbers.items() if not _is_number(value)), None)
    if wrong:
        raise InputError(f"{path}: `{wrong}` is no number. Mend the file")
    content: dict[str, Any] = {
        "target": _of_choices(path, task) if task.get("doc_to_choice") else _target(task["doc_to_target"]),
        "endings": {
            "task": {
                # one text or a list of them
                "until": [until] if isinstance(until, str) else [str(mark) for mark in until],
                "tokens": int(tokens),
                "keep": True,
            }
        },
    }
    if how.get("do_sample") or float(how.get("temperature") or 0) > 0:
        made.hints.append(f"--temperature {how.get('temperature', 1.0)}")
    if int(task.get("repeats") or 1) > 1:
        made.hints.append(f"--repeats {task['repeats']}")
    metrics = [one for one in task.get("metric_list") or [{"metric": "exact_match"}] if isinstance(one, dict)]
    known = [METRICS[str(one["metric"])] for one in metrics if str(one.get("metric")) in METRICS]
    made.left += [f"the metric {_name(one)}" for one in metrics if str(one.get("metric")) not in METRICS]
    content["metric"] = known[0] if known else "exact_match"
    # options of exact_match are steps on both sides here
    exact = next((one for one in metrics if one.get("metric") == "exact_match"), {})
    steps: list[Any] = [{"ignore": pattern} for pattern in exact.get("regexes_to_ignore") or ()]
    flags = (("ignore_case", "lower"), ("ignore_punctuation", "punctuation"), ("ignore_numbers", "no_digits"))
    steps += [step for flag, step in flags if exact.get(flag)]
    if steps:
        content["normalise"] = steps
    filters = {
        str(one.get("name", "none")): _steps(one.get("filter") or [], made)
        for one in task.get("filter_list") or []
    }
    if filters:
        # a filter that can't be carried whole would take another answer out
        content["filters"] = {name: found for name, found in filters.items() if found is not None}
    return content


def _of_choices(path: Path, task: dict[str, Any]) -> str:
    """What is right of a written answer whose target is the place of a choice: that choice.

    Raises:
        InputError: choices or a target that are more than one expression.
    """
    choices, target = _expression(task["doc_to_choice"]), _expression(task["doc_to_target"])
    if choices is None or target is None:
        raise InputError(
            f"{path}: written answers with `doc_to_choice` are read where it and `doc_to_target` are a list, "
            "a column or a single {{ … }}; write `doc_to_target` as the right text"
        )
    return "{{ (" + choices + ")[(" + target + ") | int] }}"


def _expression(value: Any) -> str | None:
    """What a template gives, as an expression of Jinja; None where it is more than one."""
    if not isinstance(value, str):
        return json.dumps(list(value.values()) if isinstance(value, dict) else value, ensure_ascii=False)
    if NAMED.fullmatch(value):
        return value
    inside = re.fullmatch(r"\s*\{\{(.*)\}\}\s*", value, re.DOTALL)
    # two expressions side by side are no single one
    return inside[1].strip("-+ ") if inside and "{{" not in inside[1] and "{%" not in value else None


def _is_number(value: Any) -> bool:
    try:
        return float(value) >= 0
    except (TypeError, ValueError):
        return False


def _name(metric: dict[str, Any]) -> str:
    name = metric.get("metric")
    return f"Python, {name.name}" if isinstance(name, Python) else str(name)


def _target(value: Any) -> str:
    return (
        "{{ " + json.dumps([str(one) for one in value], ensure_ascii=False) + " }}"
        if isinstance(value, list)
        else _template(value)
    )


def _steps(filters: list[Any], made: Imported) -> list[Any] | None:
    """Steps of a filter, None where one of them can't be carried."""
    steps: list[Any] = []
    for one in filters:
        function = one.get("function") if isinstance(one, dict) else None
        if function == "regex":
            take = one.get("group_select", 0)
            steps.append({"regex": one.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"), "take": str(take)})
        elif function in FILTERS:
            steps.append(FILTERS[function])
        elif function == "take_first_k":
            steps.append({"take_first_k": str(one.get("k", 1))})
        elif function == "map" and isinstance(one.get("mapping_dict"), dict):
            steps.append({"map": {str(k): str(v) for k, v in one["mapping_dict"].items()}})
        else:
            called = f"Python, {function.name}" if isinstance(function, Python) else function
            made.left.append(f"the filter {called}")
            return None
    return steps


def _hint(task: dict[str, Any], made: Imported) -> None:
    """How the entry is run as the task was."""
    path, name = task.get("dataset_path"), task.get("dataset_name")
    if path:
        made.hints.append(f"--dataset_name {path}" + (f" --dataset_config {name}" if name else ""))
    # the test split first, as there
    split = task.get("test_split") or task.get("validation_split")
    if split:
        made.hints.append(f"--eval_split {split}")
    if task.get("num_fewshot"):
        made.hints.append(f"--shots {task['num_fewshot']}")
    if (task.get("fewshot_config") or {}).get("samples") is not None:
        made.left.append("`fewshot_config` (examples of its own)")
