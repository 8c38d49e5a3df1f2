"""promptsource's own files beside its own rule: every template of eight of them, on real rows."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
TEMPLATES = os.environ.get("PROMPTSOURCE_TEMPLATES", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(TEMPLATES, "imdb").is_dir(),
        reason="PROMPTSOURCE_TEMPLATES names no folder of promptsource's templates",
    ),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}"),
]


def _benchmark() -> Any:
    path = ROOT / "scripts" / "benchmarks" / "promptsource.py"
    spec = importlib.util.spec_from_file_location("promptsource_benchmark", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_template_renders_as_its_own_rule_renders_it_or_says_why_not() -> None:
    benchmark = _benchmark()
    lines = [
        line
        for file, data in benchmark.FILES.items()
        for line in benchmark.compared(Path(TEMPLATES), file, DATA / data, 60)
    ]
    assert len(lines) == 53
    unlike = [line for line in lines if line["rows"] != line["alike"] or not (line["rows"] or line["note"])]
    assert not unlike
