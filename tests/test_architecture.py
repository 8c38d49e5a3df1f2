"""The house keeps its shape: one direction of imports, sizes, and README, recipes and tables that agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from finetune.methods import METHODS
from finetune.objectives import OBJECTIVES
from finetune.tasks import TASKS
from finetune.usage import option_classes, options_of

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "finetune").rglob("*.py"), *(ROOT / "prompts").rglob("*.py")])
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
LEAVES = ("finetune.errors", "finetune.loss", "finetune.metrics", "finetune.text_metrics", "finetune.span_metrics")
ORDER = ("finetune.data", "finetune.models", "finetune.tuners", "finetune.methods", "finetune.answers", "finetune.tasks",
         "finetune.objectives", "finetune.training", "finetune.alignment", "finetune.adapters", "finetune.serving")  # fmt: skip
# What alignment saves is an artefact, and what it is rewarded by may be one.
ALLOWED = {("finetune.alignment", "finetune.adapters")}


def room(module: str) -> str | None:
    return next((name for name in ORDER if module == name or module.startswith(name + ".")), None)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    own, modules = name_of(path), imported(path)
    assert not [m for m in modules if m.split(".")[0] == "scripts"]
    if own.startswith("finetune"):
        assert not [m for m in modules if m.split(".")[0] == "prompts"]
    if own in LEAVES:
        assert {m for m in modules if m.startswith("finetune")} <= {"finetune.errors", "finetune.errors.InputError"}
    here = room(own)
    if here:
        later = {room(m) for m in modules if room(m) and ORDER.index(room(m)) > ORDER.index(here)}
        assert {(here, there) for there in later} <= ALLOWED


def test_reports_and_metrics_know_no_models():
    for path in [*(ROOT / "finetune/reports").glob("*.py"), ROOT / "finetune/metrics.py"]:
        assert not {"torch", "transformers", "peft"} & {m.split(".")[0] for m in imported(path)}, path


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_of)
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_option_classes_are_small_and_say_what_they_do(path):
    main = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    names = [ast.unparse(a.annotation) for a in main.args.args]
    for module, name in option_classes(path, names):
        options = options_of(module, name)
        assert all(option.help for option in options), [o.name for o in options if not o.help]


def named_in_table(title: str) -> set[str]:
    """First cells of the rows of the README's table under a heading."""
    section = re.split(r"^#+ ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(title))
    return set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))


def test_readme_prints_the_tables():
    assert named_in_table("TASKS") == set(TASKS)
    assert named_in_table("METHODS") == set(METHODS)
    assert named_in_table("OBJECTIVES") == set(OBJECTIVES)


def test_readme_names_files_that_are_there():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:scripts|finetune|prompts|tests)/[\w/]+\.(?:py|yaml)", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_rows_of_the_tables(path):
    recipe = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    assert recipe.get("task", "classification") in TASKS
    assert recipe.get("method", "lora") in METHODS
    assert recipe.get("objective", "mlm") in OBJECTIVES
