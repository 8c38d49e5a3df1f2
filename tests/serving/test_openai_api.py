"""OpenAI's API as its own client calls it, one call a test, against the pool's own answers."""

import base64
import json

import pytest
import torch
from served import Running, make_folders, serving
from test_pool import TEXTS, make
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from finetune.pool.pool import AdapterPool
from finetune.serving.tool_calls import Offer, parse_calls

openai = pytest.importorskip("openai", reason="the client library is not installed")

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.content }} {% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments.town }} {% endfor %}{% endfor %}"
)


def byte_level_pool() -> AdapterPool:
    """A tiny model over bytes, so that any text can be written and held to a grammar."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return AdapterPool(AutoModelForCausalLM.from_config(config), fast)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(byte_level_pool(), timeout_seconds=60.0) as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.client.base_url}/v1", api_key="none", max_retries=0)


def test_several_answers_to_one_prompt(client, served):
    options = {"model": "base", "prompt": "a film", "max_tokens": 8, "seed": 3}
    found = client.completions.create(n=3, temperature=1.0, **options)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({choice.text for choice in found.choices}) == 3
    assert found.usage.prompt_tokens == 6
    again = client.completions.create(n=3, temperature=1.0, **options)
    assert [c.text for c in again.choices] == [c.text for c in found.choices], "a seed repeats"
    streamed = ["", "", ""]
    for chunk in client.completions.create(n=3, temperature=1.0, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in found.choices]


def test_the_best_of_several(client):
    options = {"model": "base", "prompt": "a film", "max_tokens": 6, "seed": 5, "logprobs": 0}
    every = client.completions.create(n=4, **options).choices
    best = client.completions.create(n=1, best_of=4, **options).choices

    def worth(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    assert worth(best[0]) == pytest.approx(max(map(worth, every)))


def test_log_probabilities_and_echo_of_completions(client, served):
    found = client.completions.create(
        model="base", prompt="a film", max_tokens=2, temperature=0, logprobs=2, echo=True
    ).choices[0]
    noted = found.logprobs
    assert found.text.startswith("a film") and "".join(noted.tokens) == found.text
    assert noted.token_logprobs[0] is None and noted.text_offset == list(range(len(noted.tokens)))
    ids = torch.tensor([served.pool.texts.ids("a film")])
    with torch.no_grad():
        right = served.pool.network(ids).logits[0].log_softmax(-1)
    wanted = [float(right[i, ids[0, i + 1]]) for i in range(5)]
    assert noted.token_logprobs[1:6] == pytest.approx(wanted, abs=1e-4)
    assert noted.token_logprobs[6] == pytest.approx(max(noted.top_logprobs[6].values()), abs=1e-6)
    only = client.completions.create(model="base", prompt="a film", max_tokens=0, logprobs=0, echo=True)
    assert only.choices[0].text == "a film" and len(only.choices[0].logprobs.tokens) == 6


def test_log_probabilities_of_chats(client):
    options = {
        "model": "base",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "temperature": 0,
    }
    found = client.chat.completions.create(logprobs=True, top_logprobs=2, **options).choices[0]
    assert len(found.logprobs.content) == 4 and len(found.logprobs.content[0].top_logprobs) == 2
    assert found.logprobs.content[0].logprob == found.logprobs.content[0].top_logprobs[0].logprob
    streamed = [
        entry.logprob
        for chunk in client.chat.completions.create(logprobs=True, stream=True, **options)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == pytest.approx([entry.logprob for entry in found.logprobs.content], abs=1e-5)


def test_prompts_of_tokens(client, served):
    ids = served.pool.texts.ids("a film")
    options = {"model": "base", "max_tokens": 4, "temperature": 0}
    wanted = client.completions.create(prompt="a film", **options).choices[0].text
    assert client.completions.create(prompt=ids, **options).choices[0].text == wanted
    assert [c.text for c in client.completions.create(prompt=[ids, ids], **options).choices] == [wanted] * 2


def test_penalties_and_samplers(client):
    options = {"model": "base", "prompt": "a", "max_tokens": 12, "temperature": 0}
    never = client.completions.create(
        frequency_penalty=2, presence_penalty=2, logit_bias={"7": -100},
        extra_body={"repetition_penalty": 5.0}, **options,
    ).choices[0]  # fmt: skip
    assert len(set(never.text)) > len(set(client.completions.create(**options).choices[0].text)) - 1
    drawn = options | {"temperature": 1.0, "seed": 1}
    likeliest = client.completions.create(**options).choices[0].text
    assert client.completions.create(extra_body={"top_k": 1}, **drawn).choices[0].text == likeliest
    assert client.completions.create(extra_body={"min_p": 1.0}, **drawn).choices[0].text == likeliest


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_obey_a_schema(client, stream):
    pytest.importorskip("llguidance", reason="grammars need the extra 'serve'")
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "bad"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["mood", "stars"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema}}
    asked = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "judge"}], response_format=form, max_tokens=80,
        temperature=1.0, seed=2, stream=stream,
    )  # fmt: skip
    text = (
        "".join(c.choices[0].delta.content or "" for c in asked)
        if stream
        else asked.choices[0].message.content
    )
    found = json.loads(text)
    assert found["mood"] in ("good", "bad") and 1 <= found["stars"] <= 5


def test_answers_of_one_choice_and_a_schema_that_is_none(served):
    pytest.importorskip("llguidance", reason="grammars need the extra 'serve'")
    body = {
        "model": "base",
        "prompt": "a",
        "max_tokens": 20,
        "response_format": {"type": "choice", "choices": ["yes", "no"]},
    }
    assert served.client.post("/v1/completions", json=body).json()["choices"][0]["text"] in ("yes", "no")
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    said = served.client.post("/v1/completions", json=body | {"response_format": wrong})
    assert said.status_code == 400 and "schema can't be followed" in said.json()["error"]["message"]


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def test_tools_reach_the_template_and_their_calls_come_back(client, served, monkeypatch):
    messages = [
        {"role": "user", "content": "and in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function",
             "function": {"name": "weather", "arguments": '{"town": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]  # fmt: skip
    plain = [{"role": "user", "content": "x"}]
    assert served.pool.prompt_of(plain, [WEATHER]) == "weather x "
    found = client.chat.completions.create(
        model="base", messages=messages, tools=[WEATHER], max_tokens=2, temperature=0
    )
    assert found.usage.prompt_tokens == len("weather and in Rome?  weatherRome rain ")
    with pytest.raises(openai.UnprocessableEntityError, match="content may be null"):
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": None}])


STARS = {
    "type": "function",
    "function": {
        "name": "stars",
        "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
                       "additionalProperties": False},
    },
}  # fmt: skip
ASKED = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "temperature": 0}


@pytest.mark.parametrize(
    ("choice", "parallel", "most"),
    [
        ("required", True, 8),
        ("required", False, 1),
        ({"type": "function", "function": {"name": "stars"}}, True, 1),
    ],
)
def test_an_answer_that_must_be_a_call_is_one(client, choice, parallel, most):
    options = {"tools": [STARS], "tool_choice": choice, "parallel_tool_calls": parallel}
    answer = client.chat.completions.create(**ASKED, **options).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    calls = answer.message.tool_calls
    assert 1 <= len(calls) <= most
    assert all(
        call.function.name == "stars" and json.loads(call.function.arguments)["n"] in (1, 2) for call in calls
    )
    if most > 1:  # as below, and twice the time
        return
    streamed = [
        call
        for chunk in client.chat.completions.create(**ASKED, **options, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert [call.function.arguments for call in streamed] == [call.function.arguments for call in calls]


def test_calls_that_nothing_offers_are_refused_and_none_means_none(client):
    named = {"type": "function", "function": {"name": "moon"}}
    for options, message in (
        ({"tools": [STARS], "tool_choice": named}, "asks for moon, and the tools on offer are: stars"),
        ({"tool_choice": "required"}, "asks for a call, and the tools on offer are: none"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**ASKED, **options)
    for nameless in ({"type": "function"}, {"type": "function", "function": {"name": ""}}):
        with pytest.raises(openai.UnprocessableEntityError, match="tools.0"):
            client.chat.completions.create(**ASKED, tools=[nameless])
    form = {"tools": [STARS], "tool_choice": "required", "response_format": {"type": "json_object"}}
    with pytest.raises(openai.UnprocessableEntityError, match="no response_format beside it"):
        client.chat.completions.create(**ASKED, **form)
    answer = client.chat.completions.create(**(ASKED | {"max_tokens": 4}), tools=[STARS], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


def test_of_several_calls_a_client_that_runs_one_gets_the_first():
    text = "".join(f'<tool_call>{{"name": "weather", "arguments": {{"n": {n}}}}}</tool_call>' for n in (1, 2))
    assert [c["function"]["arguments"] for c in Offer({"weather"}, several=False).read(text)[1]] == [
        '{"n": 1}'
    ]
    assert len(Offer({"weather"}).read(text)[1]) == 2


@pytest.mark.parametrize(
    ("text", "beside", "arguments"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"town": '
            '"Rome"}}\n</tool_call>', None, [{"town": "Rome"}]),
        ('I look.<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>'
         '<tool_call>{"name": "weather", "arguments": {}}</tool_call>', "I look.", [{"a": 1}, {}]),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"a": [1]}}]', None, [{"a": [1]}]),
        ('{"name": "weather", "parameters": {"a": 1}}', None, [{"a": 1}]),
        ('<|python_tag|>{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": {"b": '
            '2}}', None,
         [{}, {"b": 2}]),
    ],
)  # fmt: skip
def test_calls_are_found_in_the_forms_of_common_families(text, beside, arguments):
    content, calls = parse_calls(text, {"weather"})
    assert content == beside
    assert [json.loads(call["function"]["arguments"]) for call in calls] == arguments


@pytest.mark.parametrize(
    "text", ['{"name": "other", "parameters": {}}', '{"weather": 1}', "weather", "[1, 2]", "<tool_call>{", ""]
)
def test_what_calls_nothing_that_is_on_offer_stays_text(text):
    assert parse_calls(text, {"weather"}) == (text, [])


def test_embeddings_as_numbers_and_as_bytes(client, served):
    wanted = served.pool.embed(["a film", "b"])
    found = client.embeddings.create(model="base", input=["a film", "b"], encoding_format="float")
    assert (
        found.data[0].embedding == pytest.approx(wanted[0].tolist(), abs=1e-5)
        and found.usage.total_tokens == 7
    )
    raw = served.client.post(
        "/v1/embeddings", json={"model": "base", "input": "b", "encoding_format": "base64"}
    )
    bytes_ = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert torch.frombuffer(bytearray(bytes_), dtype=torch.float32).tolist() == pytest.approx(
        wanted[1].tolist(), abs=1e-5
    )
    with pytest.raises(openai.BadRequestError, match="vectors have 16"):
        client.embeddings.create(model="base", input="b", dimensions=5)


def test_one_model_by_its_name(client):
    assert client.models.retrieve("base").id == "base"
    with pytest.raises(openai.NotFoundError, match="lists what there is"):
        client.models.retrieve("gpt-9")


def test_responses_whole_and_as_events(client):
    options = {"model": "base", "input": "hello", "max_output_tokens": 5, "temperature": 0}
    whole = client.responses.create(instructions="be kind", **options)
    assert whole.status == "incomplete" and whole.usage.output_tokens == 5
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert client.responses.create(**(options | {"input": turns})).output_text == whole.output_text
    events = list(client.responses.create(instructions="be kind", stream=True, **options))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_unknown_fields_are_named_or_refused(served):
    body = {"model": "base", "prompt": "a", "max_tokens": 1, "wings": 2, "n": 1}
    said = served.client.post("/v1/completions", json=body)
    assert said.status_code == 200 and said.headers["x-ignored-fields"] == "wings"
    chat = {"model": "base", "messages": [{"role": "user", "content": "a", "name": "Ann"}], "max_tokens": 1}
    said = served.client.post("/v1/chat/completions", json=chat)
    assert said.status_code == 200 and said.headers["x-ignored-fields"] == "messages.name"
    # of a message that a client sends back, what it holds nothing in is no loss
    turn = {"role": "assistant", "content": "b", "annotations": [], "audio": None, "weight": 0}
    said = served.client.post("/v1/chat/completions", json=chat | {"messages": [turn, *chat["messages"]]})
    assert said.headers["x-ignored-fields"] == "messages.name, messages.weight"
    asked = {"model": "base", "input": [chat["messages"][0]], "max_output_tokens": 1}
    said = served.client.post("/v1/responses", json=asked)
    assert said.status_code == 200 and said.headers["x-ignored-fields"] == "input.name"
    served.served.options.strict = True
    try:
        refused = served.client.post("/v1/completions", json=body)
    finally:
        served.served.options.strict = False
    assert refused.status_code == 400 and "Unknown fields: wings" in refused.json()["error"]["message"]


def test_documents_in_order(tmp_path):
    from served import filled

    with serving(filled(make_folders(tmp_path)), timeout_seconds=60.0) as running:
        assert isinstance(running, Running)
        query, documents = TEXTS[0], list(TEXTS[1:])
        body = {"model": "base", "query": query, "documents": documents, "top_n": 2, "return_documents": True}
        found = running.client.post("/v1/rerank", json=body).json()["results"]
        first, *others = running.pool.embed([query, *documents])
        scores = [float(first @ other) for other in others]
        assert [one["index"] for one in found] == sorted(range(3), key=lambda i: -scores[i])[:2]
        assert found[0]["document"]["text"] == documents[found[0]["index"]]
        make(tmp_path / "pairs", "llama", "SEQ_CLS", "lora", 4)
        running.pool.add("pairs", tmp_path / "pairs")
        found = running.client.post("/v1/rerank", json=body | {"model": "pairs", "top_n": None}).json()[
            "results"
        ]
        rows = running.pool.logits([(query, text) for text in documents], ["pairs"] * 3)
        assert {one["index"]: one["relevance_score"] for one in found} == {
            i: pytest.approx(float(row.softmax(-1)[-1]), abs=1e-5) for i, row in enumerate(rows)
        }
