"""FILE.py → Python functions that a model may call between its turns, as TRL takes them. Knows
modules; knows no model.
"""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune.errors import InputError


def load_module(file: str, option: str) -> ModuleType:
    """A Python file, run.

    Raises:
        InputError: there is none, or what is in it fails.
    """
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise InputError(f"No file {file}; set {option}")
    # Not put among the imported modules: a user's file may have a library's name.
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: the run would end as if it were done
        told = "".join(traceback.format_exception_only(error)).strip()
        raise InputError(f"{file} can't be run: {told}. Mend it, or set {option} to another") from error
    return module


def load_tools(file: str | None) -> dict[str, Any]:
    """What a file offers, as arguments of TRL's trainer: its class Environment (a new one for each
    conversation, whose public methods are the tools), else its own public functions; nothing without a file.

    Raises:
        InputError: no file, no function in it, or one without the docstring and types that its schema is made
            of.
    """
    if file is None:
        return {}
    module = load_module(file, "--tools FILE.py")
    if isinstance(vars(module).get("Environment"), type):
        return {"environment_factory": module.Environment}
    tools = [
        value
        for name, value in vars(module).items()
        # Its own: imported functions are helpers, and underscores are private.
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not tools:
        raise InputError(
            f"{file} has no function of its own and no class Environment; set --tools to a file with tools"
        )
    for tool in tools:
        # TRL makes a schema of types and docstring, and fails on the first call otherwise.
        untyped = [p.name for p in inspect.signature(tool).parameters.values() if p.annotation is p.empty]
        if untyped or not inspect.getdoc(tool):
            lacks = f"no type for {', '.join(untyped)}" if untyped else "no docstring"
            raise InputError(
                f"The tool {tool.__name__} in {file} has {lacks}; the model's schema is made of both. Mend "
                "--tools"
            )
    return {"tools": tools}
