"""A server in a thread of its own for the tests that talk to one; it ends with the block, whatever
happened in it.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_pool import make, pool_of

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
httpx = pytest.importorskip("httpx", reason="the requests of these tests need httpx")

from finetune.pool.pool import AdapterPool  # noqa: E402
from finetune.serving.access import AccessArguments  # noqa: E402
from finetune.serving.app import make_app  # noqa: E402
from finetune.serving.connections import configure  # noqa: E402
from finetune.serving.service import ServeArguments, Served  # noqa: E402

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@dataclass
class Running:
    client: httpx.Client
    served: Served
    port: int
    server: uvicorn.Server

    @property
    def pool(self) -> AdapterPool:
        return self.served.pool

    def connect(self) -> socket.socket:
        """A bare connection, for what no client library would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def until(self, wanted, seconds: float = 20.0) -> bool:
        """Wait for something to become true."""
        end = time.monotonic() + seconds
        while not wanted() and time.monotonic() < end:
            time.sleep(0.02)
        return wanted()


@contextmanager
def serving(pool: AdapterPool, **options: Any) -> Iterator[Running]:
    own = AccessArguments.__dataclass_fields__
    access = AccessArguments(**{name: value for name, value in options.items() if name in own})
    further = {name: value for name, value in options.items() if name not in own}
    arguments = ServeArguments(**({"base": "tiny"} | further))
    app = make_app(pool, arguments, access)
    settings = {"seconds": arguments.patience(), "per_address": access.connections_per_address}
    if "drain_seconds" in options:
        settings["drain"] = access.drain_seconds
    if access.tls_certificate:
        settings |= {"ssl_certfile": access.tls_certificate, "ssl_keyfile": access.tls_key}
    server = uvicorn.Server(configure(app, port=0, log_level="critical", **settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        trust = ssl.create_default_context(cafile=access.tls_certificate) if access.tls_certificate else True
        address = f"{'https' if access.tls_certificate else 'http'}://127.0.0.1:{port}"
        with httpx.Client(base_url=address, timeout=120, verify=trust) as client:
            yield Running(client, app.state.served, port, server)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive(), "the server did not stop"


def make_folders(root: Path) -> Path:
    """Eight adapters that write, one that classifies, one that tags, all on the tiny Llama of `filled`."""
    for seed in range(8):
        make(root / f"write{seed}", "llama", "CAUSAL_LM", ("lora", "ia3", "houlsby")[seed % 3], seed)
    make(root / "films", "llama", "SEQ_CLS", "lora", 1)
    make(root / "words", "llama", "TOKEN_CLS", "lora", 2)
    return root


def filled(folders: Path, **options: Any) -> AdapterPool:
    pool = pool_of("llama", writes=True, **options)
    pool.processor.chat_template = TEMPLATE
    pool.allow_mismatch = True  # the adapters' tokenizer has no chat template
    for folder in sorted(folders.iterdir()):
        pool.add(folder.name, folder)
    return pool
