"""Files of prompts → entries: the library's, one's own, promptsource's. Knows YAML and templates; knows no
rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from finetune.cli.places import did_you_mean
from finetune.errors import InputError
from prompts.templates import promptsource
from prompts.templates.entries import CHOICE_FIGURES, FIGURES, LIBRARY, Ending, Entry, Judge, Source, library
from prompts.templates.filters import NORMALISERS, TEXT_FIGURES, read_filters, read_steps
from prompts.templates.layout import Layout
from prompts.templates.template import Template

LINE = {"line": {"until": ["\n"], "tokens": "64"}}
LAID = ("description", "description_separator", "separator", "example", "prefill")
KEYS = {
    *(
        "labels",
        "metric",
        "target",
        "data",
        "templates",
        "verbalizers",
        "endings",
        "choices",
        "keys",
        "target_is",
    ),
    *("filters", "normalise", "judge", *LAID),
}
OF_TEMPLATE = {"text", "follows", "target", "choices"}
TARGET_IS = ("index", "text", "key", "index_first")


def entry_file(name: str) -> Path:
    """Where an entry of that name stands, in the library or in a file of its own."""
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else LIBRARY / f"{name}.yaml"


def read_entry(name: str) -> Entry:
    """The library's entry of that name, or that in a YAML file.

    Raises:
        InputError: no such entry or file, or one that doesn't say what it should.
    """
    path = entry_file(name)
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
    # promptsource's mark
    if any(isinstance(template, dict) and "jinja" in template for template in content["templates"].values()):
        return promptsource.read_promptsource(path, content)
    strange = set(content) - KEYS
    if strange:
        raise InputError(
            f"{path}: unknown key '{sorted(strange)[0]}'.{did_you_mean(sorted(strange)[0], KEYS)} "
            f"Wanted some of: {', '.join(sorted(KEYS))}"
        )
    return _native(path, content)


def _native(path: Path, content: dict[str, Any]) -> Entry:
    name, given = path.stem, content["templates"]
    templates = {key: _template(name, key, value) for key, value in given.items()}
    own = {key: value if isinstance(value, dict) else {} for key, value in given.items()}
    targets, choices = {}, {}
    for key, value in own.items():
        target, listed = (
            value.get("target", content.get("target")),
            value.get("choices", content.get("choices")),
        )
        # a target of the file is every template's, unless verbalizers weigh the others
        if target is not None and ("target" in value or not content.get("verbalizers")):
            targets[key] = Template(
                f"{name}/{key} (target)" if "target" in value else f"{name}/target",
                _as_text(path, "target", target),
            )
        if listed is not None:
            # choices alone don't say which of them is right
            if key not in targets:
                raise InputError(f"{path}: '{key}' has `choices` and no `target`, which says what is right")
            # sentences that stand for themselves have nothing before them
            templates[key] = replace(templates[key], of_choices=True)
            choices[key] = Template(
                f"{name}/{key} (choices)" if "choices" in value else f"{name}/choices",
                _as_text(path, "choices", listed),
            )
    labelled = [key for key in templates if key not in targets]
    if labelled and not isinstance(content.get("verbalizers"), dict):
        raise InputError(
            f"{path}: neither `verbalizers` nor `target`; wanted words for each label, or the text to "
            "generate"
        )
    written = [key for key in targets if key not in choices]
    entry = Entry(
        name,
        _labels(path, content.get("labels", "data")),
        str(content.get("metric", "accuracy" if labelled or choices else "rougeL")),
        _sources(path, content.get("data") or {}),
        templates,
        # words are for labels, which no template may weigh
        dict(content.get("verbalizers") or {}) if labelled else {},
        targets,
        {key: _ending(path, key, value) for key, value in (content.get("endings") or LINE).items()}
        if written
        else {},
        choices=choices,
        keys=Template(f"{name}/keys", _as_text(path, "keys", content["keys"])) if "keys" in content else None,
        target_is=content.get("target_is"),
        filters=read_filters(path, content.get("filters") or {}),
        normalise=read_steps(path, "normalise", content.get("normalise") or [], NORMALISERS),
        judge=_judge(path, name, content.get("judge")),
        layout=_layout(path, name, content),
    )
    return _checked(path, entry, content)


def _checked(path: Path, entry: Entry, content: dict[str, Any]) -> Entry:
    """
    Raises:
        InputError: a metric that no template has, a key that nothing reads.
    """
    known = [*FIGURES] if "labels" in entry.kinds else []
    known += [*CHOICE_FIGURES] if "choices" in entry.kinds else []
    if "text" in entry.kinds:
        known += [*TEXT_FIGURES, *(["judge"] if entry.judge else [])]
        if entry.metric.startswith("evaluate:"):
            known.append(entry.metric)
    if entry.metric not in known:
        raise InputError(
            f"{path}: unknown metric '{entry.metric}'; wanted one of: {', '.join(dict.fromkeys(known))}"
        )
    if entry.target_is not in (None, *TARGET_IS):
        raise InputError(f"{path}: target_is '{entry.target_is}'; wanted one of: {', '.join(TARGET_IS)}")
    unread = {
        "text": ("endings", "filters", "normalise", "judge"),
        "choices": ("keys", "target_is"),
        "labels": ("verbalizers", "labels"),
    }
    for kind, keys in unread.items():
        # a key that is set and read by nothing is an error in the file
        idle = next((key for key in keys if key in content and kind not in entry.kinds), None)
        if idle:
            raise InputError(f"{path}: `{idle}` is read by no template here; take it out")
    return entry


def _labels(path: Path, labels: Any) -> tuple[str, ...] | None:
    if labels == "data":
        # the number of labels is known with the data
        return None
    if not (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels) > 1
    ):
        raise InputError(
            f"{path}: `labels` holds {labels!r}; wanted two or more different ones, or data where the data "
            "names them"
        )
    return tuple(labels)


def _sources(path: Path, data: Any) -> dict[str, Source]:
    if not isinstance(data, dict) or not all(isinstance(value or {}, dict) for value in data.values()):
        raise InputError(f"{path}: `data` holds {data!r}; wanted for each data set: columns, labels, rows")
    return {key: _source(path, key, value or {}) for key, value in data.items()}


def _as_text(path: Path, key: str, value: Any) -> str:
    """A template's text; a list of texts stands for its parts."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "|||".join(value)
    if not isinstance(value, str):
        raise InputError(f"{path}: `{key}` holds {value!r}; wanted a template")
    return value


