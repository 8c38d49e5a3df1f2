"""The house keeps its shape: one direction of imports, sizes, and README, recipes and tables that agree."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections import Counter
from dataclasses import fields
from pathlib import Path

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
    ("device", "errors", "loss", "packaged", "templating", "tuners"),
    ("data", "metrics", "models", "cli"),
    ("reports",),  # pages are made of figures
    ("methods",),
    ("tasks", "objectives", "artefacts"),
    ("training",),
    ("privacy",),
    ("adapters",),
    ("prompts",),  # which ask adapters too
    ("pool", "alignment", "formats", "interpret", "provenance"),
    ("serving", "experiments", "audit"),
    ("scripts",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(module: str) -> str | None:
    """The room of a module of this project; None for other packages and for `finetune` itself."""
    top, *rest = module.split(".")
    if top in ("prompts", "scripts"):
        return top
    return rest[0] if top == "finetune" and rest else None


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file as Python reads it; each is parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def functions_of(path: Path) -> tuple[ast.FunctionDef, ...]:
    return tuple(node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef))


@functools.cache
def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# Each rule is one test over all files, which names every offender: a case for each file and rule was a
# quarter of the suite's cases.
def test_imports_go_one_way():
    upwards = []
    for path in SOURCES:
        own = room_of(name_of(path))
        for module in imported(path):
            room = room_of(module)
            if own is None or room is None or room == own or room not in LEVEL:
                continue
            if LEVEL[room] >= LEVEL[own]:
                upwards.append(f"{name_of(path)} imports {module}")
    assert upwards == []


def test_every_room_has_its_place():
    rooms = {room_of(name_of(path)) for path in SOURCES} - {None}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)


def test_reports_and_metrics_know_no_models():
    for path in [*(ROOT / "finetune/reports").glob("*.py"), *(ROOT / "finetune/metrics").glob("*.py")]:
        assert not {"torch", "transformers", "peft"} & {m.split(".")[0] for m in imported(path)}, path


def test_sizes():
    files = [*SOURCES, *SCRIPTS, *OTHERS]
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert not {path.stem for path in files} & {"utils", "helpers", "common", "misc", "base"}


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by name alone, and leaves out the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_option_classes_are_small_and_say_what_they_do():
    """At most 15 options of its own a class; what a subclass settles is none."""
    for module, name in sorted({found for path in SCRIPTS for found in classes_of(path)}):
        options = options_of(module, name)
        assert all(option.help for option in options), (name, [o.name for o in options if not o.help])
        for (origin, base), node in lineage(module, name).items():
            own = {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
            assert origin.split(".")[0] not in OURS or len(own & {o.name for o in options}) <= 15, base


def code_lines(path: Path, first: int, last: int) -> int:
    """Lines from `first` to `last` without those that are comments alone."""
    lines = path.read_text(encoding="utf-8").splitlines()[first - 1 : last]
    return sum(not line.lstrip().startswith("#") for line in lines)


def test_a_main_reads_in_one_go():
    mains = [(path, node) for path in SCRIPTS for node in functions_of(path)]
    long = [(p.name, n.name) for p, n in mains if code_lines(p, n.lineno, n.end_lineno) > 60]
    assert long == []


def defined(path: Path) -> set[str]:
    """Public names at the top level of a module."""
    found = set()
    for node in tree_of(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in found if not name.startswith("_")} - {"logger"}


def used(path: Path, modules: set[str]) -> set[tuple[str, str]]:
    """(module, name) of what a file takes from other modules of the project."""
    nodes, aliases, found = tuple(ast.walk(tree_of(path))), {}, set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                elif node.module in modules:
                    found.add((node.module, alias.name))
    for node in nodes:
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


def test_functions_are_short_and_take_few_positions():
    crowded, long = [], []
    for path in [*SOURCES, *SCRIPTS]:
        for node in functions_of(path):
            named = f"{name_of(path)}.{node.name}"
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
            places = [name for name in names if name not in ("self", "cls", "ctx", "context")]
            main = path in SCRIPTS and takes_options(node)
            if len(places) > 5 and not main and node.name not in FOREIGN:
                crowded.append(f"{named}({', '.join(places)})")
            if node.end_lineno - node.lineno >= 80:
                long.append(f"{named} has {node.end_lineno - node.lineno + 1} lines")
    assert crowded == [] and long == []


def test_nine_functions_in_ten_are_below_45_lines():
    lengths = sorted(
        node.end_lineno - node.lineno + 1 for path in [*SOURCES, *SCRIPTS] for node in functions_of(path)
    )
    assert lengths[len(lengths) // 2] <= 12 and lengths[len(lengths) * 9 // 10] < 45


def test_train_reads_as_a_recipe():
    script = ROOT / "scripts" / "train.py"
    run = next(node for node in functions_of(script) if node.name == "run")
    steps = [node for node in run.body if not isinstance(node, (ast.ImportFrom, ast.Expr))]
    assert code_lines(script, steps[0].lineno, run.end_lineno) <= 30


def test_recipes_name_rows_of_the_tables():
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
        assert text.startswith("# "), path.name
        assert recipe.get("task", "classification") in TASKS, path.name
        assert recipe.get("method", "lora") in METHODS, path.name
        assert recipe.get("objective", "mlm") in OBJECTIVES, path.name


def comments_and_code(path: Path) -> tuple[int, int]:
    """Lines with a comment, and lines of code: without blank ones, docstrings and comments of their own."""
    text = path.read_text(encoding="utf-8")
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented: set[int] = set()
    for node in ast.walk(tree_of(path)):
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
    for path in sorted({*SOURCES, *(ROOT / "scripts").rglob("*.py")}):
        said, code = comments_and_code(path)
        room = "/".join(path.parent.relative_to(ROOT).parts[:2])
        held = rooms.setdefault(room, [0, 0])
        held[0], held[1] = held[0] + said, held[1] + code
    sparse = {room: round(100 * said / code, 1) for room, (said, code) in rooms.items() if code > 99}
    assert {room: share for room, share in sparse.items() if share < 8} == {}
