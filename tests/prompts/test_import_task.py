"""lm-evaluation-harness's task files: what is carried over, what is said to be left, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.errors import InputError
from prompts.templates.importing import import_task
from prompts.templates.reading import read_entry

TASK: dict[str, Any] = {
    "task": "own",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "exact_match"}],
}


def write(folder: Path, name: str, content: dict[str, Any], python: str = "") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(content) + python)
    return str(path)


def test_what_is_included_lies_under_the_task_itself(tmp_path: Path) -> None:
    write(tmp_path, "far.yaml", {"description": "far", "fewshot_delimiter": "##", "doc_to_text": "far"})
    write(tmp_path, "near.yaml", {"description": "near {{ question }}"})
    task = write(tmp_path, "own.yaml", TASK | {"include": ["near.yaml", "far.yaml"]})
    import_task(task, str(tmp_path / "made.yaml"))
    entry = read_entry(str(tmp_path / "made.yaml"))
    assert entry.layout.description is not None and entry.layout.description.text == "near {{ question }}"
    assert entry.layout.separator == "##"
    row = {"question": "1+1?", "answer": "2"}
    assert entry.templates["task"].render(row).filled("2") == "Q: 1+1?\nA: 2"
    assert entry.targets["task"].listed(row) == ["2"]


def test_python_is_left_out_by_name_and_never_read_as_a_text(tmp_path: Path) -> None:
    python = "description: !function utils.describe\ngen_prefix: !function utils.begin\n"
    said = import_task(write(tmp_path, "own.yaml", TASK, python), str(tmp_path / "made.yaml"))
    assert "`description` (Python, utils.describe)" in said and "`gen_prefix` (Python" in said
    assert "object at" not in (tmp_path / "made.yaml").read_text()
    layout = read_entry(str(tmp_path / "made.yaml")).layout
    assert layout.description is None and not layout.prefill


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": ["a", {"task": "b"}]}, r"a group of tasks \(a, b\)"),
        ({"doc_to_text": None}, "has no `doc_to_text`"),
        ({"doc_to_target": None}, "has no `doc_to_target`"),
        ({"output_type": "loglikelihood"}, "output_type loglikelihood"),
        ({"output_type": "multiple_choice"}, "without `doc_to_choice`"),
        ({"generation_kwargs": {"max_gen_toks": "many"}}, "`tokens: 'many'` is no number"),
        ({"include": "nowhere.yaml"}, "Cannot read .*nowhere"),
        ({"include": "own.yaml"}, "includes itself"),
    ],
)
def test_a_task_that_cannot_be_carried_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        import_task(write(tmp_path, "own.yaml", TASK | changed), str(tmp_path / "made.yaml"))
    assert not (tmp_path / "made.yaml").exists()


def test_filters_that_cannot_be_carried_are_named(tmp_path: Path) -> None:
    filters = [
        {
            "name": "kept",
            "filter": [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}],
        },
        {"name": "lost", "filter": [{"function": "custom"}]},
    ]
    said = import_task(
        write(tmp_path, "own.yaml", TASK | {"filter_list": filters}), str(tmp_path / "made.yaml")
    )
    assert "not carried: the filter custom" in said
    assert list(read_entry(str(tmp_path / "made.yaml")).filters) == ["kept"]
