"""Cells that no single type holds, as JSON holds them: messages with calls of tools, tools with their
schemas. Knows Arrow alone.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Json, List, concatenate_datasets


def with_json(rows: Dataset | None, name: str, values: list[Any]) -> Dataset:
    """The rows with a column of records, or of lists of them, that keep their own keys and types each."""
    lists = isinstance(next((value for value in values if value is not None), None), list)
    made = Dataset.from_dict({name: values}, features=Features({name: List(Json()) if lists else Json()}))
    return made if rows is None or not rows.column_names else concatenate_datasets([rows, made], axis=1)
