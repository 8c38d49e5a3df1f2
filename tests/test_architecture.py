"""The house keeps its shape: one direction of imports, sizes, and README, recipes and tables that agree."""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from finetune.cli.declarations import OURS, classes_of, lineage, options_of
from finetune.methods import METHODS
from finetune.objectives.table import OBJECTIVES
from finetune.tasks.table import TASKS
from finetune.tasks.task import Task

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "finetune").rglob("*.py"), *(ROOT / "prompts").rglob("*.py")])
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
OTHERS = sorted(
    {*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")}
    - {*SCRIPTS}
)
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
# From the ground up: a room imports only from rooms of earlier lines, and nothing from its neighbours on its
# own line.
ORDER = (
    ("device", "errors", "loss", "templating", "tuners"),
    ("data", "metrics", "models", "cli"),
    ("reports",),  # pages are made of figures
    ("methods",),
    ("tasks", "objectives", "artefacts"),
    ("training",),
    ("privacy",),
    ("adapters", "prompts"),
    ("pool", "alignment", "audit", "formats", "interpret", "provenance"),
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


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS, *OTHERS], ids=name_of)
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_option_classes_are_small_and_say_what_they_do(path):
    """At most 15 options of its own a class; what a subclass settles is none."""
    for module, name in classes_of(path):
        options = options_of(module, name)
        assert all(option.help for option in options), [o.name for o in options if not o.help]
        for (origin, base), node in lineage(module, name).items():
            own = {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
            assert origin.split(".")[0] not in OURS or len(own & {o.name for o in options}) <= 15, base


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_main_reads_in_one_go(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} in {path.name}"


def defined(path: Path) -> set[str]:
    """Public names at the top level of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in found if not name.startswith("_")} - {"logger"}


def used(path: Path, modules: set[str]) -> set[tuple[str, str]]:
    """(module, name) of what a file takes from other modules of the project."""
    tree, aliases, found = ast.parse(path.read_text()), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                elif node.module in modules:
                    found.add((node.module, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add((aliases[node.value.id], node.attr))
    return found


def test_a_public_name_means_one_thing():
    """What two modules offer under one name, and others take from both. The files of finetune/tasks have the
    functions of a row under the row's own names: there a name is a step, and means one thing.
    """
    definitions = {name_of(path): defined(path) for path in SOURCES}
    taken = {pair for path in [*SOURCES, *SCRIPTS] for pair in used(path, set(definitions))}
    steps = {field.name for field in fields(Task)}
    meanings: dict[str, set[str]] = {}
    for module, names in definitions.items():
        for name in names:
            step = module.startswith("finetune.tasks.") and name.lower() in steps
            if (module, name) in taken:
                meanings.setdefault(name, set()).add("finetune.tasks" if step else module)
    twice = {name: sorted(modules) for name, modules in meanings.items() if len(modules) > 1}
    assert twice == {}


# Signatures that torch, transformers and PEFT say.
FOREIGN = {"forward", "attend", "_create_and_replace"}


def takes_options(node: ast.FunctionDef) -> bool:
    """Whether a function is a `main`, which takes one instance of each option class."""
    return all(one.annotation and ast.unparse(one.annotation).endswith("Arguments") for one in node.args.args)


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_of)
def test_functions_are_short_and_take_few_positions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
        places = [name for name in names if name not in ("self", "cls", "ctx", "context")]
        main = path in SCRIPTS and takes_options(node)
        assert main or node.name in FOREIGN or len(places) <= 5, f"{node.name}: {', '.join(places)}"
        assert node.end_lineno - node.lineno < 80, (
            f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        )


def test_nine_functions_in_ten_are_below_45_lines():
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in [*SOURCES, *SCRIPTS]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 12 and lengths[len(lengths) * 9 // 10] < 45


def test_train_reads_as_a_recipe():
    tree = ast.parse((ROOT / "scripts" / "train.py").read_text())
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    steps = [node for node in run.body if not isinstance(node, (ast.ImportFrom, ast.Expr))]
    assert run.end_lineno - steps[0].lineno < 30


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_rows_of_the_tables(path):
    recipe = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ")
    assert recipe.get("task", "classification") in TASKS
    assert recipe.get("method", "lora") in METHODS
    assert recipe.get("objective", "mlm") in OBJECTIVES


def comments_and_code(path: Path) -> tuple[int, int]:
    """Lines with a comment, and lines of code: without blank ones, docstrings and comments of their own."""
    text = path.read_text(encoding="utf-8")
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, owners) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and _says(token.string)}
    lines = [line.strip() for line in text.splitlines()]
    code = [n for n, line in enumerate(lines, 1) if line and n not in documented and not line.startswith("#")]
    return len(said), len(code)


def _says(comment: str) -> bool:
    return not comment.startswith(("# fmt", "# type:", "# noqa", "# pragma"))


def test_comments_say_why_in_every_room():
    """Eight for each hundred lines of code, over a room: files that speak for themselves need fewer."""
    rooms: dict[str, list[int]] = {}
    for path in SOURCES:
        said, code = comments_and_code(path)
        room = "/".join(path.relative_to(ROOT).parts[:2]) if path.parent.name != "finetune" else "finetune"
        held = rooms.setdefault(room, [0, 0])
        held[0], held[1] = held[0] + said, held[1] + code
    sparse = {room: round(100 * said / code, 1) for room, (said, code) in rooms.items() if code > 99}
    assert {room: share for room, share in sparse.items() if share < 8} == {}
