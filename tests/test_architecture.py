"""The house keeps its shape: one direction of imports, sizes, and README, recipes and tables that agree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from finetune.cli.declarations import option_classes, options_of
from finetune.methods import METHODS
from finetune.objectives.table import OBJECTIVES
from finetune.tasks.table import TASKS

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "finetune").rglob("*.py"), *(ROOT / "prompts").rglob("*.py")])
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
# From the ground up: a room imports only from rooms of earlier lines, and nothing from its neighbours on its own line.
ORDER = (
    ("device", "errors", "loss", "templating", "tuners"),
    ("data", "metrics", "models", "cli"),
    ("reports",),  # pages are made of figures
    ("methods",),
    ("tasks", "objectives", "artefacts"),
    ("training",),
    ("adapters", "prompts"),
    ("pool", "alignment"),
    ("serving", "experiments"),
    ("scripts",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(module: str) -> str | None:
    """The room of a module of this project; None for other packages and for `finetune` itself."""
    top, *rest = module.split(".")
    if top in ("prompts", "scripts"):
        return top
    return rest[0] if top == "finetune" and rest else None


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
    own = room_of(name_of(path))
    for module in imported(path):
        room = room_of(module)
        if own is None or room is None or room == own or room not in LEVEL:
            continue
        assert LEVEL[room] < LEVEL[own], f"{own} imports {module}"


def test_every_room_has_its_place():
    rooms = {room_of(name_of(path)) for path in SOURCES} - {None}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)


def test_reports_and_metrics_know_no_models():
    for path in [*(ROOT / "finetune/reports").glob("*.py"), *(ROOT / "finetune/metrics").glob("*.py")]:
        assert not {"torch", "transformers", "peft"} & {m.split(".")[0] for m in imported(path)}, path


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_of)
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_option_classes_are_small_and_say_what_they_do(path):
    main = next(
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main"
    )
    names = [ast.unparse(a.annotation) for a in main.args.args]
    for module, name in option_classes(path, names):
        options = options_of(module, name)
        assert all(option.help for option in options), [o.name for o in options if not o.help]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_rows_of_the_tables(path):
    recipe = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    assert recipe.get("task", "classification") in TASKS
    assert recipe.get("method", "lora") in METHODS
    assert recipe.get("objective", "mlm") in OBJECTIVES
