"""mkdocs' hook: writes docs/reference/ from the tables and option classes before the site is built, so that
neither can lag behind.

python docs/reference.py does the same without mkdocs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.cli.declarations import OURS, classes_of, description, options_of, required_of, title_of
from finetune.cli.help import one_line
from finetune.cli.places import recipes, verbs
from finetune.methods import METHODS
from finetune.objectives.table import OBJECTIVES
from finetune.reports.tables import markdown
from finetune.tasks.table import TASKS

FOLDER = Path(__file__).parent / "reference"


def on_pre_build(config: Any) -> None:
    """mkdocs calls it by this name."""
    write()


def write() -> None:
    """The three pages of the reference."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in (("verbs", verbs_page()), ("tables", tables_page()), ("recipes", recipes_page())):
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def verbs_page() -> str:
    """Every verb with this project's own options; `finetune VERB --help all` has the libraries' too."""
    parts = [
        "# Verbs and their options",
        "`finetune VERB --help` prints the same, `--help all` also transformers' and TRL's.",
    ]
    for verb, script in verbs().items():
        required = required_of(script)
        parts += [f"## {verb}", one_line(script) + ".", "```text\n" + description(script) + "\n```"]
        for module, name in classes_of(script):
            rows = [
                {"option": f"`--{option.name}`",
                 "default": "required" if option.name in required
                 else option.default and f"`{option.default}`",
                 "what": option.help.replace("<", "&lt;").replace("{{", "{ {")}
                for option in options_of(module, name)
                if option.package in OURS  # the libraries' own keep the documentation that they have there
            ]  # fmt: skip
            parts += [f"**{title_of(module, name)}**", markdown(rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def tables_page() -> str:
    """TASKS, METHODS and OBJECTIVES as the code has them."""
    tasks = [
        {"task": f"`{name}`", "model": row.model.__name__, "figure": row.best} for name, row in TASKS.items()
    ]
    methods = [
        {"method": f"`{name}`", "learning rate": f"{row.learning_rate:g}", "follows": row.follows}
        for name, row in METHODS.items()
    ]
    objectives = [
        {"objective": f"`{name}`", "model": row.model.__name__, "figure": row.best, "follows": row.follows}
        for name, row in OBJECTIVES.items()
    ]
    parts = ["# Tables", "## TASKS", markdown(tasks), "## METHODS", markdown(methods), "## OBJECTIVES"]
    return "\n\n".join([*parts, markdown(objectives)]) + "\n"


def recipes_page() -> str:
    """Every recipe of the package, whole."""
    parts = [
        "# Recipes",
        "`finetune VERB --config NAME` takes them; any option beside it beats the recipe's.",
    ]
    for name, path in recipes().items():
        parts += [f"## {name}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write()
