"""The `finetune` command: verbs, recipes by name, tables, launcher, and the verbs as functions."""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import pytest
import yaml

import finetune
from finetune.cli import accelerated, places
from finetune.cli.command import OTHERS, run
from finetune.cli.completion import completion
from finetune.cli.declarations import OURS, as_typed, classes_of, options_of
from finetune.cli.help import usage
from finetune.cli.launcher import Machine, launcher_command
from finetune.cli.parser import as_arguments, main_of, parse, parse_into
from finetune.cli.tables import as_table
from finetune.errors import InputError

ROOT = Path(__file__).parents[2]
VERBS = places.verbs()
# as a user has it: counting which lines run, as `make check` does in all processes, takes time of its own
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
CPUS, GPUS = Machine(processors=2, gpus=0), Machine(processors=16, gpus=8)


def ask(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """`finetune ...` in a process of its own."""
    code = "import sys; sys.argv[0] = 'finetune'; from finetune.cli.command import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=UNMEASURED | {"PYTHONPATH": str(ROOT)}, cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_without_a_verb_all_are_listed_a_line_each(capsys):
    run([])
    lines = capsys.readouterr().out.splitlines()
    for verb in [*VERBS, *OTHERS]:
        assert sum(line.startswith(f"  {verb} ") for line in lines) == 1
    assert max(map(len, lines)) <= 110


def test_a_verb_alone_is_answered_by_commands_that_work(capsys):
    with pytest.raises(SystemExit):
        run(["check"])
    said = capsys.readouterr().err
    assert "error: No file" in said and "\nfinetune check tickets.csv\n" in said


def test_an_unknown_verb_is_answered_by_the_closest():
    with pytest.raises(InputError, match="Unknown verb 'trian'. Did you mean train?"):
        run(["trian"])


def test_errors_end_the_command_with_status_2(tmp_path):
    done = ask("trian", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("\nerror: Unknown verb")


EVERY_HELP = """
import contextlib, io, sys, time
from finetune.cli.command import run
for verb in sys.argv[1:]:
    said, began = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run([verb, "--help"])
    text = said.getvalue()
    assert "--config" in text and "python scripts/" not in text, (verb, text)
    assert not {"torch", "transformers"} & set(sys.modules), verb
    print(verb, time.process_time() - began)
"""


def test_help_stands_for_every_verb_and_takes_less_than_a_third_of_a_second(tmp_path):
    """Start-up is the same for all verbs: it is measured once, with the verb of the most options; the others
    in one process, where none may import what takes seconds.
    """

    def seconds() -> float:  # of the processor: other work on the machine doesn't count
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    spent = []
    for _ in range(10):  # a busy machine makes the same work longer
        before = seconds()
        done = ask("train", "--help", folder=tmp_path)
        spent.append(seconds() - before)
        if spent[-1] < 0.3:
            break
    assert min(spent) < 0.3
    assert done.returncode == 0 and "--config" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, *VERBS],
        env=UNMEASURED | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    taken = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert set(taken) == set(VERBS)
    # with what is imported already, no other verb has more to do than that one
    assert {verb: time for verb, time in taken.items() if time > 0.3} == {}


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_the_real_defaults(verb):
    """What is read from the source files is what Python makes of them; a default that is computed is
    told in words.
    """
    for module, name in classes_of(VERBS[verb]):
        kind = vars(importlib.import_module(module))[name]
        told = {option.name: option for option in options_of(module, name)}
        real = {field.name: field for field in fields(kind) if field.init}
        assert set(told) == set(real)
        for option in told.values():
            field = real[option.name]
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if default is MISSING or option.package not in OURS:
                continue
            shown = as_typed(default.value if isinstance(default, Enum) else default)
            assert option.default == shown or "default" in option.help, (name, option, shown)


def test_own_options_come_first_and_others_when_asked():
    brief, whole = usage(VERBS["train"]), usage(VERBS["train"], everything=True)
    for name in ("task", "dataset_name", "output_dir", "num_train_epochs", "learning_rate"):
        assert f"  --{name}\n" in brief or f"  --{name}  (default" in brief
    assert "--adam_beta1" in whole and "--adam_beta1" not in brief
    assert "further options are transformers' and trl's own, by their names: --help all" in brief
    assert usage(VERBS["prompt"]).count("(default: sentiment)") == 1  # a list is told as one types it


def test_a_recipe_is_a_name_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.find_recipe("reviews_lora") == places.recipes()["reviews_lora"]
    (tmp_path / "reviews_lora").write_text("task: pairs")
    assert places.find_recipe("reviews_lora") == Path("reviews_lora")  # what lies there comes first
    with pytest.raises(InputError, match=r"no recipe of that name. Did you mean imdb_lora\? It has: .*xquad"):
        places.find_recipe("imdb_lorra")
    with pytest.raises(InputError, match="there is no such file"):
        places.find_recipe("somewhere/reviews_lora.yaml")


def test_every_recipe_says_its_verb_and_holds_options_of_it():
    for name, path in places.recipes().items():
        recipe = yaml.safe_load(path.read_text())
        known = {o.name for place in classes_of(VERBS[recipe.pop("verb")]) for o in options_of(*place)}
        assert set(recipe) <= known, name


def test_every_recipe_says_what_it_costs():
    for path in places.recipes().values():
        head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert re.match(
            r"# Rows, time, memory: .+(; memory not measured|time and memory not measured| GB at most)\.$",
            head[-1],
        ), path


def test_a_recipe_of_another_verb_is_refused(tmp_path):
    main = importlib.import_module("finetune.scripts.train").main
    with pytest.raises(InputError, match="imdb_ppo is one of `finetune ppo`, and this is `finetune train`"):
        parse(main, ["--config", "imdb_ppo"])
    own = tmp_path / "own.yaml"  # an older one, which names no verb
    own.write_text("objective: mlm\noutput_dir: x\n")
    with pytest.raises(InputError, match="Unknown option 'objective'") as error:
        parse(main, ["--config", str(own)])
    assert "All of its keys are options of: finetune pretrain, finetune tokenizer" in str(error.value)


@pytest.mark.parametrize(
    ("verb", "given", "meant"),
    [("train", "--dataset", "--dataset_name"), ("train", "--model", "--model_name_or_path"),
    ("prompt", "--model", "--models"),
     ("train", "--batch_size", "--per_device_train_batch_size"), ("train", "--epochs", "--num_train_epochs"),
     ("train", "--lr", "--learning_rate"), ("sft", "--lora-r", "--method_kwargs '{\"r\": ...}'"), ("serve",
     "--model", "--base"), ("assess", "--model", "--artefact"), ("prompt", "--lr", "--tune_learning_rate"),
     ("prefer", "--batch_size", "--generation_batch_size"),
     ("ppo", "--batch_size", "--per_device_batch_size")],
)  # fmt: skip
def test_the_commonest_mistakes_are_told_the_real_option(verb, given, meant):
    types = [vars(importlib.import_module(module))[name] for module, name in classes_of(VERBS[verb])]
    with pytest.raises(InputError, match=f"Unknown option '{given}'. Did you mean") as error:
        parse_into(types, [given, "1"])
    assert f"Did you mean {meant}?" in str(error.value)


def test_what_is_refused_is_not_offered():
    main = importlib.import_module("finetune.scripts.train").main
    with pytest.raises(InputError, match="Leave it out") as error:
        parse(main, ["--dataloader_drop_last", "true"])
    assert "Did you mean" not in str(error.value)


def test_options_of_python_become_those_of_the_command_line():
    assert as_arguments({"a": "- x", "b": [1, "y"], "c": True, "d": None, "e": {"r": 8}, "f": [],
                         "g": Path("p")}) == [
        "--a=- x", "--b", "1", "y", "--c=true", '--e={"r": 8}', "--g=p",
    ]  # fmt: skip


def test_a_function_takes_options_by_name_and_gives_back_what_is_left(tmp_path):
    outcome = finetune.tokenizer(
        objective="clm", dataset_name="reviews", vocab_size=300, output_dir=tmp_path / "tokenizer"
    )
    assert (outcome.folder / "tokenizer.json").is_file() and outcome.figures == {}
    with pytest.raises(InputError, match="holds a tokenizer already"):
        finetune.tokenizer(objective="clm", output_dir=tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"Unknown option '--vocab=3'. Did you mean --vocab_size\?"):
        finetune.tokenizer(vocab=3)


def test_the_package_is_light_and_names_its_verbs():
    code = (
        "import sys, finetune; finetune.train; print({'torch', 'yaml'} & set(sys.modules), 'train' in "
        "dir(finetune))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() True"
    assert finetune.train.__doc__.startswith("The verb `finetune train`")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = finetune.trian


@pytest.mark.parametrize("name", ["tasks", "methods", "objectives", "prompts", "recipes"])
def test_tables_have_a_line_for_every_row(name, capsys):
    run([name])
    lines = capsys.readouterr().out.splitlines()
    rows = {
        "tasks": ("finetune.tasks.table", "TASKS"), "methods": ("finetune.methods", "METHODS"),
        "objectives": ("finetune.objectives.table", "OBJECTIVES"),
    }  # fmt: skip
    if name in rows:
        module, table = rows[name]
        named = list(vars(importlib.import_module(module))[table])
    else:
        named = list(places.recipes()) if name == "recipes" else ["sentiment", "topic"]
    for row in named:
        assert any(line.startswith(f"{row} ") for line in lines), row
    assert (name in ("recipes", "prompts")) == lines[-1].startswith("next: finetune ")
    with pytest.raises(InputError, match="takes no options; got --x"):
        run([name, "--x"])


def test_long_texts_go_on_below_their_column():
    text = as_table([("a", "word " * 40)], ("name", "what"))
    assert text.splitlines()[2].startswith("a     word") and text.splitlines()[3].startswith("      word")
    wide = as_table([("a", "one " * 60, "two " * 60), ("b", "", "")], ("name", "first", "second"))
    assert max(map(len, wide.splitlines())) <= 110
    assert (wide.count("one"), wide.count("two")) == (60, 60) and wide.splitlines()[-1] == "b"


def test_launching_on_cpus_joins_processes_and_shares_the_processors():
    command, environment = launcher_command(["--processes", "2", "train", "--config", "imdb_lora"], CPUS)
    assert command[1:3] == ["-m", "finetune.cli.accelerated"]
    assert command[command.index("--config_file") + 1].endswith("two_cpus.yaml")
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-4:] == ["-m", "finetune.scripts.train", "--config", "imdb_lora"]
    assert environment["FINETUNE_PROCESSES"] == "2" and environment["CUDA_VISIBLE_DEVICES"] == ""
    one, _ = launcher_command(["train"], CPUS)
    assert one[one.index("--config_file") + 1].endswith("one_cpu.yaml")


def test_launching_on_gpus_takes_all_or_as_many_as_were_asked_for():
    command, environment = launcher_command(["train"], GPUS)
    assert command[command.index("--num_processes") + 1] == "8" and "gpus.yaml" in command[4]
    assert environment == {"FINETUNE_PROCESSES": "8"}
    one, _ = launcher_command(["--processes=1", "train"], GPUS)
    assert one[one.index("--gpu_ids") + 1] == "0"
    named, _ = launcher_command(["--config_file", "fsdp2", "--processes", "4", "sft"], GPUS)
    assert named[4].endswith("fsdp2.yaml") and named[6] == "4"
    two, _ = launcher_command(["--config_file", "machines", "--machine_rank", "1", "train"], GPUS)
    assert two[6] == "16" and two[-4:-2] == ["--machine_rank", "1"] and "--main_process_port" not in two


@pytest.mark.parametrize(
    ("arguments", "machine", "said"),
    [
        (["--processes", "3", "train"], CPUS,
        "3 processes were asked for on this machine, which has 2 processors"),
        (["--config_file", "gpus", "train"], CPUS, "has 0 GPUs for them; set --config_file two_cpus"),
        (["--config_file", "gpus", "--processes", "9", "train"], GPUS,
        "has 8 GPUs for them; set --processes to 8 or less"),
        (["--config_file", "machines", "--processes", "3", "train"], GPUS,
        "for 2 machines; wanted a multiple of 2"),
        (["--processes", "two", "train"], CPUS, "Got --processes two; wanted a whole number of 1 or more"),
        (["--processes", "2", "trian"], CPUS, r"'trian' is no verb. Did you mean train\?"),
        (["--processes", "2"], CPUS, "no verb is named"),
        (["--config_file", "gpu", "train"], CPUS, r"no configuration of that name. Did you mean gpus\?"),
    ],
)  # fmt: skip
def test_a_launch_that_can_not_be_is_refused(arguments, machine, said):
    with pytest.raises(InputError, match=said):
        launcher_command(arguments, machine)


def test_another_number_of_processes_than_was_asked_for_stops_the_run(monkeypatch):
    from finetune.cli.parser import check_processes

    monkeypatch.setenv("FINETUNE_PROCESSES", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes()
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="was asked for 2 processes and the launcher started 1"):
        check_processes()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("trai", "train"),
        ("train --config reviews_l", "reviews_lora"),
        ("train --dataset_n", "--dataset_name"),
    ],
)
def test_bash_completes_verbs_options_and_recipes(typed, offered):
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    asking = 'COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _shtab_finetune; echo "${COMPREPLY[@]}"'
    text = f"{completion(['bash'])}\nCOMP_WORDS=(finetune {typed}); {asking}"
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [offered], done.stderr[-500:]


