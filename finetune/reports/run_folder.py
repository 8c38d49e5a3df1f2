"""A run's folder → what its files say, for pages and cards. Knows file names; knows no models and runs
nothing.

All that a page shows comes from these files, so that a folder that was copied to another machine gives the
same page:

| file | holds |
|---|---|
| `arguments.yaml` | every option as resolved |
| `metrics.json` | figures at the end, with `intervals`; written last, so that its absence says "not finished"
| | `history.jsonl` | one line a log entry of training: step, epoch, loss, gradient, learning rate, or
evaluation's figures | | `log.jsonl`, `answers.jsonl`, `alignment.json` | alignment: a line a step, answers
through time, before and after with warnings | | `data.json` | columns and what each became, rows, classes
with counts, lengths in tokens, what was cut | | `predictions.jsonl` | id, text, gold, prediction, score of
each evaluation row | | `baselines.json` | what needs no language model, on the same rows | |
`environment.json` | versions, processor, command, date | | `findings.json`, `figures.csv`, `pairs.csv` | a
study of prompts |
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import InputError

KNOWN = ("arguments.yaml", "metrics.json", "log.jsonl", "history.jsonl", "findings.json")


@dataclass(frozen=True)
class RunFolder:
    """One run as its files tell it; a file that is not there is an empty mapping or list."""

    path: Path
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return _mapping(self.path / "metrics.json")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return _lines(self.path / "history.jsonl")

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Alignment's log, a line a step."""
        return _lines(self.path / "log.jsonl")

    @cached_property
    def data(self) -> dict[str, Any]:
        return _mapping(self.path / "data.json")

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        return _lines(self.path / "predictions.jsonl")

    @cached_property
    def baselines(self) -> list[dict[str, Any]]:
        # a file of another form is as good as none
        found = _json(self.path / "baselines.json")
        return found if isinstance(found, list) else []

    @cached_property
    def measure(self) -> str:
        """The figure that baselines are compared by."""
        # the figure that all of them have
        return next(
            (name for name in ("accuracy", "mse", "f1") if all(name in one for one in self.baselines)), ""
        )

    @cached_property
    def privacy(self) -> dict[str, Any]:
        """What a private run spent; empty for any other."""
        return _mapping(self.path / "privacy.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        return _mapping(self.path / "environment.json")

    @cached_property
    def findings(self) -> dict[str, Any]:
        return _mapping(self.path / "findings.json")

    @cached_property
    def labels(self) -> list[str]:
        found = _json(self.path / "labels.json")
        return found if isinstance(found, list) else []

    @cached_property
    def assessments(self) -> dict[str, dict[str, Any]]:
        """Figures on further rows, by the name of their folder."""
        # sorted: the order of files in a folder is the file system's
        found = sorted((self.path / "assessments").glob("*/metrics.json"))
        return {file.parent.name: _mapping(file) for file in found}

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Mappings of a file of JSON lines; none where there is no such file."""
        return _lines(self.path / name)

    def mapping(self, name: str) -> dict[str, Any]:
        """A file of one mapping; empty where there is no such file."""
        return _mapping(self.path / name)

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file of the folder; none where there is no such file."""
        file = self.path / name
        if not file.is_file():
            return []
        with file.open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))

    @property
    def is_finished(self) -> bool:
        return bool(self.metrics or self.findings)

    @property
    def kind(self) -> str:
        """What left the folder: study, ppo, objective's or task's name."""
        # a study may be told by its report alone
        if self.findings or (self.path / "report.md").is_file():
            return "study"
        return str(self.options.get("objective") or self.options.get("task") or "run")

    @property
    def title(self) -> str:
        """`classification · lora · minilm · imdb`, as far as the options say."""
        # made anew, a model has the name of its configuration
        model = "from_config" if self.options.get("from_config") else "model_name_or_path"
        names = ("method", model, "prompts", "dataset_name")
        parts = [self.kind, *(self.options.get(name) for name in names)]
        return " · ".join(short_name(part) for part in parts if part)


def read_run(folder: str | Path) -> RunFolder:
    """What a folder says of its run, a finished one or one that goes on.

    Raises:
        InputError: no such folder, or one that no script of this project wrote.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is no folder; wanted the --output_dir of a run")
    # anything else may hold a file of one of the other names
    if not any((path / name).is_file() for name in KNOWN):
        inner = sorted(str(one.path) for one in find_runs(path))
        if inner:
            raise InputError(
                f"{path} is no run and holds {len(inner)}: {', '.join(inner[:8])}. Name one of them, or see "
                f"all with `finetune board {path}`"
            )
        raise InputError(f"{path} holds none of {', '.join(KNOWN)}; wanted the --output_dir of a run")
    return RunFolder(path, _yaml(path / "arguments.yaml"))


def find_runs(root: str | Path) -> list[RunFolder]:
    """Every run below a folder, newest first; a run inside another's folder is that run's own affair.

    Raises:
        InputError: no such folder.
    """
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"{top} is no folder; wanted one that holds runs")
    found: list[Path] = []
    # outer folders first, so that the runs inside them can be left out
    for file in sorted(top.rglob("*"), key=lambda path: len(path.parts)):
        if file.name in KNOWN and not any(file.is_relative_to(run) for run in found):
            found.append(file.parent)
    return [read_run(path) for path in sorted(found, key=_changed, reverse=True)]


def _changed(folder: Path) -> float:
    # of the files that are written while it goes on
    return max(file.stat().st_mtime for name in KNOWN if (file := folder / name).is_file())


def short_name(value: Any) -> str:
    """A name as people say it: of a path its last part, so that no page tells of somebody's home."""
    if isinstance(value, list):
        return ", ".join(map(short_name, value))
    text = str(value)
    # of a path that begins at the root, and not of a hub name with a slash in it
    return Path(text).name if "/" in text and Path(text).is_absolute() else text


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); remove it or run again") from error


def _mapping(path: Path) -> dict[str, Any]:
    found = _json(path)
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines; the last one may be half written while its run goes on, and is left out then."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # up to the last line's end
    whole = text[: text.rfind("\n") + 1]
    try:
        return [json.loads(line) for line in whole.split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} holds a line that is no JSON ({error})") from error


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    # torn or written by hand: the user has to look at it
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML ({error})") from error
    return found if isinstance(found, dict) else {}
