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


def test_figures_that_this_project_has_not_are_named(tmp_path: Path) -> None:
    chosen = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"]}
    for kind, metrics, lost in (
        (chosen, ("mcc", "acc"), ["mcc"]),
        (chosen, ("acc", "acc_norm"), []),
        # what is right of a text is no accuracy here
        ({}, ("acc",), ["acc"]),
        ({}, ("f1", "ter"), ["ter"]),
    ):
        task = TASK | kind | {"metric_list": [{"metric": name} for name in metrics]}
        (tmp_path / "made.yaml").unlink(missing_ok=True)
        said = import_task(write(tmp_path, "own.yaml", task), str(tmp_path / "made.yaml"))
        assert [line for line in said.splitlines() if "the metric" in line] == [
            f"not carried: the metric {name}" for name in lost
        ]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    task, made = write(tmp_path, "own.yaml", TASK), tmp_path / "made.yaml"
    import_task(task, str(made))
    import_task(task, str(made))  # the same again is no loss
    made.write_text(made.read_text() + "# mine\n")
    with pytest.raises(InputError, match="holds something else. Set --output"):
        import_task(task, str(made))
    assert made.read_text().endswith("# mine\n")


def test_blanks_and_empty_prompts_are_kept_to_the_letter(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a"}
    for changed, text, right in (
        ({"doc_to_text": "{{question}}: "}, "q:  a", "a"),  # the delimiter stands behind the text's own blank
        ({"doc_to_target": " {{answer}}", "target_delimiter": ""}, "Q: q\nA: a", " a"),
        ({"doc_to_target": "{% if answer %} {{answer}}{% endif %}"}, "Q: q\nA:  a", " a"),
    ):
        (tmp_path / "made.yaml").unlink(missing_ok=True)
        import_task(write(tmp_path, "own.yaml", TASK | changed), str(tmp_path / "made.yaml"))
        entry = read_entry(str(tmp_path / "made.yaml"))
        wanted = entry.targets["task"].listed(row)
        assert wanted == [right]
        assert entry.templates["task"].render(row).filled(wanted[0]) == text


def test_columns_that_a_task_asks_after_may_be_missing(tmp_path: Path) -> None:
    either = "{{ answer.split('#')[-1] if answer is defined else target }}"
    import_task(write(tmp_path, "own.yaml", TASK | {"doc_to_target": either}), str(tmp_path / "made.yaml"))
    target = read_entry(str(tmp_path / "made.yaml")).targets["task"]
    assert target.listed({"answer": "so#2"}) == ["2"]
    assert target.listed({"target": "3"}) == ["3"]
    with pytest.raises(InputError, match="cannot be rendered"):
        target.listed({"question": "x"})


def test_sentences_that_stand_for_themselves_are_weighed_whole(tmp_path: Path) -> None:
    both = {"output_type": "multiple_choice", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0}
    import_task(write(tmp_path, "own.yaml", TASK | both | {"doc_to_text": ""}), str(tmp_path / "made.yaml"))
    entry, row = read_entry(str(tmp_path / "made.yaml")), {"good": "He sees.", "bad": "He see."}
    rendered = entry.templates["task"].render(row)
    assert [rendered.filled(choice) for choice in entry.choices["task"].listed(row)] == [
        " He sees.",
        " He see.",
    ]


def test_all_white_space_before_a_choice_is_weighed_with_it(tmp_path: Path) -> None:
    both = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"], "doc_to_target": "label"}
    task = TASK | both | {"doc_to_text": "{{question}}\n"}
    import_task(write(tmp_path, "own.yaml", task), str(tmp_path / "made.yaml"))
    rendered = read_entry(str(tmp_path / "made.yaml")).templates["task"].render({"question": "q"})
    assert (rendered.before, rendered.gap) == ("q", "\n ")


def test_a_place_among_choices_stands_for_its_text(tmp_path: Path) -> None:
    for choices, target in (([" no", " yes"], "label"), ("{{ ways }}", "{{ label }}"), ("ways", "label")):
        (tmp_path / "made.yaml").unlink(missing_ok=True)
        changed = {"doc_to_choice": choices, "doc_to_target": target}
        import_task(write(tmp_path, "own.yaml", TASK | changed), str(tmp_path / "made.yaml"))
        target_of = read_entry(str(tmp_path / "made.yaml")).targets["task"]
        assert target_of.listed({"label": 1, "ways": [" no", " yes"], "question": "q"}) == [" yes"]
    changed = {"doc_to_choice": ["no", "yes"], "doc_to_target": "{{a}} or {{b}}"}
    with pytest.raises(InputError, match="a single {{ … }}"):
        import_task(write(tmp_path, "own.yaml", TASK | changed), str(tmp_path / "made.yaml"))


def test_what_is_no_task_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No file 'nowhere.yaml'; wanted a task's YAML"):
        import_task("nowhere.yaml", str(tmp_path / "made.yaml"))
    task = write(tmp_path, "own.yaml", TASK)
    with pytest.raises(InputError, match="is the task itself; set --output"):
        import_task(task, task)
    broken = write(tmp_path, "broken.yaml", TASK | {"doc_to_text": "{{ question"})
    with pytest.raises(InputError, match="made/task: no valid template"):
        import_task(broken, str(tmp_path / "made.yaml"))
    assert not (tmp_path / "made.yaml").exists()


def test_a_file_of_promptsource_is_read_as_it_is(tmp_path: Path) -> None:
    template = "!Template\n    name: ask\n    answer_choices: no ||| yes\n    jinja: '{{ text }} |||"
    source = tmp_path / "theirs.yaml"
    source.write_text(f"dataset: films\ntemplates:\n  one: {template} {{{{ answer_choices[label] }}}}'\n")
    said = import_task(str(source))
    assert f"read as it is: --prompts {source}" in said and "1 templates: 1 by labels" in said
