"""All runs below a folder as one list in the browser, each with its page; pages of runs that go on are
renewed as they go.

python scripts/board.py runs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.cli.parser import launch

if TYPE_CHECKING:
    from finetune.reports.board import BoardArguments

POSITIONAL = ("runs",)  # finetune board FOLDER


def main(board: BoardArguments) -> None:
    from finetune.reports.board import make_server

    # port 0 is allowed, so that the line below says the one that was found
    server = make_server(board.runs, board.host, board.port)
    print(f"http://{board.host}:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    launch(main)
