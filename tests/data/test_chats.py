"""Chats: what is learnt is read off against `apply_chat_template`, for every template that TRL ships and some
more."""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import takewhile

import pytest
from chat_rows import CHATS, OWN, TEMPLATES, TOOLS, TURNS, call, said, tokenizer_for

from finetune.data.chats import ChatError, Chats, as_tools

# Families whose templates write turns otherwise once others follow: they were refused whole.
REWRITERS = (
    *("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "gptoss", "phi3", "phi3_5", "deepseekv3"),
    *("deepseek_r1_distill", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "glm4moe", "gemma4",
    "lfm2_2_5"),
)  # fmt: skip
SEEING = [
    TEMPLATES[name + end] for name in ("idefics3", "smolvlm", "llava_next") for end in ("", "_training")
]
REASONERS = set(REWRITERS) - {"phi3", "phi3_5", "gemma4"} | {"gemma4_v5"}


# the cases of one template follow each other, and making a tokenizer takes most of a case's time
prepared = lru_cache(maxsize=1)(tokenizer_for)


def texts(processor, line) -> tuple[str, str]:
    """What stands before the last answer of a line, and all that is learnt of it."""
    ids = [token for token, learnt in zip(line.ids, line.learnt, strict=True) if learnt]
    return processor.decode(line.ids[: line.prompt]), processor.decode(ids)


def asked(processor, messages, place, tools, told) -> tuple[list[int], list[int]]:
    """Ids of a prompt as it is asked at inference time, and of the chat with the answer behind it."""
    options = json.loads(told) if told else {}
    if processor.chat_template in SEEING:
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    ids = [
        processor.apply_chat_template(
            part, tools=tools, add_generation_prompt=prompt, return_dict=False, **options
        )
        for part, prompt in ((messages[:place], True), (messages[: place + 1], False))
    ]
    return ids[0], ids[1]


def holds(processor, line, prompt: list[int], whole: list[int]) -> bool:
    """Whether a line has an answer behind its own prompt, learnt from the prompt's last token to the answer's
    end."""
    if line.ids[: len(prompt)] != prompt or not line.learnt[len(prompt) :]:
        return False
    learnt = line.learnt[len(prompt) :]
    size = len(prompt) + (learnt.index(False) if False in learnt else len(learnt))
    if line.apart:  # together, the prompt's last token would be another one
        rest = processor.decode(whole).removeprefix(processor.decode(prompt))
        return processor.decode(line.ids[len(prompt) : size]).startswith(rest.rstrip())
    # what follows in the chat as it stands is blank; a line has an end where the template writes none
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, line.ids[:size], strict=False))
    )
    return same > len(prompt) and not processor.decode(whole[same:]).strip()


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_learnt_is_what_the_template_gives_at_inference_time(name, kind):
    processor, (messages, tools) = prepared(TEMPLATES[name]), CHATS[kind]
    try:
        lines = Chats(processor).lines(messages, tools)
    except ChatError as error:
        assert any(word in str(error) for word in ("does not render", "refuses messages", "otherwise than"))
        return
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    assert 1 <= len(lines) <= len(places)
    if kind == "greeting":  # nobody asks for one; that both are learnt is held below
        places = places[1:]
    for place in places:
        # Its prompt opens a block that the template doesn't write back: see below. Or its marks leave a
        # header out.
        if name.startswith("deepseek") or name == "diffusion_gemma_training":
            continue
        found = [asked(processor, messages, place, tools, line.told) for line in lines]
        assert any(holds(processor, line, *ids) for line, ids in zip(lines, found, strict=True)), (
            place,
            lines,
        )
    for line in lines:
        assert line.learnt[-1] and not all(line.learnt)


@pytest.mark.parametrize("name", [*REWRITERS, *OWN])
def test_several_turns_train_with_every_family(name):
    processor = tokenizer_for(TEMPLATES[name])
    lines = Chats(processor).lines(TURNS)
    learnt = "".join(texts(processor, line)[1] for line in lines)
    assert all(learnt.count(answer["content"]) == 1 for answer in TURNS[1::2])
    assert not any(question["content"] in learnt for question in TURNS[::2])
    prompt = processor.decode(
        processor.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=False)
    )
    told = json.loads(lines[-1].told or "{}")
    if not told:
        assert texts(processor, lines[-1])[0] == prompt


@pytest.mark.parametrize("name", sorted(REASONERS))
def test_reasoning_is_learnt_with_each_turn(name):
    processor, (messages, _) = tokenizer_for(TEMPLATES[name]), CHATS["reasoning"]
    learnt = "".join(texts(processor, line)[1] for line in Chats(processor).lines(messages))
    for message in messages[1::2]:
        assert learnt.count(message["reasoning_content"]) == learnt.count(message["content"]) == 1
    within = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    for message, whole in zip(within, messages, strict=True):
        if "reasoning_content" in whole:
            message["content"] = f"<think>\n{whole['reasoning_content']}\n</think>\n\n{whole['content']}"
    tagged = "".join(texts(processor, line)[1] for line in Chats(processor).lines(within))
    assert (
        "One is one." in tagged and "Two is more." in tagged
    )  # none of it is lost where the template cuts it off