def _layout(path: Path, name: str, content: Mapping[str, Any]) -> Layout:
    laid = {key: content[key] for key in LAID if key in content}
    strange = next((key for key, value in laid.items() if not isinstance(value, str)), None)
    if strange:
        raise InputError(f"{path}: `{strange}` holds {laid[strange]!r}; wanted a text")
    for key in ("description", "example"):
        if key in laid:
            laid[key] = Template(f"{name}/{key}", laid[key])
    return Layout(**laid)


def _judge(path: Path, name: str, value: Any) -> Judge | None:
    if value is None:
        return None
    wanted = {"model", "template", "labels", "good"}
    if not isinstance(value, dict) or set(value) != wanted or not isinstance(value["labels"], dict):
        raise InputError(f"{path}: `judge` holds {value!r}; wanted {', '.join(sorted(wanted))}")
    # texts, as YAML here has them
    words = {str(label): str(word) for label, word in value["labels"].items()}
    if len(words) < 2 or str(value["good"]) not in words:
        raise InputError(
            f"{path}: `judge` has good: {value['good']}; wanted one of two or more labels, with words"
        )
    return Judge(
        str(value["model"]), Template(f"{name}/judge", str(value["template"])), words, str(value["good"])
    )


def _ending(path: Path, key: str, value: Any) -> Ending:
    until = value.get("until") if isinstance(value, dict) else None
    if (
        not isinstance(until, list)
        or not str(value.get("tokens")).isdigit()
        or set(value) - {"until", "tokens", "keep"}
        or str(value.get("keep", "false")).lower() not in ("true", "false")
    ):
        raise InputError(
            f"{path}: the ending '{key}' holds {value!r}; wanted {{until: [texts], tokens: number}}"
        )
    keep = str(value.get("keep", "false")).lower() == "true"
    return Ending(key, tuple(map(str, until)), int(value["tokens"]), keep)


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
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or set(value) - OF_TEMPLATE:
        raise InputError(
            f"{name}/{key}: holds {value!r}; wanted `text`, and beside it follows, target, choices"
        )
    return Template(f"{name}/{key}", value["text"], value.get("follows", ""))


_KEPT = {
    # numbers, dates and words like `no` stay texts; nothing and merging are kept
    first: [rule for rule in rules if rule[0].endswith((":null", ":merge"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are texts (no is "no", 1.0 is "1.0"), with promptsource's two tags read as
    mappings."""

    yaml_implicit_resolvers = _KEPT

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        # YAML itself takes the last of two and says nothing
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))
