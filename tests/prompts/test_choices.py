"""Choices of each row's own, and how questions are laid out: descriptions, examples, chats, long rows,
skipped rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM

from finetune.data.sources import ColumnArguments
from finetune.errors import InputError
from prompts.scoring.load import ScoringArguments
from prompts.scoring.score import Scorer
from prompts.study.archive import read_table
from prompts.study.instruct import InstructArguments
from prompts.study.options import AnswerArguments, StudyArguments
from prompts.study.rows import StudyRow
from prompts.study.run import Options
from prompts.study.suite import one_study
from prompts.study.tune import TuneArguments
from prompts.study.weighed import ChoicePrompt
from prompts.templates.layout import Layout
from prompts.templates.lint import check_template
from prompts.templates.prompt import compose
from prompts.templates.reading import read_entry
from prompts.templates.template import Rendered, Skipped, Template, TooLong

CHOICES = """
choices: "{{ choices.text }}"
keys: "{{ choices.label }}"
target: "{{ answerKey }}"
templates: {a: "{{ question }} {{ mask }}"}
"""


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(make_model("llama", AutoModelForCausalLM, initializer_range=0.2), make_tokenizer("llama"))


def study(folder: Path, model: Path, entry: str, rows: list[dict[str, Any]], **given: Any):
    (folder / "own.yaml").write_text(entry)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shots = given.pop("shots", [0])
    chosen = StudyArguments(
        prompts=[str(folder / "own.yaml")],
        models=[str(model)],
        shots=shots,
        output_dir=str(folder / "out"),
        **given,
    )
    data = ColumnArguments(dataset_name=str(folder / "rows.jsonl"))
    return one_study(
        Options(chosen, ScoringArguments(dtype="float32")), data, TuneArguments(), InstructArguments()
    )[0]


def question(number: int, texts: list[str], right: str = "A") -> dict[str, Any]:
    labels = [chr(65 + i) for i in range(len(texts))]
    return {
        "question": f"the film {'very ' * (number % 3)}was",
        "choices": {"text": texts, "label": labels},
        "answerKey": right,
    }


def test_choices_are_weighed_in_all_ways(saved, scorer: Scorer, tmp_path: Path) -> None:
    rows = [question(i, ["good", "very bad", "a dull story"][: 2 + i % 2], "AB"[i % 2]) for i in range(6)]
    model = saved("llama", AutoModelForCausalLM, initializer_range=0.3)
    found = study(tmp_path, model, CHOICES, rows, choose_rows=0)
    assert [one.how for one in found.outcomes] == ["sum", "characters", "bytes", "tokens", "pmi"] and len(
        found.rows
    ) == 6
    for line in read_table(tmp_path / "out"):
        sums, texts = np.array(line["scores_sum"][: len(line["choices"])]), line["choices"]
        np.testing.assert_allclose(line["scores_characters"][: len(texts)], sums / [len(t) for t in texts])
        np.testing.assert_allclose(
            line["scores_tokens"][: len(texts)], sums / [len(t.split()) for t in texts]
        )
        assert line["gold"] == texts["AB".index(rows[line["row"]]["answerKey"])]
        assert line["prediction_sum"] == texts[int(sums.argmax())]
    assert 0.3 < found.baseline["chance"] < 0.5


def test_bad_rows_are_named_and_end_nothing(saved, tmp_path: Path) -> None:
    good = [question(i, ["good", "bad"]) for i in range(4)]
    bad = [
        question(0, ["good", ""]),
        question(1, ["good"]),
        question(2, ["good", "bad"], "E"),
        question(0, ["good", "good"]),
    ]
    found = study(tmp_path, saved("llama", AutoModelForCausalLM), CHOICES, good + bad, choose_rows=0)
    assert len(found.outcomes[0].places) == 5
    told = [(what, rows) for (_, _, what), rows in found.notes.troubles.items()]
    assert len(told) == 3 and {row for _, rows in told for row in rows} == {4, 5, 6}
    assert any("two of the choices are equal" in what for _, _, what in found.notes.expected)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "an empty one" in report and "'E' is none of good, bad" in report


@pytest.mark.parametrize(
    ("choices", "target", "target_is", "place"),
    [
        (["a", "b"], "b", None, 1), (["a", "b"], "1", None, 1), (["2", "7"], "7", None, 1), (["1", "0"], "1",
        "text", 0),
        (["1", "0"], "1", "index", 1), (["3", "1"], "1", "index_first", 1),
    ],
)  # fmt: skip
def test_a_target_names_a_choice(choices: list[str], target: str, target_is: str | None, place: int) -> None:
    prompt = ChoicePrompt(
        Template("t/a", ""), Template("t/c", "{{ c }}"), Template("t/t", "{{ t }}"), None, target_is
    )
    assert prompt.of(StudyRow({"c": choices, "t": target}, -1, ""))[1] == place


def test_a_target_that_could_be_two_is_refused() -> None:
    prompt = ChoicePrompt(Template("t/a", ""), Template("t/c", "{{ c }}"), Template("t/t", "{{ t }}"))
    with pytest.raises(InputError, match="could be two of them; set target_is"):
        prompt.of(StudyRow({"c": ["1", "0"], "t": "1"}, -1, ""))


def test_choices_stand_as_examples(saved, tmp_path: Path) -> None:
    rows = [question(i, ["good", "very bad"], "B") for i in range(30)]
    for i, row in enumerate(rows):
        row["question"] += f" {'the ' * (i // 3)}"
    found = study(tmp_path, saved("llama", AutoModelForCausalLM), CHOICES, rows, shots=[1], choose_rows=0)
    assert all(request.context.count("very bad\n\n") == 1 for request in found.answers[0].requests)


def test_the_description_stands_once_before_the_examples(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }}: {{ mask }}")
    layout = Layout(description=Template("t/d", "the film is"), separator="\n###\n")
    shown = [(template.render({"text": text}), "good") for text in ("a story", "the actor")]
    context = compose(template, scorer, {"text": "it"}, shown, answers=["bad"], layout=layout).request.context
    assert context == "the film is\n\na story: good\n###\nthe actor: good\n###\nit:"
    assert (
        compose(template, scorer, {"text": "it"}, [], answers=["bad"], layout=layout).request.context
        == "the film is\n\nit:"
    )
    begun = compose(
        template, scorer, {"text": "it"}, [], answers=["bad"], layout=Layout(prefill="it was ")
    ).request
    assert begun.context == "it: it was" and begun.answers == (" bad",)
    layout = Layout(prefill="it was", separator="\n")
    begun = compose(template, scorer, {"text": "it"}, shown, answers=["bad"], layout=layout).request
    assert begun.context == "a story: it was good\nthe actor: it was good\nit: it was"


def test_a_description_is_the_system_turn_of_a_chat(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }}: {{ mask }}")
    turn = "{{ m['role'][0] }} {{ m['content'] }} "
    scorer.tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}a "
    layout = Layout(chat=True, description=Template("t/d", "the film"), prefill="was")
    request = compose(
        template,
        scorer,
        {"text": "it"},
        [(Rendered("a story:", " ", ""), "good")],
        answers=["bad"],
        layout=layout,
    ).request
    assert request.context == "s the film u a story: a was good u it: a was" and request.answers == (" bad",)
    assert [role for role, _ in request.turns] == ["system", "user", "assistant", "user"]


def test_examples_that_do_not_fit_are_left_out_and_rows_as_asked(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }} it was {{ mask }}")
    shown = [(template.render({"text": "the film " * 4}), "good")] * 4
    made = compose(template, scorer, {"text": "a story"}, shown, answers=["bad"], layout=Layout(limit=30))
    assert made.left_out == 2 and not made.was_cut and made.request.context.count("good") == 2
    long = {"text": "the film " * 40}
    with pytest.raises(TooLong):
        compose(template, scorer, long, [], answers=["bad"], layout=Layout(limit=30, on_long="drop"))
    with pytest.raises(InputError, match="Set --on_long cut"):
        compose(template, scorer, long, [], answers=["bad"], layout=Layout(limit=30, on_long="stop"))
    assert compose(template, scorer, long, [], answers=["bad"], layout=Layout(limit=30)).was_cut


def test_a_template_that_says_nothing_of_a_row_skips_it(saved, tmp_path: Path) -> None:
    template = Template("t/a", "{% if text %}{{ text }} {{ mask }}{% endif %}")
    with pytest.raises(Skipped):
        template.render({"text": ""})
    entry = CHOICES.replace(
        'a: "{{ question }} {{ mask }}"', 'a: "{% if number > 1 %}{{ question }} {{ mask }}{% endif %}"'
    )
    rows = [question(i, ["good", "bad"]) | {"number": i} for i in range(5)]
    found = study(tmp_path, saved("llama", AutoModelForCausalLM), entry, rows, choose_rows=0)
    assert len(found.outcomes[0].places) == 3 and not found.notes.troubles and len(found.notes.expected) == 1


def test_columns_of_another_name(saved, tmp_path: Path) -> None:
    entry = (
        'labels: [neg, pos]\ntemplates: {a: "{{ text }} it was {{ mask }}"}\nverbalizers: {w: {neg: '
        "bad, pos: good}}\n"
    )
    (tmp_path / "own.yaml").write_text(entry)
    rows = [{"Review Text": f"the film {i % 3}", "stars": ["neg", "pos"][i % 2]} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(saved("llama", AutoModelForCausalLM))
    given = StudyArguments(
        prompts=[str(tmp_path / "own.yaml")], models=[model], choose_rows=0, output_dir=str(tmp_path / "out")
    )
    answers = AnswerArguments(columns=["text=Review Text", "label=stars"])
    data = ColumnArguments(dataset_name=str(tmp_path / "rows.jsonl"))
    found = one_study(
        Options(given, ScoringArguments(), answers), data, TuneArguments(), InstructArguments()
    )[0]
    assert len(found.rows) == 6
    for name, value in (("text_column", "x"), ("drop_empty_rows", True)):
        wrong = ColumnArguments(dataset_name=data.dataset_name, **{name: value})
        with pytest.raises(InputError, match=f"--{name} isn't read here"):
            one_study(
                Options(given, ScoringArguments(), answers), wrong, TuneArguments(), InstructArguments()
            )
    with pytest.raises(InputError, match="wanted name=column"):
        one_study(
            Options(given, ScoringArguments(), AnswerArguments(columns=["x"])),
            data,
            TuneArguments(),
            InstructArguments(),
        )


def test_two_templates_that_differ_in_one_blank_have_two_hashes() -> None:
    one, two = (Template("t/a", f"{{{{ text }}}} Sentiment:{' ' * n}{{{{ mask }}}}") for n in (1, 2))
    assert one.hash != two.hash


def test_an_entry_with_both_kinds_keeps_both(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        'labels: [neg, pos]\nverbalizers: {w: {neg: bad, pos: good}}\ntemplates:\n  a: "{{ text }} {{ mask '
        '}}"\n'
        '  b: {text: "{{ text }} is {{ mask }}", target: "{{ end }}"}\n'
    )
    entry = read_entry(str(tmp_path / "own.yaml"))
    assert [entry.kind(name) for name in entry.templates] == ["labels", "text"]
    assert entry.metric_of("labels") == "accuracy" and entry.metric_of("text") == "rougeL"


@pytest.mark.parametrize(
    "row",
    [
        {
            "question": "the film was",
            "choices": {"text": ["good", "bad"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        {"goal": "the film was", "sol1": "good", "sol2": "bad", "label": 1},
        {"ctx": "the film was", "endings": ["good", "bad"], "label": "1"},
        {"question": "the film was", "choices": ["good", "bad"], "answer": 1},
    ],
)
def test_the_tasks_choice_rows_are_asked_without_training(saved, tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    model = str(saved("llama", AutoModelForCausalLM))
    given = StudyArguments(
        prompts=["choice"], models=[model], choose_rows=0, output_dir=str(tmp_path / "out")
    )
    data = ColumnArguments(dataset_name=str(tmp_path / "rows.jsonl"))
    found = one_study(Options(given, ScoringArguments()), data, TuneArguments(), InstructArguments())[0]
    assert len(found.outcomes) == 15 and not found.notes.troubles
    assert {line["gold"] for line in read_table(tmp_path / "out")} == {"bad"}


def test_check_speaks_of_a_second_blank_before_the_slot() -> None:
    rows = [StudyRow({"text": "the film"}, 0, "a")]
    told = [
        check_template(
            Template("t/a", f"{{{{ text }}}} was{' ' * n}{{{{ mask }}}}"),
            rows,
            make_tokenizer("llama"),
            limit=50,
            family="causal",
        )
        for n in (1, 2)
    ]
    assert told[0] == [] and len(told[1]) == 1 and "2 spaces before its slot" in told[1][0]