@pytest.mark.parametrize("name", ["deepseekv3", "deepseek_r1_distill"])
def test_an_open_thinking_block_is_closed(name):
    processor = tokenizer_for(TEMPLATES[name])
    first, second = Chats(processor).lines(TURNS)
    for line, place in ((first, 1), (second, 3)):
        prompt, _ = asked(processor, TURNS, place, None, "")
        assert line.ids[: line.prompt] == prompt
        answer = TURNS[place]["content"]
        assert texts(processor, line)[1] == f"\n</think>\n\n{answer}<｜end▁of▁sentence｜>"


def test_turns_share_a_row_where_the_template_lets_them():
    for name, rows in (("smollm2", 1), ("qwen3", 2), ("qwen3_training", 1), ("phi3", 2), ("llama3_1", 1)):
        assert len(Chats(tokenizer_for(TEMPLATES[name])).lines(TURNS)) == rows, name


def test_generation_marks_say_what_is_learnt():
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}said: {% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = tokenizer_for(marked)
    (line,) = Chats(processor).lines(TURNS)
    assert texts(processor, line)[1] == "It is.<|im_end|>No, not two.<|im_end|>"
    processor.chat_template = marked.replace("{{ m.content }}<|im_end|>{% endgen", "{% endgen")
    with pytest.raises(ChatError, match="does not render the content of message 1"):
        Chats(processor).lines(TURNS)


def test_what_a_template_leaves_out_is_named():
    plain = Chats(tokenizer_for(OWN["smollm2"]))
    asking = said("user", "Weather in Oslo?")
    cases = [
        (
            [asking, said("assistant", "", tool_calls=call(town="Oslo"))],
            None,
            r"tool_calls of message 1 \(weather\)",
        ),
        (
            [asking, said("assistant", "Clear.", reasoning_content="I look.")],
            None,
            "reasoning_content of message 1",
        ),
        ([asking, said("assistant", "Clear.")], TOOLS, "the column 'tools'"),
    ]
    for messages, tools, wanted in cases:
        with pytest.raises(ChatError, match=wanted) as caught:
            plain.lines(messages, tools)
        assert "--chat_template_path" in str(caught.value)
    with pytest.raises(ChatError, match=r"content of message 1 \(tool\): 'grey'"):
        phi = Chats(tokenizer_for(TEMPLATES["phi3"]))
        phi.lines([asking, said("tool", "grey"), said("assistant", "Grey.")])
    with pytest.raises(ChatError, match="does not render the tool_calls"):
        Chats(tokenizer_for(TEMPLATES["lfm2"])).lines(*CHATS["tools"])


def test_a_name_that_a_template_does_not_read_is_named():
    plain = Chats(tokenizer_for(OWN["smollm2"]))
    named = [said("user", "Is it one?", name="one"), said("assistant", "It is.", name="Ann")]
    for asked in (lambda: plain.lines(named), lambda: plain.line(named), lambda: plain.prompt(named[:1])):
        # `one` stands in what is said, by chance
        with pytest.raises(
            ChatError, match=r"render the name of message 0 \(user\): 'one'.*--ignore_columns"
        ):
            asked()
    with pytest.raises(ChatError, match=r"the name of message 1 \(assistant\): 'Ann'"):
        plain.lines([TURNS[0], named[1]])
    reads = OWN["smollm2"].replace("+ m.role +", "+ m.role + (' ' + m.name if m.name else '') +")
    processor = tokenizer_for(reads)
    (line,) = Chats(processor).lines([named[0], TURNS[1]])
    assert "user one\nIs it one?" in texts(processor, line)[0]
    # what a role, or the call that is answered, says already is no loss
    assert plain.lines([said("user", "Is it one?", name="user"), TURNS[1]]) == plain.lines(TURNS[:2])
    messages, tools = CHATS["tools"]
    assert Chats(tokenizer_for(TEMPLATES["qwen2_5"])).lines(messages, tools)


@pytest.mark.parametrize("written", ["m.content[:9]", "m.content[:9] | tojson"])
def test_parts_that_a_template_writes_down_as_a_list_are_not_rendered(written):
    template = "{% for m in messages %}<|im_start|>{{ WRITTEN }}<|im_end|>{% endfor %}<|im_start|>"
    processor = tokenizer_for(template.replace("WRITTEN", written))
    chat = [{"role": "user", "content": "a question of many words"}, {"role": "assistant", "content": "yes"}]
    for asked in (lambda: Chats(processor).lines(chat), lambda: Chats(processor).prompt(chat[:1])):
        with pytest.raises(ChatError, match="does not render the content of message 0"):
            asked()


def test_calls_in_every_shape_give_the_same_ids():
    processor = tokenizer_for(TEMPLATES["qwen2_5"])
    question, bare = said("user", "Weather in Oslo?"), {"name": "weather", "arguments": {"town": "Oslo"}}
    shapes = [
        call(town="Oslo"),
        [{"type": "function", "function": bare | {"arguments": '{"town": "Oslo"}'}}],
        [bare],
        [{"id": None, "type": "function", "function": bare | {"arguments": {"town": "Oslo", "day": None}}}],
    ]
    found = [Chats(processor).lines([question, said("assistant", None, tool_calls=one)]) for one in shapes]
    assert all(one == found[0] for one in found) and "Oslo" in texts(processor, found[0][0])[1]
    v3 = Chats(tokenizer_for(TEMPLATES["deepseekv3"])).lines(
        [question, said("assistant", "", tool_calls=call(town="Oslo"))]
    )
    assert '{"town": "Oslo"}' in texts(tokenizer_for(TEMPLATES["deepseekv3"]), v3[0])[1]


def test_a_greeting_is_learnt_or_refused_with_the_reason():
    messages, _ = CHATS["greeting"]
    for name in ("smollm2", "qwen2_5", "llama3", "llama3_1", "gptoss", "zephyr", "nemotron_3_nano"):
        processor = tokenizer_for(TEMPLATES[name])
        learnt = "".join(texts(processor, line)[1] for line in Chats(processor).lines(messages))
        assert "Hello, who is it?" in learnt and "It is." in learnt, name
    for name, reason in (("gemma", "alternate"), ("qwen3_6", "No user query"), ("llama2", "alternate")):
        with pytest.raises(ChatError, match=reason):
            Chats(tokenizer_for(TEMPLATES[name])).lines(messages)


def test_messages_of_weight_0_are_not_learnt():
    processor = tokenizer_for(OWN["smollm2"])
    for unlearnt in ({"weight": 0}, {"train": False}):
        (line,) = Chats(processor).lines([TURNS[0], TURNS[1] | unlearnt, *TURNS[2:]])
        assert texts(processor, line)[1] == "No, not two.<|im_end|>"
    assert Chats(processor).lines([TURNS[0], TURNS[1] | {"weight": 0}]) == []
    (line,) = Chats(processor).lines([m | {"weight": 1, "train": None} for m in TURNS])
    assert texts(processor, line)[1].count("<|im_end|>") == 2


def test_an_answer_without_an_end_gets_the_one_that_follows():
    """The next message's header where it is a token (GLM-4.5 stops there), else the end of the text."""
    glm = tokenizer_for(TEMPLATES["glm4moe"])
    (line,) = Chats(glm).lines(TURNS)
    assert texts(glm, line)[1].endswith("No, not two.<|user|>")
    endless = tokenizer_for(OWN["endless"])
    lines = Chats(endless).lines(TURNS)
    assert [texts(endless, one)[1] for one in lines] == ["It is.</s>", "No, not two.</s>"]


def test_prompt_and_answer_that_would_share_a_token_are_tokenised_apart():
    processor = tokenizer_for(
        TEMPLATES["qwen3_5_think"]
    )  # asks with "<think>\n" and goes on with "\n</think>"
    (line,) = Chats(processor).lines(TURNS[:2])
    prompt = processor.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False)
    assert line.apart and line.ids[: line.prompt] == prompt
    assert processor.decode(line.ids).endswith("<think>\n\n</think>\n\nIt is.<|im_end|>")


