"""What requests may hold. Knows shapes and limits of single fields; knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, model_validator

Texts = Annotated[list[str], Field(min_length=1, max_length=256)]
Files = Annotated[list[str], Field(min_length=1, max_length=64)]
Numbers = Annotated[list[FiniteFloat], Field(min_length=1)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=8)]


class Strict(BaseModel):
    # A misspelt field would otherwise be a default without a word.
    model_config = ConfigDict(extra="forbid")


class Ask(Strict):
    """Texts, and one adapter for all or one each (null: the base)."""

    texts: Texts
    adapter: str | None = None
    adapters: list[str | Annotated[list[str], Field(max_length=8)] | None] | None = Field(
        default=None, max_length=256
    )

    truncate: StrictBool = Field(default=False, description="Cut each text that is too long at its own limit")

    @model_validator(mode="after")
    def _one_way(self) -> Ask:
        if self.adapter is not None and self.adapters is not None:
            raise ValueError("wanted 'adapter' for all texts or 'adapters' with one each, not both")
        return self

    def names(self) -> list[Any]:
        """The adapter of each input."""
        return self.each_of(self.texts)

    def each_of(self, inputs: Sequence[Any]) -> list[Any]:
        """The adapter of each of these."""
        # A list in the list is a stack of adapters, which the pool knows as a tuple.
        each = self.adapters if self.adapters is not None else [self.adapter] * len(inputs)
        return [tuple(name) if isinstance(name, list) else name for name in each]


class Classify(Ask):
    texts: Texts | None = None  # type: ignore[assignment]
    pairs: Annotated[list[str], Field(max_length=256)] | None = Field(
        default=None, description="Second texts, one each"
    )
    images: Files | None = Field(default=None, description="Pictures in base64")
    sounds: Files | None = Field(default=None, description="WAV files in base64")

    series: Annotated[list[Numbers | list[Numbers]], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Series as numbers, or as a list for each channel"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Classify:
        given = [one for one in ("texts", "images", "sounds", "series") if vars(self)[one] is not None]
        if len(given) != 1:
            raise ValueError("wanted one of 'texts', 'images', 'sounds' and 'series'")
        if given != ["texts"] and (self.pairs is not None or self.truncate):
            raise ValueError("images, sounds and series take adapters, and nothing beside")
        return self

    def fields(self) -> tuple[str, list[Any]] | None:
        """What reads the inputs, and these; None for texts."""
        kinds = {"image": self.images, "audio": self.sounds, "series": self.series}
        return next(((reads, given) for reads, given in kinds.items() if given is not None), None)

    def names(self) -> list[Any]:
        fields = self.fields()
        return self.each_of(fields[1]) if fields else super().names()


class AskForecast(Strict):
    """What was, by channel, oldest first; and when, for models that read times."""

    past: Annotated[dict[str, Numbers], Field(min_length=1)]
    times: list[str] | None = None
    adapter: str = Field(description="A run of --runs that forecasts, or an adapter on a base of series")


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
