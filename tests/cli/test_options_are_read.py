"""An option is read by code or it isn't listed: every option of every verb is followed to the code
that reads it.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

from finetune.cli.declarations import (
    OURS,
    classes_of,
    imports_of,
    lineage,
    options_of,
    parsed,
    scripts_of,
    source_of,
)
from finetune.cli.places import verbs

ROOT = Path(__file__).parents[2]
VERBS = verbs()


@cache
def modules_of(path: Path, module: str) -> frozenset[tuple[Path, str]]:
    """Modules of this project that one imports, at its top or inside its functions."""
    tree, found = parsed(path), set()
    names = {
        f"{origin}.{name}" for origin, name in imports_of(tree, module, path.name == "__init__.py").values()
    }
    names |= {origin for origin, _ in imports_of(tree, module, path.name == "__init__.py").values()}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for name in names:
        if name.split(".")[0] in OURS:
            file = source_of(name)
            if file.is_file():
                found.add((file, name))
    return frozenset(found)


@cache
def reachable(script: Path) -> frozenset[Path]:
    """The script and all modules of this project that it can come to run."""
    found, waiting = {script}, [(script, f"scripts.{script.stem}")]
    while waiting:
        for file, module in modules_of(*waiting.pop()):
            if file not in found:
                found.add(file)
                waiting.append((file, module))
    return frozenset(found)


@cache
def reads_in(path: Path) -> frozenset[str]:
    """Names that a file reads as attributes, or asks for by name (`vars(options)["stride"]`, tables of
    names).

    What a class checks of its own fields doesn't count: a value that is only validated does nothing.
    """
    found = set()

    def visit(node: ast.AST, inside: frozenset[str]) -> None:
        if isinstance(node, ast.ClassDef):
            inside = inside | {
                f.target.id
                for f in node.body
                if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
            }
        own = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and node.attr in inside
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not own:
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(parsed(path), frozenset())
    return frozenset(found)


def methods_reading_themselves(module: str, name: str) -> set[str]:
    """Options that a class's own methods turn into something, `__post_init__` with its checks aside."""
    found = set()
    for (origin, _), node in lineage(module, name).items():
        if origin.split(".")[0] in OURS:
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name != "__post_init__":
                    found |= {
                        n.attr
                        for n in ast.walk(function)
                        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"
                    }
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_own_options_are_read_by_code_that_the_verb_runs(verb):
    reached = {path for script in scripts_of(VERBS[verb]) for path in reachable(script)}
    read = frozenset().union(*map(reads_in, reached))
    for module, name in classes_of(VERBS[verb]):
        foreign = {
            o.name
            for (m, n) in lineage(module, name)
            if m.split(".")[0] not in OURS
            for o in options_of(m, n)
        }
        by_itself = methods_reading_themselves(module, name)
        for option in options_of(module, name):
            if option.package in OURS and option.name not in foreign | by_itself:
                assert option.name in read, (
                    f"--{option.name} of {name}: nothing that finetune {verb} runs reads it"
                )


@pytest.mark.parametrize("verb", VERBS)
def test_others_options_are_read_by_the_packages_that_declare_them(verb):
    """transformers' and trl's own: read by their trainers, callbacks and integrations, or here."""
    reached = {path for script in scripts_of(VERBS[verb]) for path in reachable(script)}
    read = frozenset().union(*map(reads_in, reached))
    for module, name in classes_of(VERBS[verb]):
        kind = vars(importlib.import_module(module))[name]
        packages = {base.__module__.split(".")[0] for base in kind.__mro__} - {*OURS, "builtins"}
        theirs = (
            frozenset().union(*(reads_of_package(package) for package in packages))
            if packages
            else frozenset()
        )
        for option in options_of(module, name):
            if option.package not in OURS:
                assert option.name in read | theirs, (
                    f"--{option.name} of {name}: neither {packages} nor this project reads it"
                )


@cache
def reads_of_package(package: str) -> frozenset[str]:
    """Attributes that a package's training code reads of its arguments."""
    top = source_of(package).parent
    folders = {
        "transformers": ["trainer*.py", "integrations/integration_utils.py", "training_args*.py"],
        "trl": ["trainer/*.py", "experimental/*/*.py"],
    }
    found: set[str] = set()
    for pattern in folders.get(package, []):
        for path in top.glob(pattern):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                elif isinstance(node, ast.For):  # over a table of names
                    found |= {n.value for n in ast.walk(node.iter) if isinstance(n, ast.Constant)}
    return frozenset(found)
