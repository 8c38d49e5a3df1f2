"""Serve a base and its adapters over HTTP: classify, tag, embed, generate, OpenAI's API; a page at /.

python scripts/serve.py --base smollm2 --adapters films=runs/films formal=runs/formal --adapters_dir runs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.serving.access import AccessArguments
    from finetune.serving.service import ServeArguments


def main(serve: ServeArguments, access: AccessArguments) -> None:
    from finetune.training.allocator import keep_freed_memory
    from finetune.training.machine import processes

    keep_freed_memory()
    processes("serve")
    import logging
    import os
    import sys

    import uvicorn

    from finetune.pool.loading import fetched
    from finetune.pool.pool import AdapterPool
    from finetune.serving.app import make_app
    from finetune.serving.connections import configure
    from finetune.serving.tracing import begin_tracing

    # keys on a command line stand in the process list, where every user reads them
    if not access.api_keys and os.environ.get("API_KEY"):
        access.api_keys = [f"user={os.environ['API_KEY']}"]
    access.admin_key = access.admin_key or os.environ.get("ADMIN_KEY")
    lines = logging.StreamHandler(sys.stdout)  # one JSON object a request; everything else goes to stderr
    logger = logging.getLogger("finetune.serving.access")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    # or the root's handler would print each line again
    logger.propagate = False
    begin_tracing()
    pool = AdapterPool(
        serve.base, memory_limit_mb=serve.memory_limit_mb, allow_mismatch=serve.allow_mismatch,
        require_passport=serve.require_passport,
    )  # fmt: skip
    # all before the port is opened: a client never meets half of them
    for entry in serve.adapters:
        pool.add(*fetched(entry))
    app = make_app(pool, serve, access)
    tls = (
        {"ssl_certfile": access.tls_certificate, "ssl_keyfile": access.tls_key}
        if access.tls_certificate
        else {}
    )
    # no access log of uvicorn's own: ours says adapter, tokens and times
    settings = configure(
        app, access.host, access.port, seconds=serve.patience(), per_address=access.connections_per_address,
        drain=access.drain_seconds, access_log=False, **tls,
    )  # fmt: skip
    uvicorn.Server(settings).run()


if __name__ == "__main__":
    launch(main)
