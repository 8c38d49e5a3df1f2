"""Templates, entries, verbalizers, rows: what is rendered, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune.data.corpora import CORPORA
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from prompts.study.prompts import named_entry, named_prompts
from prompts.study.rows import read_rows, source_of
from prompts.templates.entries import Source, library
from prompts.templates.prompt import Prompt, split_name
from prompts.templates.reading import read_entry
from prompts.templates.template import Rendered, Template, shortened
from prompts.templates.verbalizer import Verbalizer, corrected, make_verbalizer, probabilities

TASKS = {
    "aspect",
    "entities",
    "grammar",
    "inference",
    "intent",
    "paraphrase",
    "sentiment",
    "summary",
    "topic",
    "translation",
}


def words(rendered: Rendered) -> int:
    return len(rendered.filled("x").split())


def test_rendering_parts_the_text_at_its_slot() -> None:
    template = Template("t/a", "{{ text }}\nIt was {{ mask }}.")
    assert template.columns == ("text",)
    rendered = template.render({"text": "Fine.", "other": 1})
    assert (rendered.before, rendered.gap, rendered.after) == ("Fine.\nIt was", " ", ".")
    assert rendered.filled("good") == "Fine.\nIt was good."
    assert Template("t/b", "A: {{ a }}\n{{ mask }}").render({"a": "x"}) == Rendered("A: x\n", "", "")


@pytest.mark.parametrize(
    "text",
    [
        "{{ cycler.__init__.__globals__ }}",
        "{{ text.__class__.__mro__ }}",
        "{{ mask.format.__globals__ }}",
        "{{ rows.append(1) }}",
    ],
)
def test_the_sandbox_refuses(text: str) -> None:
    with pytest.raises(InputError, match=r"t/a: (refused by the sandbox|cannot be rendered|no column)"):
        Template("t/a", text + "{{ mask }}").render({"text": "x", "rows": [1]})


def test_the_sandbox_keeps_lists_as_they_are() -> None:
    rows = [1]
    with pytest.raises(InputError, match="refused by the sandbox"):
        Template("t/a", "{% set _ = rows.append(2) %}a {{ mask }}").render({"rows": rows})
    assert rows == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ txt }} {{ mask }}", "t/a: no column 'txt'; the rows have text"),
        ("{{ text }}", "no slots"),
        ("{{ mask }} {{ text }} {{ mask }}", "2 slots"),
        ("{{ mask }}", "nothing but its slot"),
        ("{{ text {{ mask }}", "no valid template"),
        ("{{ text.nowhere }} {{ mask }}", "cannot be rendered"),
    ],
)
def test_bad_templates_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Template("t/a", text).render({"text": "x"})


def test_cutting_shortens_the_row_and_neither_instruction_nor_slot() -> None:
    template = Template("t/a", "Review: {{ text }} Question: good or bad? Answer: {{ mask }}")
    row = {"text": " ".join(f"w{i}" for i in range(50))}
    rendered, was_cut = template.fit(row, words, 17)
    assert was_cut and words(rendered) == 17
    assert rendered.before == "Review: w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 Question: good or bad? Answer:"
    assert template.fit(row, words, 57) == (template.render(row), False)
    with pytest.raises(InputError, match=r"tokens without the row's text; wanted at most 5.*--max_length"):
        template.fit(row, words, 5)


def test_cutting_takes_the_longest_column_first() -> None:
    template = Template("t/a", "{{ a }} / {{ b }} = {{ mask }}")
    rendered, _ = template.fit({"a": "one two", "b": "x " * 30}, words, 12)
    assert rendered.before == "one two / x x x x x x x ="
    both, _ = template.fit({"a": "one two three " * 9, "b": "four five six " * 8}, words, 16)
    assert (
        both.before.count(" ") == 14
        and both.before.startswith("one two three one two three ")
        and "/ four five six " in both.before
    )


def test_cutting_ends_between_words_where_there_are_words() -> None:
    assert [shortened("one two three", most) for most in (13, 9, 7, 6, 2)] == [
        "one two three",
        "one two",
        "one two",
        "one",
        "on",
    ]
    assert shortened("我喜欢这部电影" * 9, 10) == "我喜欢这部电影我喜欢"
    template = Template("t/a", "评论：{{ text }}\n好还是坏？{{ mask }}")

    def characters(rendered: Rendered) -> int:
        return len(rendered.filled("好"))

    rendered, was_cut = template.fit({"text": "这部电影很好看" * 30}, characters, 40)
    assert was_cut and characters(rendered) == 40 and rendered.before.endswith("\n好还是坏？")
    lines, was_cut = template.fit({"text": "eins\nzwei\tdrei\u00a0vier\n" * 30}, characters, 60)
    assert was_cut and 50 < characters(lines) <= 60


def test_names_values_and_helpers_that_could_confuse_jinja() -> None:
    template = Template(
        "t/a", "{% for one in range(2) %}{{ one }}{% endfor %} {{ self_ }} {{ loop }} {{ class }} {{ mask }}"
    )
    row = {
        "self": "a",
        "mask": "b",
        "answer_choices": "c",
        "if": "d",
        "self_": "e",
        "loop": "f",
        "class": "g",
        "kwargs": "h",
    }
    assert template.columns == ("class", "loop", "self_") and template.render(row).before == "01 e f g"
    assert (
        Template("t/b", "{{ text }}: {{ title }} {{ mask }}").render({"text": None, "title": "x"}).before
        == ": x"
    )
    assert (
        Template("t/c", "{{ text }} it was {{ mask }}").render({"text": "a \ue0ff b ||| \ue0fe"}).before
        == "a  b |||  it was"
    )
    for text in (
        "{{ lipsum() }}",
        "{% include 'a' %}",
        "{{ 1 // 0 }}",
        "{{ text | dictsort }}",
        "{{ range(10 ** 9) }}",
        "{{ [] | random }}",
    ):
        with pytest.raises(InputError, match=r"t/d: (no column|cannot be rendered|refused by the sandbox)"):
            Template("t/d", text + " {{ mask }}").render({"text": "x"})


def test_what_is_drawn_in_a_template_depends_on_the_row_alone() -> None:
    template = Template("t/a", "{{ ['Say', 'Tell', 'Name'] | random }}: {{ text }} {{ mask }}")
    texts = [template.render({"text": f"row {i}"}).before for i in range(30)]
    assert texts == [template.render({"text": f"row {i}"}).before for i in range(30)]
    assert {text.partition(":")[0] for text in texts} == {"Say", "Tell", "Name"}


def test_a_template_may_be_as_empty_as_its_row() -> None:
    template = Template("t/a", "{{ text }} {{ mask }}")
    assert template.render({"text": ""}) == Rendered("", "", "")
    with pytest.raises(InputError, match="nothing but its slot"):
        Template("t/b", "{% if label == 1 %}{{ text }}{% endif %}{{ mask }}").render(
            {"text": "x", "label": 0}
        )


def test_the_library_has_ten_tasks_with_templates_and_words() -> None:
    assert set(library()) == {*TASKS, "choice"}
    for name in library():
        entry = read_entry(name)
        assert len(entry.templates) >= 3 and entry.data and all(t.follows for t in entry.templates.values())
        of_rows = any(source.rows == "choices" for source in entry.data.values())  # each row brings its words
        assert len(entry.words) >= 2 or of_rows or (entry.targets and len(entry.endings) >= 2)


@pytest.mark.parametrize("corpus", sorted(CORPORA))
def test_the_entry_of_sentiments_knows_the_built_in_corpora(corpus: str) -> None:
    rows = load_rows(DataArguments(dataset_name=corpus), train=False).eval
    source = read_entry("sentiment").data[corpus]
    assert {source.labels[name] for name in rows.features["label"].names} == {"negative", "positive"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_template_renders_on_its_data(name: str, shared_data: Path) -> None:
    entry = read_entry(name)
    for dataset in entry.data:
        folder = dataset if dataset in CORPORA else str(shared_data / dataset)
        rows = load_rows(DataArguments(dataset_name=folder), train=False).eval.select(range(20))
        table = read_rows(rows, entry, source_of(entry, folder))
        if not entry.targets:
            prompts = named_prompts(entry, [name], table.labels)
            assert {row.label for row in table.rows} <= set(range(len(table.labels)))
            assert len(prompts) == len(entry.templates) * len(entry.words)
        else:
            assert all(
                target.plain(row.columns).strip() for row in table.rows for target in entry.targets.values()
            )
        for template in entry.templates.values():
            for row in table.rows:
                rendered = template.render(row.columns)
                assert all(str(row.columns[c]).strip() in rendered.filled("") for c in template.columns)


def test_entities_are_spans_of_a_sentence() -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    data = Dataset.from_dict(
        {"tokens": [["Ada", "King", "saw", "Paris", "Rome", "."]], "ner_tags": [[1, 2, 0, 3, 3, 0]]},
        features=Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}),
    )
    table = read_rows(data, read_entry("entities"), read_entry("entities").data["conll2003"])
    assert [(row.columns["span"], table.labels[row.label]) for row in table.rows] == [
        ("Ada King", "PER"),
        ("Paris", "LOC"),
        ("Rome", "LOC"),
    ]
    assert table.rows[0].columns["text"] == "Ada King saw Paris Rome."


def test_labels_are_renamed_by_name_not_by_place() -> None:
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).cast_column(
        "label", ClassLabel(names=["pos", "neg"])
    )
    table = read_rows(data, read_entry("sentiment"), read_entry("sentiment").data["imdb"])
    assert table.labels == ("negative", "positive") and [row.label for row in table.rows] == [1, 0]
    # a label that the entry doesn't know leaves its rows out, unless too few are left to tell apart
    texts = {"text": ["a", "b", "c"], "label": ["pos", "meh", "neg"]}
    table = read_rows(Dataset.from_dict(texts), read_entry("sentiment"), read_entry("sentiment").data["imdb"])
    assert [row.columns["text"] for row in table.rows] == ["a", "c"] and table.strange == {"meh": [1]}
    strange = data.cast_column("label", ClassLabel(names=["pos", "meh"]))
    with pytest.raises(InputError, match="sentiment: no label 'meh'; it has negative, positive"):
        read_rows(strange, read_entry("sentiment"), read_entry("sentiment").data["imdb"])
    with pytest.raises(InputError, match="no column 'text' in the data; it has words"):
        read_rows(
            data.rename_column("text", "words"), read_entry("sentiment"), read_entry("sentiment").data["imdb"]
        )
    with pytest.raises(InputError, match="0 rows"):
        read_rows(data.select([]), read_entry("sentiment"), read_entry("sentiment").data["imdb"])


def test_files_of_ones_own_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "labels: [no, yes]\ntemplates: {a: '{{ text }} {{ mask }}'}\nverbalizers: {w: {no: No, yes: 1.0}}"
    )
    prompt = Prompt.load(f"{path}/a/w")  # plain words are texts, whatever YAML would make of them
    assert prompt.verbalizer.labels == ("no", "yes") and prompt.verbalizer.words == (("No",), ("1.0",))
    for text, message in (
        ("labels: [a]", "has no `templates`"),
        ("templates: {a: x}", "neither `verbalizers` nor `target`"),
        ("template: 1\ntemplates: {a: x}", "unknown key 'template'"),
        ("templates: {a: [3]}\nverbalizers: {w: '{name}'}", "wanted `text`"),
        ("templates: [", "Cannot read"),
        ("templates: {a: x, a: y}\nverbalizers: {w: '{name}'}", "'a' is there twice"),
        (
            "labels: [neg, neg]\ntemplates: {a: x}\nverbalizers: {w: '{name}'}",
            "wanted two or more different ones",
        ),
        ("labels: neg\ntemplates: {a: x}\nverbalizers: {w: '{name}'}", "`labels` holds 'neg'; wanted"),
        (
            "metric: f1\ntemplates: {a: x}\nverbalizers: {w: '{name}'}",
            "unknown metric 'f1'; wanted one of: accuracy",
        ),
        (
            "metric: accuracy\ntemplates: {a: x}\ntarget: y",
            "unknown metric 'accuracy'; wanted one of: exact_match",
        ),
        ("templates: {a: x}\ntarget: y\nendings: {e: {until: END}}", "the ending 'e' holds"),
        (
            "data: [x]\ntemplates: {a: x}\nverbalizers: {w: '{name}'}",
            "`data` holds ['x']; wanted".replace("[", "\\["),
        ),
        ("templates: {a: x}\nverbalizers: [w]", "neither `verbalizers` nor `target`"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_entry(str(path))
    for words, message in (
        ("[bad, good]", "own/w: holds"),
        ("{words: '{name}', tokes: sum}", "own/w: unknown key 'tokes'"),
    ):
        (tmp_path / "own.yaml").write_text(
            f"labels: [n, p]\ntemplates: {{a: x}}\nverbalizers: {{w: {words}}}"
        )
        with pytest.raises(InputError, match=message):
            Prompt.load(str(tmp_path / "own.yaml"))
    with pytest.raises(InputError, match="No prompts 'sentimental'"):
        read_entry("sentimental")


def test_both_splits_number_labels_alike() -> None:
    entry = read_entry("intent")
    test, train = (
        {"text": ["a", "b"], "intent": [1, 10]},
        {"text": ["c", "d", "e"], "intent": [10, 2, None]},
    )
    splits = [Dataset.from_dict(part) for part in (test, train)]
    tables = [read_rows(split, entry, entry.data["clinc150"], splits=splits) for split in splits]
    assert [table.labels for table in tables] == [("1", "2", "10")] * 2 and tables[0].values == (1, 2, 10)
    assert [[row.label for row in table.rows] for table in tables] == [[0, 2], [2, 1, -1]]


def test_verbalizers_by_eye() -> None:
    verbalizer = Verbalizer("v", ("a", "b"), (("x", "y"), ("z",)))
    tokens = [[np.log([0.5, 0.5]), np.log([0.25]), np.log([0.125])]]
    exact = verbalizer.word_scores(tokens)
    np.testing.assert_allclose(np.exp(exact), [[0.25, 0.25, 0.125]])
    np.testing.assert_allclose(probabilities(verbalizer.label_scores(exact)), [[2 / 3, 1 / 3]])
    for how, expected in (("mean", 0.2), ("sum", 0.4), ("max", 0.3), ("first", 0.1)):
        scores = Verbalizer("v", ("a", "b"), (("x", "y"), ("z",)), combine=how).label_scores(
            np.log([[0.1, 0.3, 0.2]])
        )
        np.testing.assert_allclose(np.exp(scores), [[expected, 0.2]])
    for how, expected in (("mean", 0.2), ("first", 0.1), ("max", 0.4)):
        scores = Verbalizer("v", ("a", "b"), (("x",), ("z",)), tokens=how).word_scores(
            [[np.log([0.1, 0.4]), np.log([1.0])]]
        )
        np.testing.assert_allclose(np.exp(scores[0, 0]), expected)
    np.testing.assert_allclose(
        np.exp(corrected(np.log([[0.2, 0.2]]), np.log([[0.1, 0.3], [0.3, 0.1]]))), [[1, 1]]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": "x", "c": "y"}, "no label 'c'; the data has a, b"),
        ({"a": "x"}, "no word for the label 'b'"),
        ({"a": "x", "b": "x"}, "'a' and 'b' have the same word 'x'"),
        ({"a": "x", "b": " "}, "label 'b' has"),
        ({"a": "x", "b": None}, "label 'b' has"),
        ({"a": "x", "b": []}, "label 'b' has"),
        ("same", "have the same word"),
    ],
)
def test_bad_verbalizers_are_named(given: object, message: str) -> None:
    with pytest.raises(InputError, match=f"v/w: .*{message}"):
        make_verbalizer("v/w", ["a", "b"], given)  # type: ignore[arg-type]


def test_bad_names_and_options_are_named() -> None:
    for name, message in (
        ("sentiment/nowhere", "no template 'nowhere'"),
        ("sentiment/review/nowhere", "no verbalizer 'nowhere'"),
        ("summary/tldr", "generates text"),
        ("intent/intent", "its labels are those of the data"),
        ("a/b/c/d", "wanted entry"),
    ):
        with pytest.raises(InputError, match=message):
            Prompt.load(name)
    with pytest.raises(InputError, match="unknown tokens 'median'"):
        Verbalizer("v", ("a", "b"), (("x",), ("z",)), tokens="median")
    with pytest.raises(InputError, match="1 labels"):
        Verbalizer("v", ("a",), (("x",),))
    with pytest.raises(InputError, match="no label 'c'"):
        Verbalizer("v", ("a", "b"), (("x",), ("z",))).answer("c")
    assert split_name("x/y.yaml/t/v") == ("x/y.yaml", "t", "v") and split_name("s") == ("s", None, None)
    with pytest.raises(InputError, match="several entries"):
        named_entry(["sentiment", "topic"])


def test_a_row_is_the_same_one_whether_its_class_is_a_name_or_a_number() -> None:
    named = Dataset.from_dict(
        {"text": ["a", "b", "c"], "kind": ["pos", None, "neg"], "label": ["pos", "neg", "pos"]}
    )
    classes = ClassLabel(names=["neg", "pos"])
    numbered = named.cast_column("kind", classes).cast_column("label", classes)
    entry = read_entry("sentiment")
    entry = replace(entry, labels=("neg", "pos"), words={"w": "{name}"})
    tables = [read_rows(data, entry, Source()) for data in (named, numbered)]
    assert [row.identity for row in tables[0].rows] == [row.identity for row in tables[1].rows]
    # templates see what the file has
    assert [row.columns["kind"] for row in tables[1].rows] == [1, None, 0]
