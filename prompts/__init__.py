"""Prompting: asks a model that stays as it is, and measures the answers."""

from prompts.templates.prompt import Prompt

__all__ = ["Prompt"]
