"""`serve` as a verb: what it loads before a port is open, and the settings that reach the server."""

from __future__ import annotations

import logging

import pytest
from scripted import run
from test_pool import make
from transformers import AutoModelForCausalLM

from finetune.errors import InputError

uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
testclient = pytest.importorskip("fastapi.testclient", reason="the server needs the extra 'serve'")


@pytest.fixture
def started(monkeypatch):
    """The settings of each server that would have begun to listen."""
    found = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server: found.append(server.config))
    access = logging.getLogger("finetune.serving.access")
    # the verb gives its log a handler and keeps it from the root's
    monkeypatch.setattr(access, "handlers", [])
    monkeypatch.setattr(access, "propagate", True)
    return found


def test_adapters_are_there_before_the_port_is_open(saved, tmp_path, started, monkeypatch):
    make(tmp_path / "films", "llama", "SEQ_CLS", "lora", 1)
    base = f"--base {saved('llama', AutoModelForCausalLM)} --allow_mismatch true --port 8123"
    monkeypatch.setenv("API_KEY", "first")
    run("serve", base, f"--adapters films={tmp_path}/films --drain_seconds 7")
    (settings,) = started
    assert (settings.host, settings.port) == ("127.0.0.1", 8123)
    assert settings.timeout_graceful_shutdown == 7 and not settings.access_log and not settings.is_ssl
    with testclient.TestClient(settings.app, base_url="http://127.0.0.1:8123") as client:
        assert client.get("/v1/models").status_code == 401
        listed = client.get("/v1/adapters", headers={"Authorization": "Bearer first"}).text
    assert "films" in listed
    with pytest.raises(InputError, match="--adapters films; wanted name=folder"):
        run("serve", base, "--adapters films")
    assert len(started) == 1
