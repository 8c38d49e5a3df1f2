"""What requests to OpenAI's endpoints may hold. Knows shapes and limits of single fields; knows no models.

A field that isn't here is let through and named in the answer's head (`X-Ignored-Fields`), or refused by
`--strict`; what is here and can't be done is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from finetune.serving.schemas import Share, Stops, Strict, Temperature, Texts

# Strict: pydantic would take "1" and true for numbers.
Ids = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=100_000)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Most = Annotated[int, Field(ge=1, le=100_000)]
Count = Annotated[int, Field(ge=1, le=16)]


def _same_kind(value: Any) -> Any:
    """Integers, strings and booleans are no numbers for each other where a prompt is meant."""
    if isinstance(value, list) and value and any(type(one) is not type(value[0]) for one in value):
        raise ValueError("wanted texts, tokens or lists of tokens, not a mixture")
    return value


Prompts = Annotated[
    str | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=256)], BeforeValidator(_same_kind)
]


class Lenient(BaseModel):
    """Fields that are unknown here are kept, so that they can be named."""

    model_config = ConfigDict(extra="allow")

    def unknown(self, above: str = "") -> Iterator[str]:
        """Names of unknown fields, those of what stands inside too: `wings`, `messages.weight`."""
        for name, value in (self.model_extra or {}).items():
            # Clients send messages back with what they fill in themselves: nothing is lost by it.
            if not above or value not in (None, [], {}, ""):
                yield above + name
        for name in self.model_fields_set & type(self).model_fields.keys():
            value = getattr(self, name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Lenient):
                    yield from one.unknown(f"{above}{name}.")


class Streaming(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # OpenAI's padding against eavesdroppers; nothing is padded here


class ChatOptions(Lenient):
    """What completions and chats share, under OpenAI's names, and vLLM's for what OpenAI lacks."""

    model: str = Field(max_length=512)
    # 0 where only a prompt's log-probabilities are wanted.
    max_tokens: int | None = Field(default=None, ge=0, le=100_000)
    temperature: Temperature | None = None
    top_p: Share | None = None
    # -1 is vLLM's word for all.
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Stops | None = None
    stream: bool | None = False
    stream_options: Streaming | None = None
    n: Count | None = 1
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^\d{1,9}$")],
                Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
            ],
            Field(max_length=1024),
        ]
        | None
    ) = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    return_tokens_as_token_ids: bool | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())


class JsonSchema(Lenient):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class Format(Lenient):
    """How an answer is held to a form. The responses' endpoint has the schema beside the type."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    pattern: str | None = Field(default=None, max_length=4096)
    choices: Annotated[list[str], Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Format:
        wanted = {"json_schema": self.wanted, "regex": self.pattern, "choice": self.choices}
        if self.type in wanted and wanted[self.type] is None:
            named = {"json_schema": "a schema", "regex": "a pattern", "choice": "choices"}[self.type]
            raise ValueError(f"the type '{self.type}' needs {named}")
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        return self.json_schema.schema_ if self.json_schema is not None else self.schema_


class Completion(ChatOptions):
    prompt: Prompts
    echo: bool | None = None
    best_of: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Filling in between two texts is refused, but clients send it empty.
    suffix: Literal[""] | None = None
    response_format: Format | None = None

    @model_validator(mode="after")
    def _together(self) -> Completion:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of must be n or more")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            # An answer's tokens leave before another has turned out better.
            raise ValueError("best_of beyond n can't be streamed: the best is known at the end")
        return self


class Part(Lenient):
    """Texts alone: pictures and sounds are refused by their type's name."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str = ""
    refusal: str = ""


class Called(Lenient):
    name: str = Field(max_length=256)
    arguments: str | dict[str, Any] = "{}"


class Call(Lenient):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called

    def plain(self) -> dict[str, Any]:
        """As chat templates take it, with the arguments as an object where they are one."""
        arguments: Any = self.function.arguments
        if isinstance(arguments, str):
            # Templates (Llama's, Qwen's) write the object as JSON themselves; a string would be quoted twice.
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", "function": function} | ({"id": self.id} if self.id else {})


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=256)] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        # As OpenAI's own clients send back what they got.
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content may be null beside tool_calls alone")
        return self

    def plain(self) -> dict[str, Any]:
        # OpenAI's newer words for two roles; templates know the older ones
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(p.text or p.refusal for p in parts)
        further: dict[str, Any] = (
            {"tool_calls": [c.plain() for c in self.tool_calls]} if self.tool_calls else {}
        )
        further |= {
            key: value for key in ("tool_call_id", "name") if (value := getattr(self, key)) is not None
        }
        return {"role": role, "content": text} | further


class Function(Lenient):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Lenient):
    """A function on offer; the responses' endpoint has its fields beside the type."""

    type: Literal["function"]
    function: Function | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> Tool:
        # A call goes by it.
        if self.function is None and self.name is None:
            raise ValueError("a tool needs a function with a name")
        return self

    def plain(self) -> dict[str, Any]:
        inner = self.function.model_dump(exclude_none=True) if self.function else self.model_dump(
            exclude={"type", "function"}, exclude_none=True
        )  # fmt: skip
        return {"type": "function", "function": inner}


class ChosenFunction(Lenient):
    name: str = Field(max_length=256)


class ChosenTool(Lenient):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class Chat(ChatOptions):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_tokens: Most | None = None
    max_completion_tokens: Most | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _together(self) -> Chat:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.must_call and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("an answer that must be a call has no response_format beside it")
        return self

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call and nothing else."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ChosenTool)

    @property
    def called(self) -> str | None:
        """Name of the tool that must be called, where one is named."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, ChosenTool) else None


class Turn(Lenient):
    """One entry of a response's input."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=256)]


class TextOptions(Lenient):
    format: Format | None = None


class Response(Lenient):
    """OpenAI's responses in their simple form: nothing is kept between requests, no hosted tools."""

    model: str = Field(max_length=512)
    input: str | Annotated[list[Turn], Field(min_length=1, max_length=1024)]
    instructions: str | None = None
    max_output_tokens: Most | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    stream: bool | None = False
    text: TextOptions | None = None
    # Hosted tools and kept conversations would be promised by silence; both are refused.
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None


class Embeddings(Lenient):
    model: str = Field(max_length=512)
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class Document(Lenient):
    text: str


class Rerank(Lenient):
    model: str = Field(max_length=512)
    query: str
    documents: Annotated[list[str | Document], Field(min_length=1, max_length=256)]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class LoadAdapter(Strict):
    """vLLM's names for a new adapter."""

    lora_name: str = Field(max_length=64)
    lora_path: str = Field(max_length=512)
    load_inplace: bool | None = None


class UnloadAdapter(Strict):
    lora_name: str = Field(max_length=64)
    lora_int_id: int | None = None
