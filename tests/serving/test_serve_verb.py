"""`serve` as a verb: what it loads before a port is open, and the settings that reach the server."""

from __future__ import annotations

import logging
import re

import pytest
import uvicorn
from fastapi.testclient import TestClient
from served import make_folders
from scripted import run
from test_pool import TEXTS

from finetune.errors import InputError
from finetune.serving.tracing import begin_tracing


@pytest.fixture
def started(monkeypatch):
    """The settings of each server that would have begun to listen."""
    found = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: found.append(self.config))
    return found
