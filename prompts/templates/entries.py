"""Files of prompts → entries: a task's templates, what its labels are called, and which columns they read.
Knows YAML only.

Reads the library's files and promptsource's (Bach et al. 2022).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError
from prompts.templates.template import PARTED, Template
from prompts.templates.verbalizer import Verbalizer, make_verbalizer

logger = logging.getLogger(__name__)
FIGURES = ("accuracy", "macro_f1", "matthews")  # of labels
TEXT_FIGURES = ("rougeL", "rouge1", "rouge2", "bleu", "chrf", "exact_match")  # of texts
LIBRARY = Path(__file__).parent.parent / "library"
LINE = {"line": {"until": ["\n"], "tokens": "64"}}
KEYS = {"labels", "metric", "target", "data", "templates", "verbalizers", "endings"}


@dataclass(frozen=True)
class Source:
    """How rows of a data set become the columns that templates name.

    Attributes:
        columns: name in templates → column of the data; dots reach inside.
        labels: class of the data → label of the entry, where they differ.
        rows: how rows are made, one of rows.READERS.
    """

    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    rows: str = "plain"


@dataclass(frozen=True)
class Ending:
    """Where a generated answer ends: at the first of some texts, or after a number of tokens."""

    name: str
    until: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Entry:
    """One task's prompts.

    Attributes:
        labels: None where the data names them.
        words: what each verbalizer says, as the file has it; of promptsource's, the text after `|||`.
        targets: of generated answers: for each template, what they are compared with.
        paired: a template is asked with the verbalizer of its own name alone, as promptsource's are.
    """

    name: str
    labels: tuple[str, ...] | None
    metric: str
    data: dict[str, Source]
    templates: dict[str, Template]
    words: dict[str, Any]
    targets: dict[str, Template] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)
    paired: bool = False

    def verbalizer(
        self, name: str, labels: Sequence[str] | None = None, values: Sequence[Any] | None = None
    ) -> Verbalizer:
        """The verbalizer of that name, for the data's labels where the entry leaves them open.

        Args:
            values: what stands in the data for each label (default: numbers from 0).

        Raises:
            InputError: no such verbalizer, labels that don't fit it, labels left open and not given.
        """
        if name not in self.words:
            raise InputError(
                f"{self.name}: no verbalizer '{name}'; there are: {', '.join(self.words)}. Set --prompts"
            )
        known = self.labels or tuple(labels or ())
        if not known:
            raise InputError(
                f"{self.name}: its labels are those of the data; name a data set by --dataset_name"
            )
        given = self.words[name]
        if isinstance(given, Template):
            given = _answers(given, known, values)
        options = {}
        if isinstance(given, dict) and "words" in given:
            options = {k: v for k, v in given.items() if k != "words"}
            given = given["words"]
        strange = sorted(set(options) - {"tokens", "combine"})
        if strange or not isinstance(given, (str, dict)):
            what = (
                f"unknown key '{strange[0]}'; wanted words, tokens, combine"
                if strange
                else f"holds {given!r}; wanted label: word"
            )
            raise InputError(f"{self.name}/{name}: {what}")
        return make_verbalizer(f"{self.name}/{name}", known, given, **options)

    def template(self, name: str) -> Template:
        """The template of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.templates:
            raise InputError(
                f"{self.name}: no template '{name}'; there are: {', '.join(self.templates)}. Set --prompts"
            )
        return self.templates[name]


def library() -> list[str]:
    """Names of the entries that come with the package."""
    return sorted(file.stem for file in LIBRARY.glob("*.yaml"))


