"""Prompts asked of models: examples, chats, room, and the lint that says what is wrong beforehand."""

from __future__ import annotations

import pytest
from conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from finetune.errors import InputError
from prompts.scoring.score import Scorer
from prompts.study.rows import StudyRow
from prompts.templates.layout import Layout
from prompts.templates.lint import check_prompt
from prompts.templates.prompt import Prompt, compose
from prompts.templates.template import Template
from prompts.templates.verbalizer import Verbalizer, make_verbalizer

WORDS = make_verbalizer("t/w", ["neg", "pos"], {"neg": "bad", "pos": "good"})


@pytest.fixture
def scorer() -> Scorer:
    return Scorer(make_model("llama", AutoModelForCausalLM), make_tokenizer("llama"))


def test_asking_in_python(scorer: Scorer) -> None:
    prompt = Prompt(Template("t/a", "{{ text }} it was {{ mask }}"), WORDS)
    answer = prompt.ask(scorer, "we loved the film")
    assert list(answer) == ["neg", "pos"] and sum(answer.values()) == pytest.approx(1)
    assert answer == prompt.ask(scorer, text="we loved the film")
    with pytest.raises(InputError, match="no column 'text'"):
        prompt.ask(scorer, film="x")
    two = Prompt(Template("t/b", "{{ a }} {{ b }} {{ mask }}"), prompt.verbalizer)
    with pytest.raises(InputError, match="reads a, b; give each by its name"):
        two.ask(scorer, "x")
    assert sum(two.ask(scorer, a="the film", b="was").values()) == pytest.approx(1)


def test_examples_stand_before_the_question_with_their_answers(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }} it was {{ mask }}.")
    shown = [(template.render({"text": "the film"}), "good"), (template.render({"text": "a story"}), "bad")]
    made = compose(template, scorer, {"text": "the actor"}, shown, answers=["bad", "good"], layout=Layout())
    request, was_cut = made.request, made.was_cut
    assert request.context == "the film it was good.\n\na story it was bad.\n\nthe actor it was"
    assert request.answers == (" bad", " good") and request.rest == "." and not was_cut
    made = compose(
        template, scorer, {"text": "the actor " * 60}, shown, answers=["bad", "good"], layout=Layout()
    )
    cut, was_cut = made.request, made.was_cut
    assert (
        was_cut and cut.context.startswith("the film it was good.") and cut.context.endswith("actor it was")
    )
    assert len(scorer.tokenizer(cut.context)["input_ids"]) <= scorer.longest


def test_room_is_left_for_the_answer_with_the_most_tokens(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }} it was {{ mask }}")
    words = ["i i i i", "unpronounceable"]  # four tokens and one
    made = compose(template, scorer, {"text": "the film " * 60}, [], answers=words, layout=Layout(limit=20))
    assert made.was_cut and [len(s.ids) for s in scorer._encode([made.request])] == [20, 17]


def test_a_chat_goes_through_the_models_own_template_with_one_bos(scorer: Scorer) -> None:
    template = Template("t/a", "{{ text }} it was {{ mask }}")
    with pytest.raises(InputError, match="has no chat template"):
        compose(template, scorer, {"text": "the film"}, [], answers=["good"], layout=Layout(chat=True))
    scorer.tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }} {% endfor %}[CLS]"
    shown = [(template.render({"text": "a story"}), "bad")]
    request = compose(
        template, scorer, {"text": "the film"}, shown, answers=["good"], layout=Layout(chat=True)
    ).request
    assert (
        request.context == "<s>a story it was bad the film it was [CLS]"
        and request.answers == ("good",)
        and not request.special
    )
    sequence = scorer._encode([request])[0]
    assert sequence.ids.count(5) == 1  # a chat template has put its special tokens in already
    with pytest.raises(InputError, match="can't stand in a chat"):
        compose(
            Template("t/b", "{{ text }} {{ mask }}."),
            scorer,
            {"text": "x"},
            [],
            answers=["good"],
            layout=Layout(chat=True),
        )


def test_lint_names_what_is_wrong() -> None:
    rows = [StudyRow({"text": "the film was very good"}, 1, "a"), StudyRow({"text": " "}, 0, "b")]
    tokenizer = make_tokenizer("llama")

    def lint(text: str, words: Verbalizer = WORDS, limit: int = 50) -> str:
        return "\n".join(check_prompt(Prompt(Template("t/a", text), words), rows, tokenizer, limit, "causal"))

    fine = "the story is {{ text }} it was {{ mask }}"
    assert lint(fine) == "t/a: 1 rows with an empty column among text"
    missing = lint("{{ review }} {{ mask }}")
    assert "no column 'review'; the rows have text" in missing and "(2 of 2 rows)" in missing
    assert "1 rows render to nothing but the slot" in lint("{{ text.strip() }}{{ mask }}")
    assert "renders to nothing but its slot. Mend its text or leave the row out (1 of 2 rows)" in lint(
        "{{ text[:0] }}{{ mask }}"
    )
    assert "no slots for an answer" in lint("{{ text }}")
    assert "text after the slot" in lint("{{ text }} was {{ mask }} and dull")
    assert "1 of 2 rows have more than 9 tokens" in lint(fine, limit=9)
    assert "begins with <s> twice" in lint("<s> <s> {{ text }} {{ mask }}")
    unknown = make_verbalizer("t/w", ["neg", "pos"], {"neg": "zebra", "pos": "good"})
    assert "The answer ' zebra' is unknown to the vocabulary" in lint(fine, unknown)
    same = make_verbalizer("t/w", ["neg", "pos"], {"neg": "very bad", "pos": ["good", "very  bad"]})
    assert "t/a/w: 'very bad' of 'neg' and 'very  bad' of 'pos' are the same tokens; name another" in lint(
        fine, same
    )


def test_lint_sees_an_answer_that_is_split_differently_in_context() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[UNK]", "i", "t", "w", "a", "s", ":", "g", "o", "d", "oo", "goo", "good", ":g", " "]
    merges = [("o", "o"), (":", "g"), ("g", "oo"), ("goo", "d")]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="[UNK]")
    prompt = Prompt(
        Template("t/a", "{{ text }}:{{ mask }}"),
        make_verbalizer("t/w", ["n", "p"], {"n": "was", "p": "good"}),
    )
    lines = check_prompt(prompt, [StudyRow({"text": "it was"}, 0, "a")], fast, 50, "causal")
    assert any(
        "'good' is split in another way behind this text than alone: ':g' 'oo' 'd'" in line for line in lines
    )


def test_a_masked_model_fills_a_cloze_in_the_middle() -> None:
    scorer = Scorer(make_model("bert", AutoModelForMaskedLM), make_tokenizer("bert"))
    prompt = Prompt(Template("t/a", "it was {{ mask }} , {{ text }}"), WORDS)
    assert sum(prompt.ask(scorer, "we loved it").values()) == pytest.approx(1)