def test_prompts_are_what_apply_chat_template_gives():
    for name in ("qwen2_5", "gptoss", "idefics3"):
        processor = tokenizer_for(TEMPLATES[name])
        parts = [
            m | {"content": [{"type": "text", "text": m["content"]}]} if name == "idefics3" else m
            for m in TURNS[:3]
        ]
        wanted = processor.apply_chat_template(parts, add_generation_prompt=True, return_dict=False)
        assert Chats(processor).prompt_ids(TURNS[:3]) == wanted
    with pytest.raises(ChatError, match="System role not supported"):
        Chats(tokenizer_for(TEMPLATES["gemma"])).prompt([said("system", "Be short."), TURNS[0]])
    loud = Chats(tokenizer_for(TEMPLATES["qwen3"]), {"enable_thinking": False})
    assert loud.prompt(TURNS[:1]).endswith("<think>\n\n</think>\n\n")


def test_a_template_without_bounds_is_stopped():
    processor = tokenizer_for("{% for i in range(99999999) %}{{ 'a' * 999999 }}{% endfor %}")
    with pytest.raises(ChatError, match="refuses messages"):
        Chats(processor).lines(TURNS)


def test_tools_that_cannot_be_read_are_refused():
    assert as_tools(json.dumps(TOOLS)) == as_tools(TOOLS) == TOOLS and as_tools("[]") is None
    for given in ("no json", '"text"', "[1]"):
        with pytest.raises(ChatError, match="column 'tools'"):
            as_tools(given)
