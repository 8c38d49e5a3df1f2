"""promptsource's files: read as its own rule renders them, every kind of template kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from prompts.study.asking import Notes
from prompts.study.prompts import named_entry, named_prompts, with_choices
from prompts.templates.prompt import Prompt
from prompts.templates.reading import read_entry
from prompts.templates.template import Rendered, Skipped

PROMPTSOURCE = """
dataset: imdb
templates:
  0001: !Template
    answer_choices: bad ||| good
    id: '0001'
    name: Opinion
    metadata: !TemplateMetadata {original_task: true}
    jinja: 'Review: {{text}} Is it {{ answer_choices | join(" or ") }}? ||| {{ answer_choices[label] }}'
  0002: !Template {answer_choices: null, name: Write, jinja: 'Write one: ||| {{text}}', reference: ''}
  0003: !Template
    answer_choices: [negative, positive]
    name: Turned
    jinja: '{{text}} This is definitely not a ||| {{ answer_choices [1-label]}} review.'
  0004: !Template
    answer_choices: 'No ||| Yes'
    name: In a block
    jinja: |-
      {% if text %}
      {{ text }}
      Did I like it?
      ||| {{ answer_choices[label] }}
      {% endif %}
  0005: !Template {answer_choices: '{{ text }} ||| no', name: Each its own,
    jinja: '{{text}} ||| {{ answer_choices[label] }}'}
  0006: !Template
    answer_choices: '{{ ["bad", "good"] | join("|||") }}'
    name: n/a
    jinja: |-
      {% for word, other in zip(["Say"], ["it"]) %}{{ [word] | choice }} {{ other }}{% endfor %}: {{text}}

      ||| {{ answer_choices[label] }}
"""


def test_promptsource_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(PROMPTSOURCE)
    entry = named_entry([str(path)])
    prompts = named_prompts(entry, [str(path)], ["neg", "pos"])
    kinds = {name: entry.kind(name) for name in entry.templates}
    assert kinds == {
        "Opinion": "labels",
        "Write": "text",
        "Turned": "labels",
        "In a block": "labels",
        "Each its own": "choices",
        "n or a": "labels",
    }
    own = {"text": "Fun.", "label": 1}
    assert entry.choices["Each its own"].listed(own) == ["Fun.", "no"]
    assert entry.targets["Each its own"].listed(own) == ["no"] and entry.targets["Write"].listed(own) == [
        "Fun."
    ]
    assert entry.templates["Write"].render(own).before == "Write one:"
    words = {prompt.name: prompt.verbalizer.words for prompt in prompts}
    assert words == {
        "imdb/Opinion/Opinion": (("bad",), ("good",)),
        "imdb/Turned/Turned": (
            ("positive review.",),
            ("negative review.",),
        ),  # the answer, not the place of a choice
        "imdb/In a block/In a block": (("No",), ("Yes",)),
        "imdb/n or a/n or a": (("bad",), ("good",)),
    }
    row = {"text": "Fun ||| games."}
    assert prompts[0].template.render(row).filled("good") == "Review: Fun ||| games. Is it bad or good? good"
    block = prompts[2].template.render({**row, "label": 1})
    assert block == Rendered("Fun ||| games.\nDid I like it?\n", "", "")
    assert prompts[3].template.render(row).filled("good") == "Say it: Fun ||| games.\ngood"
    assert Prompt.load(f"{path}/Turned", ["neg", "pos"]).verbalizer.answer("neg") == "positive review."
    assert named_prompts(entry, [f"{path}/Opinion"], ["1", "2"], [0, 1])[0].verbalizer.answer("2") == "good"
    notes = Notes()
    assert named_prompts(entry, [str(path)], ["neg", "meh", "pos"], notes=notes) == []
    assert len(notes.troubles) == 4


def test_promptsource_templates_that_write_have_their_own_answers(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(
        "dataset: a\ntemplates:\n  1: !Template {name: one, jinja: 'Sum up: {{ text }} ||| {{ summary }}'}\n"
        "  2: !Template {name: two, jinja: '{% if text %}Write: {{ summary }} ||| {{ text }}{% endif %}'}\n"
    )
    entry = read_entry(str(path))
    row = {"text": "long", "summary": "short"}
    assert {name: target.plain(row) for name, target in entry.targets.items()} == {
        "one": "short",
        "two": "long",
    }
    assert entry.templates["two"].render(row) == Rendered("Write: short", " ", "") and list(
        entry.endings
    ) == ["line"]
    with pytest.raises(Skipped, match="says nothing of the row"):
        entry.templates["two"].render({"text": "", "summary": "short"})


def test_answers_that_do_not_follow_from_the_label_are_asked_by_choices(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(
        "dataset: a\ntemplates:\n"
        "  1: !Template {name: plain, answer_choices: a ||| b ||| c, "
        "jinja: '{{ text }} ||| {{ answer_choices[label] }}'}\n"
        "  2: !Template {name: twice, answer_choices: no ||| yes, "
        "jinja: '{{ text }} ||| {{ answer_choices[[0, 1, 1][label]] }}'}\n"
        "  3: !Template {name: other, answer_choices: no ||| yes, "
        'jinja: \'{{ text }} ||| {{ {"n": answer_choices[0], "y": answer_choices[1]}[said] }}\'}\n'
    )
    given, notes = read_entry(str(path)), Notes()
    assert given.kinds == ("labels",)
    entry = with_choices(given, ["a", "b", "c"], [0, 1, 2], notes)
    kinds = {name: entry.kind(name) for name in entry.templates}
    assert kinds == {"plain": "labels", "twice": "choices", "other": "choices"}
    row = {"text": "Fun.", "label": 2, "said": "n"}
    assert [entry.choices[name].listed(row) for name in ("twice", "other")] == [["no", "yes"]] * 2
    assert [entry.targets[name].listed(row) for name in ("twice", "other")] == [["yes"], ["no"]]
    assert [prompt for _, prompt, _ in notes.expected] == ["a/twice", "a/other"]
