"""Chats and completions: what is learnt is read off, character by character, from what the template wrote."""

from __future__ import annotations

import copy
import json

import pytest
from chat_rows import TEMPLATES, TURNS, call, said, tokenizer_for
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetune.data.chats import in_spans
from finetune.data.columns import Columns
from finetune.errors import InputError
from finetune.tasks.sft import InstructionArguments, encode
from finetune.tasks.task import Asked

TEMPLATE = (
    "{% if tools %}<|start|>tools\n{% for tool in tools %}{{ tool.function.name }}{% endfor %}<|end|>\n{% "
    "endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CHAT, PLAIN = Columns("messages", None, "messages"), Columns("prompt", None, "completion")


@pytest.fixture(scope="module")
def processor() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|start|>", "<|end|>"]
    tokenizer.train_from_iterator(
        ["user assistant system yes no"] * 3,
        trainers.BpeTrainer(
            vocab_size=290,
            show_progress=False,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def chat(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": text} for role, text in turns]


def learnt(processor, row) -> str:
    return processor.decode([label for label in row["labels"] if label >= 0])


def test_the_assistants_turns_are_learnt_with_their_ends(processor):
    messages = chat(
        ("system", "be short"),
        ("user", "well?"),
        ("assistant", "yes"),
        ("user", "sure?"),
        ("assistant", "no, no"),
    )
    (row,) = encode(Dataset.from_list([{"messages": messages}]), CHAT, processor, 128, None)
    assert learnt(processor, row) == "yes<|end|>no, no<|end|>"
    assert processor.decode(row["input_ids"][: row["prompt"]]).endswith("sure?<|end|>\n<|start|>assistant\n")
    for place, label in enumerate(row["labels"][:-1]):  # a label is the token that comes next
        assert label in (-100, row["input_ids"][place + 1])


def test_the_whole_text_where_that_is_asked_for(processor):
    messages = chat(("user", "well?"), ("assistant", "yes"))
    (row,) = encode(
        Dataset.from_list([{"messages": messages}]), CHAT, processor, 128, None, assistant_only_loss=False
    )
    assert (
        learnt(processor, row) == "user\nwell?<|end|>\n<|start|>assistant\nyes<|end|>\n"
    )  # all but the first token


def test_a_completion_is_learnt_with_the_end_of_text(processor):
    rows = Dataset.from_list([{"prompt": "well?", "completion": " yes"}])
    (row,) = encode(rows, PLAIN, processor, 64, None, chat=False)
    assert learnt(processor, row) == " yes<eos>"
    assert processor.decode(row["input_ids"]) == "well? yes"


def test_prompt_and_completion_go_into_the_template(processor):
    rows = Dataset.from_list([{"prompt": "well?", "completion": "yes"}])
    (row,) = encode(rows, PLAIN, processor, 64, None)
    whole = processor.decode([*row["input_ids"], row["labels"][-1]])  # the last token is predicted alone
    assert whole == "<|start|>user\nwell?<|end|>\n<|start|>assistant\nyes<|end|>"
    assert learnt(processor, row) == "yes<|end|>"
    assert row["input_ids"].count(processor.convert_tokens_to_ids("<|start|>")) == 2  # nothing begins twice


def test_prompts_that_are_messages(processor):
    rows = Dataset.from_list(
        [
            {
                "prompt": chat(("user", "a"), ("assistant", "b"), ("user", "c")),
                "completion": chat(("assistant", "d")),
            }
        ]
    )
    (row,) = encode(rows, PLAIN, processor, 128, None)
    assert learnt(processor, row) == "b<|end|>d<|end|>"


def test_tools_reach_the_template(processor):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row = {"messages": chat(("user", "a"), ("assistant", "b")), "tools": json.dumps(tools)}
    (found,) = encode(Dataset.from_list([row]), CHAT, processor, 128, None)
    assert processor.decode(found["input_ids"]).startswith("<|start|>tools\nweather<|end|>\n<|start|>user")


def test_rows_with_nothing_left_to_learn_are_left_out_and_counted(processor, caplog):
    rows = Dataset.from_list(
        [{"prompt": "a?" * 80, "completion": " yes"}, {"prompt": "a", "completion": " no" * 40}]
    )
    features = encode(rows, PLAIN, processor, 32, None, chat=False)
    assert features["row"][:] == [1] and features["length"][0] == 31
    assert (
        "1 of 2 rows have nothing to learn within 32 tokens, or nothing but" in caplog.text
        and "1 of 2 rows are longer" in caplog.text
    )
    with pytest.raises(InputError, match="no row has anything to learn"):
        encode(rows.select([0]), PLAIN, processor, 32, None, chat=False)


def test_an_answer_that_begins_inside_a_token_is_counted(processor, caplog):
    encode(Dataset.from_list([{"prompt": "ye", "completion": "s"}]), PLAIN, processor, 32, None, chat=False)
    assert "In 1 of 1 rows prompt and answer meet inside a token" in caplog.text


def test_a_tokenizer_without_template_takes_no_chats(processor):
    rows = Dataset.from_list([{"messages": chat(("user", "a"), ("assistant", "b"))}])
    processor.chat_template = None
    try:
        with pytest.raises(InputError, match="no chat template"):
            encode(rows, CHAT, processor, 64, None)
    finally:
        processor.chat_template = TEMPLATE


def test_a_template_that_answers_elsewhere_is_refused(processor):
    processor.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        with pytest.raises(
            InputError, match="Row 0: The chat template writes the answer of message 1 otherwise"
        ):
            encode(
                Dataset.from_list([{"messages": chat(("user", "a"), ("assistant", "b"))}]),
                CHAT,
                processor,
                64,
                None,
            )
    finally:
        processor.chat_template = TEMPLATE


def test_tokens_in_spans_by_eye():
    assert in_spans([(0, 2), (2, 4), (4, 4), (4, 6)], [(3, 5)]) == [False, True, False, False]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("[{", "is no JSON"),
        ('"film"', "wanted a list of JSON schemas"),
        ("[1]", "wanted a list of JSON schemas"),
    ],
)
def test_tools_that_are_none_are_said(processor, tools, message):
    rows = Dataset.from_list([{"messages": chat(("user", "well?"), ("assistant", "yes")), "tools": tools}])
    with pytest.raises(InputError, match=message):
        encode(rows, CHAT, processor, 128, None)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_length_that_holds_nothing_is_refused(processor, length):
    rows = Dataset.from_list([{"prompt": "yes", "completion": " no"}])
    with pytest.raises(InputError, match=f"Got --max_length {length}; wanted 2 or more"):
        encode(rows, PLAIN, processor, length, None, chat=False)


def test_a_template_that_rewrites_turns_gives_a_row_for_each_answer(caplog):
    processor = tokenizer_for(TEMPLATES["qwen3"])
    rows = Dataset.from_list([{"messages": TURNS}, {"messages": TURNS[:2]}])
    features = encode(rows, CHAT, processor, 256, None)
    assert features["row"][:] == [0, 0, 1] and features["final"][:] == [False, True, True]
    said = ["<think>\n\n</think>\n\nIt is.<|im_end|>", "<think>\n\n</think>\n\nNo, not two.<|im_end|>"]
    assert [learnt(processor, row) for row in features] == [*said, said[0]]
    for row, messages in zip(features, (TURNS[:1], TURNS[:3], TURNS[:1]), strict=True):
        asked = processor.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row["input_ids"][: row["prompt"]] == asked
    assert "2 chats became 3 rows" in caplog.text
    places = Asked(rows, CHAT, features, None).in_order()
    assert places.tolist() == [1, 2]  # an answer is written to a chat's last question alone


def test_marks_that_say_what_is_learnt_are_logged(processor, caplog):
    rows = Dataset.from_list([{"messages": chat(("user", "well?"), ("assistant", "yes"))}] * 2)
    encode(rows, CHAT, processor, 128, None)
    assert "{% generation %}" not in caplog.text
    marked = "{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n{% else %}<|start|>"
    own = copy.deepcopy(processor)
    own.chat_template = TEMPLATE.replace(
        "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}",
        "{% if m.role == 'assistant' %}<|start|>assistant\n" + marked
        + "{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}",
    )  # fmt: skip
    first, _ = encode(rows, CHAT, own, 128, None)
    assert learnt(own, first) == "yes<|end|>"
    assert "Of 2 of 2 rows what is learnt stands between the chat template's {% generation %}" in caplog.text


def test_the_row_whose_chat_its_template_leaves_out_is_named():
    processor = tokenizer_for(TEMPLATES["lfm2"])
    calls = [TURNS[0], said("assistant", "", tool_calls=call(town="Oslo"))]
    rows = Dataset.from_list([{"messages": [*TURNS[:2]]}, {"messages": calls}])
    with pytest.raises(
        InputError, match=r"Row 1: The chat template does not render the tool_calls of message 1"
    ):
        encode(rows, CHAT, processor, 256, None)


def test_what_a_template_is_told_reaches_it(caplog):
    processor = tokenizer_for(TEMPLATES["nemotron_3_nano"])
    rows = Dataset.from_list([{"messages": TURNS[:2]}])
    (asked,) = encode(rows, CHAT, processor, 256, None)
    assert '1 of 1 rows are asked for with {"enable_thinking": false}' in caplog.text
    (told,) = encode(rows, CHAT, processor, 256, None, template_options={"enable_thinking": False})
    assert asked["input_ids"] == told["input_ids"]
    with pytest.raises(InputError, match="--chat_template_kwargs is no JSON"):
        InstructionArguments(chat_template_kwargs="{no")
