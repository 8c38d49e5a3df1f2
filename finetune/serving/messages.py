"""What requests may hold. Knows shapes and limits of single fields; knows no models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

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
    adapters: list[str | list[str] | None] | None = Field(default=None, max_length=256)

    def names(self) -> list[Any]:
        each = self.adapters if self.adapters is not None else [self.adapter] * len(self.texts)
        return [tuple(name) if isinstance(name, list) else name for name in each]


class Classify(Ask):
    pairs: Annotated[list[str], Field(max_length=256)] | None = Field(default=None, description="Second texts, one each")


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
    folder: str = Field(max_length=512, description="Folder of the adapter, seen from the server's --adapters_dir")
    replace: StrictBool = False


class Attribute(Strict):
    text: str
    adapter: str
    label: str | None = None


class Options(BaseModel):
    """What completions and chats share, under OpenAI's names; what has no meaning here is refused by name, not left aside."""

    model_config = ConfigDict(extra="ignore")
    model: str
    max_tokens: int | None = Field(default=None, ge=1, le=100_000)
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | Stops | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    n: int | None = Field(default=1, ge=1, le=1)
    logprobs: Annotated[bool, Field(le=False)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ())


class Completion(Options):
    prompt: str | Texts
    echo: Annotated[bool, Field(le=False)] | None = None


class Message(BaseModel):
    role: str = Field(max_length=32)
    content: str | list[dict[str, Any]] | None = ""

    def plain(self) -> dict[str, str]:
        parts = self.content if isinstance(self.content, list) else [{"type": "text", "text": self.content or ""}]
        return {"role": self.role, "content": "".join(str(p.get("text", "")) for p in parts if p.get("type") == "text")}


class Chat(Options):
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=100_000)
