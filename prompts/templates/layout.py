"""How a question is laid out around a row: what is said first, how examples are parted. Knows templates
only."""

from __future__ import annotations

from dataclasses import dataclass

from prompts.templates.template import Template

ON_LONG = ("cut", "drop", "stop")


@dataclass(frozen=True)
class Layout:
    """How a row's question is laid out.

    Attributes:
        limit: most tokens (default: what the model reads).
        chat: through the model's own chat template.
        on_long: what becomes of a row that is too long: cut, drop (not asked), stop.
        description: said once, before the examples; the system turn of a chat.
        separator: between examples; description_separator stands after the description.
        example: how examples are written, where not as the row.
        prefill: how the answer begins, in the examples too.
    """

    limit: int | None = None
    chat: bool = False
    on_long: str = "cut"
    description: Template | None = None
    description_separator: str = "\n\n"
    separator: str = "\n\n"
    example: Template | None = None
    prefill: str = ""

    def begun(self, answer: str) -> str:
        """An example's answer behind the prefill: what the model sees done, it is asked to go on with."""
        if not self.prefill or not answer:
            return self.prefill or answer
        parted = self.prefill[-1].isspace() or answer[0].isspace()
        return self.prefill + ("" if parted else " ") + answer
