"""Runs below a folder as pages over HTTP, for one's own machine. Knows pages; reads files at each
request and keeps nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from finetune.errors import InputError
from finetune.reports.page import list_page, page_of
from finetune.reports.run_folder import RunFolder, find_runs, read_run
from finetune.reports.sections import headline

logger = logging.getLogger(__name__)
RENEW = 10  # seconds between two looks at a run that goes on


@dataclass
class BoardArguments:
    """Which runs are shown, and where."""

    runs: str = field(default="runs", metadata={"help": "A folder; every run below it is listed."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; pages hold rows of your data."}
    )
    port: int = field(default=7870, metadata={"help": "Port to listen on; 0 takes a free one."})


def make_server(root: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the list at `/` and of each run's page at `/run?at=FOLDER`; several `at` stand side by
    side.

    Raises:
        InputError: no such folder, or a port that is taken.
    """
    top = Path(root).resolve()
    find_runs(top)

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            try:
                if asked.path == "/":
                    # a query may be missing or empty, and the newest come first then
                    self._send(HTTPStatus.OK, listing(top, parse_qs(asked.query).get("by", ["newest"])[0]))
                elif asked.path == "/run":
                    self._send(HTTPStatus.OK, _pages(top, parse_qs(asked.query).get("at", [])))
                else:
                    self._send(HTTPStatus.NOT_FOUND, "There are / and /run?at=FOLDER")
            except InputError as error:
                # what a user has mistyped is no fault of the server
                self._send(HTTPStatus.NOT_FOUND, str(error))

        def _send(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            kind = "text/html" if status == HTTPStatus.OK else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            # rows of any origin stand in these pages: even if one slipped through escaping, nothing of it
            # would run
            self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
            self.end_headers()
            self.wfile.write(body)

        # the server's own lines on stderr would bury the program's
        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    # a thread for each request: a page that takes long holds up no other
    try:
        return ThreadingHTTPServer((host, port), Pages)
    except OSError as error:
        raise InputError(
            f"Can't listen on {host}:{port} ({error.strerror}); set --port to another"
        ) from error


def listing(top: Path, by: str) -> str:
    """The list, newest first, or in order of one of its columns (`?by=run|figure|...`)."""
    # at each request: runs come and go
    rows = [_row(run, top) for run in find_runs(top)]
    if rows and by in rows[0]["cells"]:
        # names of columns alone: what a browser sends is never looked up otherwise; figures the largest first
        rows.sort(key=lambda row: row["cells"][by], reverse=by == "figure")
    going = any(row["cells"]["state"] == "goes on" for row in rows)
    # nothing goes on, and the browser need not ask again
    return list_page(rows, f"{len(rows)} runs", refresh=RENEW if going else None)


def _row(run: RunFolder, top: Path) -> dict[str, Any]:
    name = str(run.path.relative_to(top))
    data = run.options.get("dataset_name", "")
    cells = {
        "run": name,
        "figure": headline(run),
        "task": run.kind,
        "method": str(run.options.get("method", "")),
        "data": ", ".join(Path(str(one)).name for one in (data if isinstance(data, list) else [data])),
        "state": "finished" if run.is_finished else "goes on",
    }
    return {"name": name, "link": f"/run?at={quote(name)}", "cells": cells}


def _pages(top: Path, names: list[str]) -> str:
    if not names:
        raise InputError("No run; wanted /run?at=FOLDER")
    runs = []
    # resolved first: `..` and links must not lead out of the folder that is shown
    for name in names:
        path = (top / name).resolve()
        if not path.is_relative_to(top):
            raise InputError(f"{name} is not below the folder that is shown")
        runs.append(read_run(path))
    # asked again as long as one of them goes on
    return page_of(runs, refresh=None if all(run.is_finished for run in runs) else RENEW)