def test_completion_for_another_shell_is_refused():
    with pytest.raises(
        InputError, match=r"Got the shell 'bsh' for completion; Did you mean bash\? wanted one of"
    ):
        completion(["bsh"])


def test_the_verbs_are_modules_that_any_launcher_can_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finetune.scripts.train", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "--dataset_name" in done.stdout


def test_a_verb_may_leave_an_algorithm_to_the_verb_that_has_it(tmp_path):
    """`finetune align --algorithm kto` has the options of `finetune dpo --algorithm kto`, and takes recipes
    of either verb.
    """
    align = importlib.import_module("finetune.scripts.align").main
    found = main_of(align, ["--algorithm", "kto"])
    assert found is importlib.import_module("finetune.scripts.dpo").kto
    for verb in ("align", "dpo"):
        recipe = tmp_path / f"{verb}.yaml"
        recipe.write_text(
            f"verb: {verb}\nalgorithm: kto\noutput_dir: {tmp_path}\nmodel_name_or_path: smollm2\n"
            "dataset_name: pairs\ntext_column: question\n"
        )
        words = ["--config", str(recipe)]
        groups = parse(main_of(align, words), words, align)
        # a recipe from before preferences had names of their own for their columns
        assert (groups[-1].algorithm, groups[0].prompt_column) == ("kto", "question")
    recipe.write_text("verb: train\n")
    with pytest.raises(InputError, match="one of `finetune train`, and this is `finetune align`"):
        parse(main_of(align, words), words, align)
    assert set(classes_of(VERBS["dpo"])) < set(classes_of(VERBS["align"]))


@pytest.mark.parametrize("ended", [1, 2, 143])
def test_a_launch_ends_as_its_verb_did(ended, monkeypatch):
    def failing():
        raise subprocess.CalledProcessError(ended, ["a verb"])

    monkeypatch.setattr("accelerate.commands.launch.main", failing)
    with pytest.raises(SystemExit) as end:
        accelerated.main()
    assert end.value.code == ended


def test_a_table_may_be_cut_short():
    run_it = f"{sys.executable} -c 'from finetune.cli.command import main; main()' recipes"
    done = subprocess.run(
        ["bash", "-c", f"{run_it} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "0"
