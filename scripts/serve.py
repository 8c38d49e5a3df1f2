"""Serve a base and its adapters over HTTP: classify, tag, embed, generate, OpenAI's completions and chats; a
page at /.

python scripts/serve.py --base smollm2 --adapters films=runs/films formal=runs/formal --adapters_dir runs
--port 8000
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.serving.service import ServeArguments


def main(serve: ServeArguments) -> None:
    from finetune.training.allocator import keep_freed_memory

    keep_freed_memory()
    import os
    from pathlib import Path

    import uvicorn

    from finetune.errors import InputError
    from finetune.pool.pool import AdapterPool
    from finetune.serving.app import make_app
    from finetune.serving.connections import configure

    serve.api_key = serve.api_key or os.environ.get("API_KEY")
    pool = AdapterPool(serve.base, memory_limit_mb=serve.memory_limit_mb, allow_mismatch=serve.allow_mismatch)
    for entry in serve.adapters:
        name, _, folder = entry.partition("=")
        if not folder:
            raise InputError(f"--adapters {entry}; wanted name=folder")
        pool.add(name, Path(folder).resolve())  # whole, so that messages to clients can leave it out
    settings = configure(
        make_app(pool, serve), serve.host, serve.port, serve.max_queue, seconds=serve.patience()
    )
    uvicorn.Server(settings).run()


if __name__ == "__main__":
    launch(main)