def read_entry(name: str) -> Entry:
    """The library's entry of that name, or that in a YAML file.

    Raises:
        InputError: no such entry or file, or one that doesn't say what it should.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else LIBRARY / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            f"No prompts '{name}': no such file, and the library has {', '.join(library())}. Set --prompts"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"Cannot read {path}: {error}. Mend the file, or name another by --prompts"
        ) from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("templates"), dict)
        or not content["templates"]
    ):
        raise InputError(
            f"{path} has no `templates`; wanted them by name. See the library's files in {LIBRARY}"
        )
    if any(isinstance(template, dict) and "jinja" in template for template in content["templates"].values()):
        return _promptsource(path, content)
    strange = set(content) - KEYS
    if strange:
        raise InputError(
            f"{path}: unknown key '{sorted(strange)[0]}'; wanted some of: {', '.join(sorted(KEYS))}"
        )
    name = path.stem
    target = content.get("target")
    labels = content.get("labels", "data")
    if labels != "data" and not (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels) > 1
    ):
        raise InputError(
            f"{path}: `labels` holds {labels!r}; wanted two or more different ones, or data where the "
            "data names them"
        )
    data = content.get("data") or {}
    if not isinstance(data, dict) or not all(isinstance(value or {}, dict) for value in data.values()):
        raise InputError(f"{path}: `data` holds {data!r}; wanted for each data set: columns, labels, rows")
    metric, known = (
        content.get("metric", "rougeL" if target else "accuracy"),
        TEXT_FIGURES if target else FIGURES,
    )
    if metric not in known:
        raise InputError(f"{path}: unknown metric '{metric}'; wanted one of: {', '.join(known)}")
    if target is None and not isinstance(content.get("verbalizers"), dict):
        raise InputError(
            f"{path}: neither `verbalizers` nor `target`; wanted words for each label, or the text to "
            "generate"
        )
    return Entry(
        name,
        tuple(map(str, labels)) if isinstance(labels, list) else None,
        metric,
        {key: _source(path, key, value or {}) for key, value in data.items()},
        {key: _template(name, key, value) for key, value in content["templates"].items()},
        dict(content.get("verbalizers") or {}),
        dict.fromkeys(content["templates"], Template(f"{name}/target", target)) if target else {},
        {key: _ending(path, key, value) for key, value in (content.get("endings") or LINE).items()},
    )


def _ending(path: Path, key: str, value: Any) -> Ending:
    until = value.get("until") if isinstance(value, dict) else None
    if (
        not isinstance(until, list)
        or not str(value.get("tokens")).isdigit()
        or set(value) != {"until", "tokens"}
    ):
        raise InputError(
            f"{path}: the ending '{key}' holds {value!r}; wanted {{until: [texts], tokens: number}}"
        )
    return Ending(key, tuple(map(str, until)), int(value["tokens"]))


def _source(path: Path, key: str, value: Mapping[str, Any]) -> Source:
    strange = set(value) - set(Source.__dataclass_fields__)
    if strange:
        raise InputError(
            f"{path}: data of '{key}' has an unknown key '{sorted(strange)[0]}'; wanted columns, labels, rows"
        )
    return Source(**value)


def _template(name: str, key: str, value: Any) -> Template:
    if isinstance(value, str):
        value = {"text": value}
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("text"), str)
        or set(value) - {"text", "follows"}
    ):
        raise InputError(f"{name}/{key}: holds {value!r}; wanted `text`, and `follows` beside it")
    return Template(f"{name}/{key}", value["text"], value.get("follows", ""))


_KEPT = {
    first: [rule for rule in rules if rule[0].endswith((":null", ":merge"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are texts (no is "no", 1.0 is "1.0"), with promptsource's two tags read as
    mappings."""

    yaml_implicit_resolvers = _KEPT

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def _promptsource(path: Path, content: dict[str, Any]) -> Entry:
    """Templates `input ||| answer`: those with choices that are the same for all rows weigh labels, those
    without write texts.

    Where a file has both kinds, the ones with choices are taken.
    """
    templates, words, targets, left = {}, {}, {}, []
    dataset = "_".join(str(content[key]) for key in ("dataset", "subset") if content.get(key))
    for given in content["templates"].values():
        name = f"{given['name']}".replace("/", " or ")
        asked, answer = _parted(f"{dataset}/{name}", given["jinja"])
        choices = _choices(given.get("answer_choices"), asked.name)
        if answer is None or choices is None or (choices and not _label_column(answer)):
            left.append(name)
            continue
        templates[name] = replace(asked, choices=choices)
        if choices:
            words[name] = replace(answer, choices=choices)
        else:
            targets[name] = answer
    if words:
        left += list(targets)
        templates, targets = {name: templates[name] for name in words}, {}
    if left:
        logger.warning(
            "%s: left out, as their answers aren't the labels of one column: %s", path, ", ".join(left)
        )
    if not templates:
        raise InputError(
            f"{path}: none of its templates has an answer that is the same for all rows; name another by "
            "--prompts"
        )
    metric = "accuracy" if words else "rougeL"
    line = {} if words else {key: _ending(path, key, value) for key, value in LINE.items()}
    return Entry(dataset, None, metric, {dataset: Source()}, templates, words, targets, line, paired=True)


def _parted(name: str, text: str) -> tuple[Template, Template | None]:
    """Both sides of `|||`; one text with two sides where it stands within a block, as in {% if a %} b ||| c
    {% endif %}."""
    whole, follows = text.replace("|||", PARTED), "promptsource, Bach et al. 2022"
    if PARTED not in whole:
        return Template(name, text, follows), None
    asked, _, answer = whole.partition(PARTED)
    halves = (
        Template(name, asked + PARTED, follows),
        Template(f"{name} (answer)", PARTED + answer, side="answer"),
    )
    if all(half.is_valid for half in halves):
        return halves
    return Template(name, whole, follows), Template(f"{name} (answer)", whole, side="answer")


def _choices(given: Any, name: str) -> tuple[str, ...] | None:
    """Choices that are the same for all rows, () where there are none to choose from, None where they
    differ."""
    if not given:
        return ()
    text = Template(f"{name} (choices)", "|||".join(given) if isinstance(given, list) else str(given))
    return None if text.columns else tuple(choice.strip() for choice in text.plain({}).split("|||"))


def _label_column(answer: Template) -> str | None:
    """The column that an answer follows from: its only one, or the one that is called so."""
    if len(answer.columns) == 1:
        return answer.columns[0]
    return "label" if "label" in answer.columns else None


def _answers(answer: Template, labels: Sequence[str], values: Sequence[Any] | None) -> dict[str, str]:
    """What promptsource's answer is for each label: {{ answer_choices[1 - label] }} turns them round."""
    row: dict[str, Any] = dict.fromkeys(answer.columns, "...")
    column = str(_label_column(answer))
    pairs = zip(labels, values or range(len(labels)), strict=True)
    return {label: answer.plain({**row, column: value}) for label, value in pairs}
