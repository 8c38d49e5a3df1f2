"""Files of prompts → entries: a task's templates, what its labels are called, and which columns they read. Knows YAML only.

Reads the library's files and promptsource's (Bach et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError
from prompts.template import Template
from prompts.verbalizer import Verbalizer, make_verbalizer

LIBRARY = Path(__file__).parent / "library"
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
        words: what each verbalizer says, as the file has it.
        target: of generated answers: what they are compared with.
        paired: a template is asked with the verbalizer of its own name alone, as promptsource's are.
    """

    name: str
    labels: tuple[str, ...] | None
    metric: str
    data: dict[str, Source]
    templates: dict[str, Template]
    words: dict[str, Any]
    target: Template | None = None
    endings: dict[str, Ending] = field(default_factory=dict)
    paired: bool = False

    def verbalizer(self, name: str, labels: Sequence[str] | None = None) -> Verbalizer:
        """The verbalizer of that name, for the data's labels where the entry leaves them open.

        Raises:
            InputError: no such verbalizer, labels that don't fit it, labels left open and not given.
        """
        if name not in self.words:
            raise InputError(f"{self.name}: no verbalizer '{name}'; there are: {', '.join(self.words)}. Set --prompts")
        known = self.labels or tuple(labels or ())
        if not known:
            raise InputError(f"{self.name}: its labels are those of the data; name a data set by --dataset_name")
        given = self.words[name]
        options = {}
        if isinstance(given, dict) and "words" in given:
            options = {k: v for k, v in given.items() if k != "words"}
            given = given["words"]
        if isinstance(given, list):  # one a label, in the data's order
            if len(given) != len(known):
                raise InputError(
                    f"{self.name}/{name}: {len(given)} words for {len(known)} labels: {', '.join(known[:9])}. Set --dataset_name"
                )
            given = dict(zip(known, given, strict=True))
        return make_verbalizer(f"{self.name}/{name}", known, given, **options)

    def template(self, name: str) -> Template:
        """The template of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.templates:
            raise InputError(f"{self.name}: no template '{name}'; there are: {', '.join(self.templates)}. Set --prompts")
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
        raise InputError(f"No prompts '{name}': no such file, and the library has {', '.join(library())}. Set --prompts")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read {path}: {error}. Mend the file, or name another by --prompts") from error
    if not isinstance(content, dict) or not isinstance(content.get("templates"), dict) or not content["templates"]:
        raise InputError(f"{path} has no `templates`; wanted them by name. See the library's files in {LIBRARY}")
    if any(isinstance(template, dict) and "jinja" in template for template in content["templates"].values()):
        return _promptsource(path, content)
    strange = set(content) - KEYS
    if strange:
        raise InputError(f"{path}: unknown key '{sorted(strange)[0]}'; wanted some of: {', '.join(sorted(KEYS))}")
    name = path.stem
    target = content.get("target")
    labels = content.get("labels")
    bare = next((label for label in labels if not isinstance(label, str)), None) if isinstance(labels, list) else None
    if bare is not None:
        raise InputError(f"{path}: YAML reads a label as {bare!r}, which is no text; put it in quotes")
    if target is None and not content.get("verbalizers"):
        raise InputError(f"{path}: neither `verbalizers` nor `target`; wanted words for each label, or the text to generate")
    return Entry(
        name,
        tuple(map(str, labels)) if isinstance(labels, list) else None,
        str(content.get("metric", "accuracy")),
        {key: _source(path, key, value or {}) for key, value in (content.get("data") or {}).items()},
        {key: _template(name, key, value) for key, value in content["templates"].items()},
        dict(content.get("verbalizers") or {}),
        Template(f"{name}/target", target) if target else None,
        {key: Ending(key, tuple(value["until"]), int(value["tokens"])) for key, value in (content.get("endings") or {}).items()},
    )


def _source(path: Path, key: str, value: Mapping[str, Any]) -> Source:
    strange = set(value) - set(Source.__dataclass_fields__)
    if strange:
        raise InputError(f"{path}: data of '{key}' has an unknown key '{sorted(strange)[0]}'; wanted columns, labels, rows")
    return Source(**value)


def _template(name: str, key: str, value: Any) -> Template:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str) or set(value) - {"text", "follows"}:
        raise InputError(f"{name}/{key}: holds {value!r}; wanted `text`, and `follows` beside it")
    return Template(f"{name}/{key}", value["text"], value.get("follows", ""))


class _Loader(yaml.SafeLoader):
    """YAML with promptsource's two tags, read as plain mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def _promptsource(path: Path, content: dict[str, Any]) -> Entry:
    """Templates `input ||| target`: with fixed answer_choices they are ours with a verbalizer each, without they generate."""
    templates, words, targets = {}, {}, {}
    dataset = "_".join(str(content[key]) for key in ("dataset", "subset") if content.get(key))
    for given in content["templates"].values():
        name, (text, _, target) = given["name"], given["jinja"].partition("|||")
        choices = [choice.strip() for choice in (given.get("answer_choices") or "").split("|||") if choice.strip()]
        if not target.strip() or any("{{" in choice or "{%" in choice for choice in choices):
            continue  # no answer, or answers that differ from row to row
        space = "\n" if text.endswith("\n") else " "
        templates[name] = Template(
            f"{dataset}/{name}", text.strip() + space + "{{ mask }}", "promptsource, Bach et al. 2022", tuple(choices)
        )
        if choices:
            words[name] = choices
        targets[name] = target.strip()
    if not templates:
        raise InputError(f"{path}: none of its templates has an answer that is the same for all rows; name another by --prompts")
    generating = [name for name in templates if name not in words]
    if words:  # an entry weighs labels or generates; the file's larger half by meaning is the one with labels
        templates = {name: template for name, template in templates.items() if name in words}
        return Entry(dataset, None, "accuracy", {dataset: Source()}, templates, words, paired=True)
    target_of = Template(f"{dataset}/target", targets[generating[0]])
    return Entry(dataset, None, "rougeL", {dataset: Source()}, templates, {}, target_of, {"line": Ending("line", ("\n",), 64)})
