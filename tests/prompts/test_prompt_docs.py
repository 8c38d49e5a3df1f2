"""What is documented of prompt files is what is read: the examples load, the schema knows the same keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prompts.templates import reading
from prompts.templates.entries import LIBRARY
from prompts.templates.filters import EXTRACTORS, GATHERERS, NORMALISERS, TEXT_FIGURES
from prompts.templates.reading import read_entry

DOCS = Path(__file__).parents[2] / "docs"


def test_every_example_of_the_documentation_loads(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (DOCS / "prompt_yaml.md").read_text(), flags=re.DOTALL)
    kinds = []
    for number, example in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(example)
        kinds.append(read_entry(str(tmp_path / f"{number}.yaml")).kinds)
    assert kinds == [("labels",), ("choices",), ("text",)]
    text = "\n".join(examples)
    for key in reading.KEYS:
        assert re.search(rf"^{key}:", text, flags=re.MULTILINE), key
        assert re.search(rf"^# {key}:", text, flags=re.MULTILINE) or key in ("metric",), key
    for step in {*EXTRACTORS, *NORMALISERS, *GATHERERS}:
        assert step in text, step


def test_the_schema_knows_the_keys_that_are_read() -> None:
    schema = json.loads((LIBRARY / "prompt.schema.json").read_text())
    assert set(schema["properties"]) == reading.KEYS
    assert (
        set(schema["properties"]["templates"]["additionalProperties"]["anyOf"][1]["properties"])
        == reading.OF_TEMPLATE
    )
    assert set(schema["properties"]["target_is"]["enum"]) == set(reading.TARGET_IS)


def test_the_documentation_names_the_figures() -> None:
    text = (DOCS / "prompts.md").read_text()
    for name in ("exact_match", "token_f1", "same_number", "same_answer"):
        assert name in TEXT_FIGURES and name in text
