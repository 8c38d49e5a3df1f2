"""Small inputs with their right answers, where they lie beside the project, file by file: what a row is
to the model and what of it is learnt, or why it is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import pytest
from chat_rows import TEMPLATES, tokenizer_for
from conftest import SHARED_DATA, TOWNS
from seqeval.metrics.sequence_labeling import get_entities

from finetune.alignment.preferences import pair_ids, with_prompt
from finetune.data.laying import laid_out
from finetune.data.preferred import lay_out_pairs, lay_out_unpaired
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.loss import IGNORED
from finetune.objectives.inputs import lay_out_texts
from finetune.tasks import classification, multilabel, seq2seq, sft, spans, tokens

CASES = SHARED_DATA.parent / "cases" / "rows"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs (../shared/cases) are not here")

GERMAN = {"Rome": "Rom", "Kiev": "Kiew", "Cairo": "Kairo"}


def given(file: str, **options: object) -> DataArguments:
    return DataArguments(str(CASES / file), eval_split="train", **options)


def examined(file: str, examine, **options: object):
    data = given(file, **options)
    return examine(load_rows(data), data)


@pytest.fixture(scope="module")
def chatml():
    """Bytes as tokens, ChatML with calls and tools."""
    return tokenizer_for(TEMPLATES["qwen2_5"])


def lines(file: str, processor, **options: object) -> list[tuple[str, str]]:
    """Each row as the model sees it: what stands there, and what of it is learnt, with bars between."""
    found = examined(file, sft.examine, **options)
    features = sft.encode(found.rows.train, found.columns, processor, 4096, None)
    made = []
    for ids, labels in zip(features["input_ids"], features["labels"], strict=True):
        learnt, last = [], IGNORED
        for one in labels:
            if one != IGNORED:
                learnt = [*learnt, []] if last == IGNORED else learnt
                learnt[-1].append(one)
            last = one
        made.append((processor.decode(ids), "|".join(processor.decode(part) for part in learnt)))
    return made


@pytest.mark.parametrize(
    ("file", "asked", "learnt"),
    [
        ("alpaca.json", "Translate the name of the town into German.\n\n{town}", "{german}"),
        ("alpaca_system_history.jsonl", None, None),
        ("dolly.jsonl", "Which town is meant?\n\nIt lies where the sentence ends: {town}.", "{town}"),
        ("system_prompt_question.jsonl", "Where is {town}?", "In its country, {town} knows."),
        ("messages_human_gpt.jsonl", "Say {town}.", "{town}"),
        ("messages_parts.jsonl", "Say {town}.", "{town}"),
        ("input_output.jsonl", "Say {town}.", "{town}"),
    ],
)  # fmt: skip
def test_a_question_is_whole_and_its_answer_learnt(file, asked, learnt, chatml, capsys):
    made = lines(file, chatml)
    if asked is None:
        assert len(made) == 6
        for whole, said in made:
            assert said.strip() in ("Oslo<|im_end|>", *(f"{town}<|im_end|>" for town in TOWNS))
            assert "system\nYou answer with one word.<|im_end|>" in whole
            assert "user\nName a country with " in whole and "user\nAnd its capital?<|im_end|>" in whole
        return
    for town in TOWNS:
        words = {"town": town, "german": GERMAN.get(town, town)}
        turn, end = f"user\n{asked.format(**words)}<|im_end|>", f"{learnt.format(**words)}<|im_end|>"
        assert any(turn in whole and said.strip() == end for whole, said in made), town
    assert len(made) == 12
    if file.startswith("system"):
        assert all("system\nBe brief.<|im_end|>" in whole for whole, _ in made)
    if file.startswith("dolly"):
        assert "not used: category" in capsys.readouterr().out


def test_one_chat_in_four_layouts_has_the_same_ids(chatml):
    same = [sorted(lines(f"{name}.jsonl", chatml)) for name in
            ("messages_human_gpt", "messages_parts", "input_output")]  # fmt: skip
    assert same[0] == same[1] == same[2]
    # with a system and two turns, all of the assistant's learnt
    for whole, said in lines("sharegpt.jsonl", chatml):
        assert "system\nAnswer with the town alone.<|im_end|>" in whole and "user\nAgain.<|im_end|>" in whole
        assert len(set(said.replace("\n", "").split("|"))) and said.count("<|im_end|>") == 2


def test_calls_and_answers_are_learnt_and_results_are_not(chatml):
    for whole, said in lines("sharegpt_tools.jsonl", chatml):
        assert "Weather of a town" in whole and '{"sky": "clear"}' in whole and "sky" not in said
        assert '"name": "weather", "arguments": {"town":' in said and "Clear in " in said


def test_what_a_template_leaves_out_is_refused_with_its_row():
    with pytest.raises(InputError, match=r"Row \d+ .*does not render the tool_calls"):
        lines("messages_tool_calls_ignored.jsonl", tokenizer_for(TEMPLATES["smollm2"]))


def test_a_greeting_and_an_answer_are_learnt(chatml):
    made = lines("messages_greeting_first.jsonl", chatml)
    assert len(made) == 12 and all("Hello, which town?" in said and " it is." in said for _, said in made)


def test_a_turn_of_weight_nought_is_not_learnt(chatml):
    made = lines("messages_weight.jsonl", chatml)
    assert all("WRONG" in whole and "WRONG" not in said for whole, said in made)
    assert sorted(said.strip() for _, said in made) == sorted(f"{town}<|im_end|>" for town in TOWNS)


@pytest.mark.parametrize(
    ("file", "asked"), [("alpaca.json", "German.\n\n{town}"), ("dolly.jsonl", "ends: {town}.")]
)
def test_a_writer_reads_the_whole_question(file, asked):
    found = examined(file, seq2seq.examine)
    pairs = {row[found.columns.text]: row[found.columns.label] for row in found.rows.train}
    assert all(any(text.endswith(asked.format(town=town)) for text in pairs) for town in TOWNS)
    assert set(pairs.values()) == {GERMAN.get(t, t) if file == "alpaca.json" else t for t in TOWNS}


def test_sets_of_labels_as_noughts_and_ones():
    found = examined("multi_hot.jsonl", multilabel.examine)
    assert len(found.labels) == 3
    sets = [set(row) for row in found.rows.train[found.columns.label]]
    assert sorted(map(len, sets)) == sorted(
        sum(json.loads(line)["labels"]) for line in (CASES / "multi_hot.jsonl").read_text().splitlines()
    )


def test_minus_one_among_classes_is_left_out_of_both_splits(caplog):
    found = examined("snli_minus_one.jsonl", partial(classification.examine, pair=True))
    assert found.labels == ["0", "1", "2"] and len(found.rows.train) == len(found.rows.eval) == 18
    assert "6" in caplog.text and "-1" in caplog.text


@pytest.mark.parametrize(
    ("file", "labels", "text"),
    [("semicolon_bom.csv", ["gut", "schlecht"], "Grüße aus Bern sehr schön"),
     ("none_is_a_label.csv", ["NA", "None"], "Bern row 1")],
)  # fmt: skip
def test_tables_are_read_as_they_are(file, labels, text):
    found = examined(file, partial(classification.examine, pair=False))
    assert found.labels == labels and len(found.rows.train) == 24
    assert text in found.rows.train[found.columns.text][:]


def test_labels_that_are_near_twins_stop_the_run():
    with pytest.raises(InputError, match="differ by blanks or case alone.*' neg'.*--near_labels merge"):
        examined("labels_unclean.jsonl", partial(classification.examine, pair=False))
    found = examined("labels_unclean.jsonl", partial(classification.examine, pair=False), near_labels="merge")
    assert len(found.labels) == 2


@pytest.mark.parametrize(("documents", "count"), [(None, 3), ("files", 3), ("paragraphs", 6), ("lines", 9)])
def test_books_are_documents(documents, count):
    data = given("books", **({} if documents is None else {"documents": documents}))
    rows, _ = laid_out(load_rows(data), data, lay_out_texts)
    texts = rows.train["text"][:]
    assert len([text for text in texts if text.strip()]) == count
    if documents in (None, "files"):
        assert texts[0].count("\n\n") == 1 and texts[0].startswith("The town of Oslo.\nIt has two lines")


def test_questions_of_squads_own_form():
    found = examined("squad_own.json", spans.examine)
    assert len(found.rows.train) == 12
    assert "Oslo lies by the sea." in found.rows.train["context"][:]


@pytest.mark.parametrize("file", ["ner_bioes.jsonl", "ner_spans.jsonl"])
def test_entities_are_whole(file):
    found = examined(file, tokens.examine)
    for words, tags in zip(
        found.rows.train[found.columns.text], found.rows.train[found.columns.label], strict=True
    ):
        named = [" ".join(words[a : b + 1]) for kind, a, b in get_entities(list(tags)) if kind == "LOC"]
        assert named[0] in TOWNS and named[1:] == (["New York"] if file == "ner_bioes.jsonl" else [])


@pytest.mark.parametrize(
    ("file", "asked"),
    [("pairs_alpaca.jsonl", ("instruction", "input")), ("pairs_orca.jsonl", ("system", "question")),
     ("pairs_sharegpt.jsonl", ()), ("pairs_tools.jsonl", ()), ("pairs_cyrillic_shared_start.jsonl", ())],
)  # fmt: skip
def test_pairs_have_their_whole_question(file, asked, chatml):
    data = given(file)
    rows = load_rows(data)
    laid, _ = laid_out(rows, data, lay_out_pairs)
    raw, found = rows.train[0], with_prompt(laid.train, file)[0]
    said = json.dumps(found["prompt"], ensure_ascii=False)
    assert all(raw[name] in said for name in asked) and found["chosen"] != found["rejected"]
    if file == "pairs_cyrillic_shared_start.jsonl":  # never inside a word
        assert found["prompt"][-1].isspace() or found["chosen"][0].isspace()
    if file == "pairs_tools.jsonl":
        with_tools, without = (pair_ids(chatml, found["prompt"], None, t) for t in (found["tools"], None))
        assert len(with_tools) > len(without)


def test_answers_with_a_verdict():
    data = given("kto_unpaired.jsonl")
    laid, _ = laid_out(load_rows(data), data, lay_out_unpaired)
    assert Counter(laid.train["label"]) == {True: 6, False: 6}
