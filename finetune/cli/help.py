"""Option classes → help text, read from source files. Imports none of them, so that `--help` answers at once.

Importing torch, transformers, peft and trl takes seconds; a help text needs only names, defaults and one line each, and all
of that is literal text in the files that define the option classes.
"""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Option:
    name: str
    default: str
    help: str


def source_of(module: str) -> Path:
    """The file of `module`, found without importing it or its parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named '{top}'")
    path = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin)
    return (
        path if path.suffix == ".py" else (path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    )


def imports_of(tree: ast.AST, module: str, is_package: bool = False) -> dict[str, str]:
    """Names that a module imports from others → the full name of the module they come from (also under TYPE_CHECKING)."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            found.update({alias.asname or alias.name: origin for alias in node.names})
    return found


def option_classes(script: Path, names: list[str]) -> list[tuple[str, str]]:
    """(module, class) of each annotation in a script's `main`."""
    origins = imports_of(ast.parse(script.read_text(encoding="utf-8")), "__main__")
    return [(origins[name], name) for name in names]


def options_of(module: str, name: str) -> list[Option]:
    """All options of a dataclass, those of its base classes included; the word of the class that Python asks first counts."""
    options: dict[str, Option] = {}
    for node in lineage(module, name).values():
        for field in node.body:
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not field.target.id.startswith("_")
            ):
                if _is_fixed(field):  # a subclass takes the option away
                    options.pop(field.target.id, None)
                    continue
                option = _read_field(field)
                if option.name in options and not option.help:
                    option = Option(option.name, option.default, options[option.name].help)
                options[option.name] = option
    return list(options.values())


def lineage(module: str, name: str) -> dict[tuple[str, str], ast.ClassDef]:
    """A class and all it inherits from, by (module, name), the other way round than Python asks them for an attribute."""
    path = source_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if node is None:  # the package only hands the name on
        return lineage(imports_of(tree, module, path.name == "__init__.py")[name], name)
    found: dict[tuple[str, str], ast.ClassDef] = {}
    for base in reversed(node.bases):
        place = _place_of(base, tree, module, path)
        for key, ancestor in (lineage(*place) if place else {}).items():
            found.setdefault(key, ancestor)
    return found | {(module, name): node}


def _is_fixed(field: ast.AnnAssign) -> bool:
    """Whether a field is `field(..., init=False)`, which no command line sets."""
    return isinstance(field.value, ast.Call) and any(
        keyword.arg == "init" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in field.value.keywords
    )


def _place_of(base: ast.expr, tree: ast.Module, module: str, path: Path) -> tuple[str, str] | None:
    """(module, class) of a base class as it is written."""
    if isinstance(base, ast.Attribute):  # class Ours(package.Theirs)
        return ast.unparse(base.value), base.attr
    if not isinstance(base, ast.Name):
        return None
    local = any(isinstance(n, ast.ClassDef) and n.name == base.id for n in tree.body)
    origin = module if local else imports_of(tree, module, path.name == "__init__.py").get(base.id)
    return (origin, _original_name(tree, base.id)) if origin else None


def _original_name(tree: ast.AST, name: str) -> str:
    """`TrainingArguments as TheirArguments` → `TrainingArguments`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname == name:
                    return alias.name
    return name


def _read_field(field: ast.AnnAssign) -> Option:
    default, text = ast.unparse(field.value) if field.value else "", ""
    if isinstance(field.value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in field.value.keywords}
        default = (
            ast.unparse(given["default"])
            if "default" in given
            else "[]"
            if "default_factory" in given
            else ""
        )
        if isinstance(given.get("metadata"), ast.Dict):
            text = _help_in(given["metadata"])
    return Option(field.target.id, default, " ".join(text.split()))  # type: ignore[union-attr]


def _help_in(metadata: ast.AST) -> str:
    for key, value in zip(metadata.keys, metadata.values, strict=True):  # type: ignore[attr-defined]
        if isinstance(key, ast.Constant) and key.value == "help":
            parts = [
                n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            return "".join(parts)
    return ""


def usage(script: Path, classes: list[tuple[str, str]]) -> str:
    """The whole help text of a script: its docstring, then the options class by class."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    lines = [
        docstring,
        "",
        "  --config FILE.yaml",
        "      A recipe: any of the options below as keys. The command line beats it; it beats the defaults.",
    ]
    for module, name in classes:
        lines += ["", f"{name} ({module})"]
        for option in options_of(module, name):
            head = f"  --{option.name}" + (
                f"  (default: {option.default})" if option.default not in ("", "None") else ""
            )
            lines += [
                head,
                *textwrap.wrap(option.help, 118, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
    return "\n".join(lines)
