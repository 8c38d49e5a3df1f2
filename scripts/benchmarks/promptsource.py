"""Every template of promptsource's files beside promptsource's own rule: the same question and answer, to the
letter, or the reason why not.

  pip download promptsource==0.2.3 --no-deps --ignore-requires-python && tar xzf promptsource-0.2.3.tar.gz
  python scripts/benchmarks/promptsource.py --data FOLDER \\
      --templates promptsource-0.2.3/promptsource/templates

Their rule (Bach et al. 2022, `Template.apply` with truncate=False): Jinja as it comes, on the row with `|||`
masked, answer choices rendered and parted by `|||`, the text parted by `|||`, each part stripped. Each of
FILES is read on the data set beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

FILES = {
    "imdb": "imdb",
    "ag_news": "ag_news",
    "glue/mrpc": "mrpc",
    "glue/cola": "cola",
    "glue/sst2": "sst2",
    # SAMSum's columns are DialogSum's
    "samsum": "dialogsum",
    "xquad/xquad.en": "xquad_en",
    "sick": "sick",
}
MASKED = "\ue0aa"  # for `|||` in a row's own text, which parts nothing


def their_environment() -> jinja2.Environment:
    environment = jinja2.Environment()  # nothing is escaped: texts are for models
    environment.globals["zip"] = zip
    environment.filters["highlight"] = str
    environment.filters["most_frequent"] = list
    # theirs draws at random; a template that does is told apart before
    environment.filters["choice"] = lambda items: items[0]
    return environment


ENVIRONMENT = their_environment()


def theirs(template: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """[question, answer] of one row by promptsource's rule."""
    masked = {
        key: value.replace("|||", MASKED) if isinstance(value, str) else value for key, value in row.items()
    }
    choices = None
    if template["answer_choices"] is not None:
        text = ENVIRONMENT.from_string(template["answer_choices"]).render(**masked)
        choices = [choice.strip().replace(MASKED, "|||") for choice in text.split("|||")]
    text = ENVIRONMENT.from_string(template["jinja"]).render(**masked, answer_choices=choices)
    return [part.replace(MASKED, "|||").strip() for part in text.split("|||")]


def compared(templates: Path, file: str, data: Path, rows: int) -> list[dict[str, Any]]:
    """A line for each template of a file: its kind, how many rows are alike, the first difference or the
    reason why it isn't asked."""
    from finetune.data.sources import ColumnArguments
    from prompts.study.options import StudyArguments
    from prompts.study.study import read_parts
    from prompts.study.tune import TuneArguments

    path = templates / file / "templates.yaml"
    found = read_parts(
        StudyArguments(prompts=[str(path)], choose_rows=0),
        ColumnArguments(dataset_name=[str(data)], max_eval_rows=rows),
        TuneArguments(),
    )
    reasons = {prompt.rpartition("/")[2]: what for _, prompt, what in found.notes.troubles}
    lines = []
    for given in yaml.load(path.read_text(encoding="utf-8"), _Loader)["templates"].values():
        name = given["name"].replace("/", " or ")
        line = {
            "file": file,
            "template": name,
            "kind": "",
            "rows": 0,
            "alike": 0,
            "note": reasons.get(name, ""),
        }
        lines.append(line)
        if name not in found.entry.templates:
            line["note"] = "names no answer behind `|||`"
            continue
        line["kind"] = found.entry.kind(name)
        if " choice " in given["jinja"] or "random" in given["jinja"]:
            line["note"] = "draws at random there"
        if not line["note"]:
            _each(line, given, found, name)
    return lines


def _each(line: dict[str, Any], given: Mapping[str, Any], found: Any, name: str) -> None:
    from finetune.errors import InputError
    from prompts.templates.template import Skipped

    words = {p.template.name.rpartition("/")[2]: p.verbalizer for p in found.prompts}
    template = found.entry.templates[name]
    for row in found.parts.unseen:
        try:
            wanted = theirs(given, row.columns)
        except jinja2.TemplateError as error:
            line["note"] = line["note"] or f"theirs can't render it on these rows: {error}"
            continue
        try:
            question = template.render(row.columns).before.strip()
            answer = (
                words[name].answer(row.label)
                if line["kind"] == "labels"
                else found.entry.targets[name].plain(row.columns).strip()
            )
            own = [question, answer]
        except Skipped:
            # theirs gives an empty text, which nobody is asked
            own = [""]
        except InputError as error:
            line["note"] = line["note"] or str(error)
            continue
        line["rows"] += 1
        line["alike"] += own == wanted
        if own != wanted and not line["note"]:
            line["note"] = json.dumps({"own": own, "theirs": wanted}, ensure_ascii=False)


class _Loader(yaml.SafeLoader):
    """Theirs, with its two tags read as mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


def main() -> None:
    from finetune.reports.tables import markdown

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--templates", type=Path, required=True, help="promptsource's folder of that name")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=100, help="rows of each")
    ask = parser.parse_args()
    lines = [
        line
        for file, data in FILES.items()
        for line in compared(ask.templates, file, ask.data / data, ask.rows)
    ]
    for line in lines:
        line["note"] = line["note"][:300]
    print(markdown(lines))


if __name__ == "__main__":
    main()
