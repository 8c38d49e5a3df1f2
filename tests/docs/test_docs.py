"""README and docs: every command names a verb, a recipe and options that exist; every link and file
is there.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from finetune.cli.command import OTHERS as TABLES
from finetune.cli.declarations import classes_of, options_of, required_of
from finetune.cli.places import find_recipe, launchers, verbs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "reference" not in page.parts]
GENERATED = ("verbs.md", "tables.md", "recipes.md")  # made with the site, see docs/reference.py
OWN = {"help", "config", "version"}


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each `finetune ...` and `python scripts/...` command of a shell block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["finetune"] or (
                    words[:2] and words[0] == "python" and "scripts/" in words[1]
                ):
                    found.append((page.name, words))
    return found


def options_for(verb: str, words: list[str]) -> set[str]:
    script = verbs()[verb]
    mains = re.findall(r"^def (\w+)\(", script.read_text(), flags=re.MULTILINE)
    taken: set[str] = set()
    for main in mains:
        for module, name in (
            classes_of(script, main) if main == "main" or "ALGORITHMS" in script.read_text() else []
        ):
            taken |= {option.name for option in options_of(module, name)}
    return taken | OWN | {"algorithm"}


@pytest.mark.parametrize(
    ("page", "words"),
    commands(),
    ids=lambda value: " ".join(value)[:70] if isinstance(value, list) else value,
)
def test_commands_name_what_there_is(page, words):
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), words[1]
        if Path(words[1]).parent.name != "scripts":
            taken = re.findall(r'add_argument\("([\w-]+)"', (ROOT / words[1]).read_text())
            # benchmarks read their options as verbs do
            if taken and len(words) > 2:
                assert {word for word in words[2:] if word.startswith("--")} <= set(taken), page
                assert words[2].startswith("--") or not all(name.startswith("--") for name in taken), page
            return
        words = ["finetune", Path(words[1]).stem, *words[2:]]
    rest = words[1:]
    if rest[:1] == ["launch"]:
        place = next(i for i, word in enumerate(rest) if word in verbs())
        for i, word in enumerate(rest[:place]):
            if word == "--config_file":
                assert rest[i + 1] in launchers()
        rest = rest[place:]
    if not rest or rest[0] in TABLES or rest[0].startswith("--"):
        return
    if rest[0] == "VERB":
        return
    verb = rest[0]
    assert verb in verbs(), verb
    if "--help" in rest:
        return
    known = options_for(verb, rest)
    for i, word in enumerate(rest):
        if word.startswith("--"):
            assert word[2:].partition("=")[0] in known, f"{page}: {verb} has no {word}"
        if word == "--config":
            find_recipe(rest[i + 1])
    given = {word.partition("=")[0].lstrip("-") for word in rest}
    if not given & {"config", "resume_from", "check"} and "algorithm" not in given:
        assert given >= set(required_of(verbs()[verb])), f"{page}: {verb} can't start"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" in target or target.endswith(GENERATED):
            continue
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    for name in re.findall(
        r"(?:scripts|finetune|prompts|tests|docs)/[\w/]+\.(?:py|yaml|md)\b", page.read_text()
    ):
        assert "VERB" in name or "NAME" in name or (ROOT / name).is_file(), name


def test_readme_fits_on_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
