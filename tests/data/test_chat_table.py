"""The documentation's table of templates and chats is what its command gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from chat_rows import TEMPLATES

ROOT = Path(__file__).parents[2]


def test_the_table_of_templates_is_what_the_command_gives():
    file = ROOT / "scripts" / "benchmarks" / "chat_templates.py"
    spec = importlib.util.spec_from_file_location("chat_templates", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.table()
    assert table in (ROOT / "docs" / "chat_templates.md").read_text(encoding="utf-8")
    # every template says at least a question and its answer
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert len(rows) == len(TEMPLATES) and all(one.strip() == "1" for _, one in rows)
