"""Command line, recipe and help."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from finetune.cli.declarations import options_of
from finetune.cli.parser import launch, main_of, parse_into
from finetune.errors import InputError


@dataclass
class Options:
    learning_rate: float = field(default=1e-3, metadata={"help": "Rate."})
    max_length: int = 256
    names: list[str] | None = None
    shuffle: bool = True
    extra: dict | str | None = None


def parsed(*arguments: str) -> Options:
    return parse_into([Options], arguments)[0]


@pytest.fixture
def recipe(tmp_path):
    def write(**content) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def test_command_line_beats_recipe_beats_defaults(recipe):
    options = parsed("--config", recipe(learning_rate="2e-4", max_length=64), "--max_length", "32")
    assert (options.learning_rate, options.max_length, options.shuffle) == (2e-4, 32, True)
    assert parsed("--max_length", "32", f"--config={recipe(max_length=64)}").max_length == 32


def test_recipe_values_of_every_kind(recipe):
    options = parsed("--config", recipe(names=["a", "b"], shuffle=False, extra={"r": 4}))
    assert (options.names, options.shuffle, options.extra) == (["a", "b"], False, '{"r": 4}')


@pytest.mark.parametrize("argument", ["--learning_rat", "--learning-rates", "--learn"])
def test_unknown_and_abbreviated_options_stop(argument):
    with pytest.raises(InputError, match=r"Unknown option .*Did you mean --learning_rate\?"):
        parsed(argument, "1")


def test_unknown_recipe_keys_stop(recipe):
    with pytest.raises(
        InputError, match=r"recipe.yaml: Unknown option 'max_lenght'. Did you mean --max_length\?"
    ):
        parsed("--config", recipe(max_lenght=3))


def test_wrong_types_and_unreadable_recipes(recipe, tmp_path):
    with pytest.raises(InputError, match="--max_length.*invalid int value: 'many'"):
        parsed("--max_length", "many")
    with pytest.raises(InputError, match="invalid float value: 'fast'"):
        parsed("--config", recipe(learning_rate="fast"))
    with pytest.raises(InputError, match="Cannot read the recipe"):
        parsed("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n- b")
    with pytest.raises(InputError, match="holds a list"):
        parsed("--config", str(tmp_path / "list.yaml"))


def test_help_reads_inherited_options_and_our_own_defaults():
    options = {option.name: option for option in options_of("finetune.training.trainer", "TrainingArguments")}
    assert options["num_train_epochs"].default == "3.0"  # transformers' own
    assert "epochs" in options["num_train_epochs"].help
    assert options["eval_strategy"].default == "epoch"  # ours


LEAVING = """
import sys
from pathlib import Path
import torch
# As transformers does; imported after there is a group, its signatures would hold it for ever.
import torch.distributed.nn
from finetune.cli import parser

def main():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    trainer = {"model": torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))}
    trainer["callback"] = trainer

parser.parse = lambda *given: []
parser.launch(main)
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads' names come from Linux")
def test_no_thread_of_the_process_group_outlives_a_run():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ([], "main"),
        (["--algorithm", "other"], "other"),
        (["--algorithm=other"], "other"),
        (["--algorithm", "other", "--algorithm", "main"], "main"),
        (["--config", "RECIPE"], "other"),
        (["--config", "RECIPE", "--algorithm", "main"], "main"),
        (["--config", "nowhere.yaml"], "main"),
    ],
)
def test_a_script_of_several_mains_is_asked_which(tmp_path, told, wanted):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("algorithm: other\nunknown: 1\n")
    script = {"__name__": "script"}
    exec("def main(): pass\ndef other(): pass\nALGORITHMS = {'main': main, 'other': other}", script)
    words = [str(recipe) if word == "RECIPE" else word for word in told]
    assert main_of(script["main"], words) is script[wanted]
    with pytest.raises(
        InputError, match="Unknown algorithm 'othre'. Did you mean other\\? Wanted one of: main"
    ):
        main_of(script["main"], ["--algorithm", "othre"])
    del script["ALGORITHMS"]["main"]  # a table of further mains: `main` knows other names itself
    assert main_of(script["main"], ["--algorithm", "unknown"]) is script["main"]


def test_a_recipe_of_an_earlier_time_may_say_what_is_settled_now(tmp_path):
    @dataclass
    class Options:
        size: int = 1
        gone: bool = field(default=False, init=False)

    recipe = tmp_path / "arguments.yaml"
    recipe.write_text("size: 3\ngone: false\n")
    assert parse_into([Options], ["--config", str(recipe)])[0].size == 3
    recipe.write_text("size: 3\ngone: true\n")
    with pytest.raises(InputError, match="gone"):
        parse_into([Options], ["--config", str(recipe)])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device"), 2, "Make room, or set --output_dir"),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0"
            ),
            2,
            "Make room",
        ),
        (OSError(30, "Read-only file system", "runs/x"), 2, "Checkpoints before it are whole"),
        (KeyboardInterrupt(), 130, "goes on where it was"),
    ],
)
def test_a_disk_that_is_full_and_a_person_who_stops_get_a_sentence(error, status, said, capsys, monkeypatch):
    def main() -> None:
        raise error

    monkeypatch.setattr("finetune.cli.parser.parse", lambda *given: [])
    monkeypatch.setattr("finetune.cli.parser.answer_help", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        launch(main, [])
    assert ended.value.code == status
    assert said in capsys.readouterr().err
