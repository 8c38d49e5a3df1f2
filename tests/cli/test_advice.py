"""What an error advises can be typed: it names options of the verb in which it came up, or says whose they
are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from finetune.cli.command import run
from finetune.cli.declarations import classes_of, options_of, parsed
from finetune.cli.mistakes import QUOTED, in_own_words
from finetune.cli.places import verbs

ROOT = Path(__file__).parents[2]
# Options of launchers and of `finetune launch`, which no verb has; of servers and of pip.
OF_OTHERS = {"config", "config_file", "help", "nproc_per_node", "num_processes", "processes", "cpu"}
KNOWN = {
    verb: {o.name for kind in classes_of(script) for o in options_of(*kind)}
    for verb, script in verbs().items()
}


@cache
def owners(name: str) -> list[str]:
    return [verb for verb, options in KNOWN.items() if name in options]


@cache
def advised() -> dict[str, str]:
    """Each option that any InputError names → where."""
    found = {}
    for room in ("finetune", "prompts", "scripts"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(parsed(file)):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InputError"):
                    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                    said = re.sub(QUOTED, "", " ".join(text for text in texts if isinstance(text, str)))
                    for name in re.findall(r"--([a-z]\w+)", said):
                        found[name] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_option_that_an_error_advises_is_there():
    there = set().union(*KNOWN.values()) | OF_OTHERS
    names = advised()
    assert len(names) > 150
    assert {name: where for name, where in names.items() if name not in there} == {}


@pytest.mark.parametrize("verb", KNOWN)
def test_no_verb_advises_what_it_lacks_without_a_word(verb):
    for name in advised().keys() - OF_OTHERS - KNOWN[verb]:
        said = in_own_words(f"It is wrong. Set --{name}", KNOWN[verb], verb, owners)
        (first, *further) = re.findall(r"--([a-z]\w+)", said)
        assert first in KNOWN[verb] or f"--{name} is no option of {verb}, but of {owners(name)[0]}" in said
        assert set(further) <= {name}


def test_advice_names_the_options_of_the_verb(tmp_path, capsys):
    (tmp_path / "broken.parquet").write_bytes(b"half a file")
    with pytest.raises(SystemExit):
        run(["check", str(tmp_path / "broken.parquet")])
    said = capsys.readouterr().err
    assert "--files" in said and "--data_files" not in said


def test_what_is_quoted_or_fits_stays():
    known = {"text_column", "files"}
    for said in (
        "No column 'x'. Set --text_column",
        "Merge it first: `finetune adapter --action merge`",
        "x is no folder; wanted the --output_dir of a run",
        "Start it by torchrun --nproc_per_node 2",
    ):
        assert in_own_words(said, known, "check", owners) == said
    said = in_own_words("No such model. Set --max_length", known, "assess", lambda name: list("abcd"))
    assert said.endswith("(--max_length is no option of assess, but of a, b, c and others)")
