"""Where a run was made is told by what there is: no git is no reason to stop."""

from __future__ import annotations

from finetune.artefacts.environment import _commit


def test_a_machine_without_git_names_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit() == {}
