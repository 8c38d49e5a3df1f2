"""Jinja from files that nobody vouches for, rendered within bounds of time, length and memory."""

from finetune.templating.chat import render_chat
from finetune.templating.sandbox import (
    FAULTS,
    LimitError,
    Limits,
    compile_template,
    render,
    strict_environment,
)

__all__ = [
    "FAULTS",
    "LimitError",
    "Limits",
    "compile_template",
    "render",
    "render_chat",
    "strict_environment",
]
