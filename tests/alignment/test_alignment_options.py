"""Every option of every verb of alignment is read by some code: the project's, TRL's trainer of that
algorithm, or transformers'.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path

import accelerate
import pytest
import transformers
import trl

from finetune.alignment.grpo_options import PRESETS
from finetune.cli.declarations import option_classes

ROOT = Path(__file__).parents[2]
THEIRS = [Path(module.__file__).parent for module in (transformers, accelerate)]
TRL = Path(trl.__file__).parent
TRAINERS = {
    "DPOTrainingArguments": "trainer/dpo", "KTOTrainingArguments": "trainer/kto",
    "RewardTrainingArguments": "trainer/reward",
    "GRPOArguments": "trainer/grpo", "RLOOArguments": "trainer/rloo",
    "DistillArguments": "trainer/distillation",
    "ORPOTrainingArguments": "experimental/orpo/orpo", "CPOTrainingArguments": "experimental/cpo/cpo",
    "OnlineDPOArguments": "experimental/online_dpo/online_dpo",
}  # fmt: skip
PLAIN = ("AttributeArguments", "ProcessArguments")  # transformers' trainer, TRL having none
VERBS = ("ppo", "grpo", "dpo", "reward", "prefer", "frontier", "align")


@cache
def read_in(path: Path) -> frozenset[str]:
    """Attributes that a file reads, and words that it looks attributes up by."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "vars")
        ):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return frozenset(found)


def read_anywhere(paths: list[Path]) -> set[str]:
    return set().union(*(read_in(path) for path in paths))


def mains() -> list[tuple[str, str, list[str]]]:
    """(verb, function, names of its option classes) of every function with options of its own."""
    found = []
    for verb in VERBS:
        tree = ast.parse((ROOT / "scripts" / f"{verb}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found.append((verb, node.name, [ast.unparse(a.annotation) for a in node.args.args]))
    return found


@pytest.mark.parametrize(
    ("verb", "name", "classes"), mains(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_option_is_read(verb, name, classes):
    ours = read_anywhere(sorted((ROOT / "finetune").rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py")))
    trainers = [*THEIRS[0].glob("trainer*.py"), THEIRS[0] / "training_args.py",
    *(THEIRS[0] / "integrations").glob("*.py"),
                *THEIRS[1].glob("*.py"), TRL / "trainer/base_trainer.py", TRL / "trainer/base_config.py",
                TRL / "trainer/callbacks.py"]  # fmt: skip
    for module, kind in option_classes(ROOT / "scripts" / f"{verb}.py", classes):
        known = set(ours)
        if kind in TRAINERS:
            known |= read_anywhere(
                [*trainers, TRL / f"{TRAINERS[kind]}_trainer.py", TRL / f"{TRAINERS[kind]}_config.py"]
            )
        if kind in PLAIN:
            known |= read_anywhere(trainers)
        options = vars(importlib.import_module(module))[kind]
        listed = [entry.name for entry in options.__dataclass_fields__.values() if entry.init]
        idle = [option for option in listed if option not in known and not option.startswith("_")]
        assert not idle, f"{verb} {name}: {kind} lists {idle}, which nothing reads"


def test_presets_name_options():
    options = inspect.signature(trl.GRPOConfig).parameters
    assert all(set(preset) <= set(options) for preset in PRESETS.values())
