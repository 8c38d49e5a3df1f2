"""How the command and the launcher end: with which status, and in place of which process."""

from __future__ import annotations

import os
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from finetune.cli import accelerated, command, launcher
from finetune.errors import InputError


def called(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", *words])
    command.main()


def test_the_command_says_its_version_and_ends_mistakes_with_status_2(monkeypatch, capsys):
    called(monkeypatch, "--version")
    assert capsys.readouterr().out.startswith("finetune-and-prompt ")
    with pytest.raises(SystemExit) as end:
        called(monkeypatch, "trian")
    assert end.value.code == 2
    assert "error: Unknown verb 'trian'. Did you mean train?" in capsys.readouterr().err


def test_a_closed_pipe_ends_the_command_without_a_word(monkeypatch, capsys):
    def closed(words: list[str]) -> None:
        raise BrokenPipeError

    ended = []
    monkeypatch.setattr(command, "run", closed)
    monkeypatch.setattr(os, "_exit", ended.append)
    called(monkeypatch, "recipes")
    assert ended == [0] and capsys.readouterr().err == ""


@pytest.mark.parametrize(("status", "shown"), [(2, 2), (-9, 1)])
def test_a_launch_ends_as_the_process_that_failed_first(status, shown, monkeypatch, capsys, tmp_path):
    def failing() -> None:
        failed = ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file=str(tmp_path / "none"))
        raise ChildFailedError("train", {1: failed})

    monkeypatch.setattr("accelerate.commands.launch.main", failing)
    with pytest.raises(SystemExit) as end:
        accelerated.main()
    assert end.value.code == shown
    assert f"error: process 1 ended with status {status}" in capsys.readouterr().err


def test_a_launch_takes_the_place_of_its_process(monkeypatch):
    became = []
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given))
    launcher.launch_verb(["--processes", "1", "train", "--config", "imdb_lora"])
    (program, words, environment), *further = became
    assert program == words[0] == sys.executable and not further
    assert words[-3:] == ["finetune.scripts.train", "--config", "imdb_lora"]
    assert environment["FINETUNE_PROCESSES"] == "1" and environment["PATH"] == os.environ["PATH"]


def test_the_launcher_tells_how_it_is_called(capsys):
    launcher.launch_verb([])
    assert "finetune launch --processes 2" in capsys.readouterr().out
    launcher.launch_verb(["--slurm", "--help"])
    assert "slurm" in capsys.readouterr().out.lower()


def test_a_configuration_that_is_none_is_named(tmp_path):
    machine = launcher.Machine(processors=2, gpus=0)
    for text, said in (("- a\n", "is no configuration of accelerate's"), ("a: [", "Cannot read")):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            launcher.launcher_command(["--config_file", str(tmp_path / "own.yaml"), "train"], machine)
    with pytest.raises(InputError, match="--processes names no value"):
        launcher.launcher_command(["--processes", "train"], machine)
