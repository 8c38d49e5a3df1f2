"""What requests may hold. Knows shapes and limits of single fields; knows no models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

Texts = Annotated[list[str], Field(min_length=1, max_length=256)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=8)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ask(Strict):
    """Texts, and one adapter for all or one each (null: the base)."""

    texts: Texts
    adapter: str | None = None
    adapters: list[str | Annotated[list[str], Field(max_length=8)] | None] | None = Field(
        default=None, max_length=256
    )

    @model_validator(mode="after")
    def _one_way(self) -> Ask:
        if self.adapter is not None and self.adapters is not None:
            raise ValueError("wanted 'adapter' for all texts or 'adapters' with one each, not both")
        return self

    def names(self) -> list[Any]:
        each = self.adapters if self.adapters is not None else [self.adapter] * len(self.texts)
        return [tuple(name) if isinstance(name, list) else name for name in each]


class Classify(Ask):
    pairs: Annotated[list[str], Field(max_length=256)] | None = Field(
        default=None, description="Second texts, one each"
    )


class Generate(Ask):
    max_new_tokens: int = Field(default=64, ge=1, le=100_000)
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    stop: Stops = []
    stream: StrictBool = False


class AddAdapter(Strict):
    name: str = Field(max_length=64)
    folder: str = Field(
        max_length=512, description="Folder of the adapter, seen from the server's --adapters_dir"
    )
    replace: StrictBool = False


class Attribute(Strict):
    text: str
    adapter: str
    label: str | None = None


class Streaming(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # OpenAI's padding against eavesdroppers; nothing is padded here


class Options(Strict):
    """What completions and chats share, under OpenAI's names. What changes no answer is taken and left aside
    (`user`, `store`, `metadata`, …); options that would change answers, and aren't here, are refused by name
    unless they say the default.
    """

    model: str = Field(max_length=512)
    max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | Stops | None = None
    stream: bool | None = False
    stream_options: Streaming | None = None
    n: int | None = Field(default=1, ge=1, le=1)
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())


class Completion(Options):
    prompt: str | Texts
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class Part(Strict):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=256)]

    def plain(self) -> dict[str, str]:
        parts = self.content if isinstance(self.content, list) else [Part(type="text", text=self.content)]
        role = (
            "system" if self.role == "developer" else self.role
        )  # OpenAI's newer word for it; templates know the older one
        return {"role": role, "content": "".join(part.text for part in parts)}


class PlainText(Strict):
    type: Literal["text"]


class Chat(Options):
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
    response_format: PlainText | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Literal[0] | None = None
