"""HTTP over an adapter pool: own endpoints, errors, adapters that come and go. Knows requests and answers;
makes no batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from finetune.errors import InputError
from finetune.pool.pool import AdapterPool
from finetune.pool.registry import UnknownAdapter
from finetune.pool.sampling import Sampling
from finetune.serving.access import LOCAL, AccessArguments, Key, key_of, parse_keys
from finetune.serving.batcher import Busy
from finetune.serving.middleware import RequestLimits
from finetune.serving.openai_routes import add_openai
from finetune.serving.openai_schemas import LoadAdapter, UnloadAdapter
from finetune.serving.rescan import rescan
from finetune.serving.responses_routes import add_responses
from finetune.serving.schemas import AddAdapter, Ask, AskForecast, Attribute, Classify, Generate
from finetune.serving.service import ServeArguments, Served
from finetune.serving.streaming import all_whole, events, numbered
from finetune.serving.vector_routes import add_vectors

logger = logging.getLogger(__name__)
PACKAGE = "finetune-and-prompt"
PAGE, DOCS = Path(__file__).with_name("page.html"), Path(__file__).with_name("docs.html")


def make_app(pool: AdapterPool, options: ServeArguments, access: AccessArguments | None = None) -> FastAPI:
    """The application; `connections.configure` puts it on uvicorn."""
    served = Served(pool, options, access)
    access = served.access

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(_rescan(served)) if access.rescan_seconds > 0 else None
        yield
        if looking is not None:
            looking.cancel()
        # Joining the thread would stop the loop, on which answers still leave.
        await asyncio.to_thread(served.batcher.close)

    about = {
        "title": "finetune",
        "description": "Adapters on one base, mixed in a batch.",
        "version": version(PACKAGE),
    }
    # Pages of its own: FastAPI's load their scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, **about)
    app.state.served = served
    keys = parse_keys(access.api_keys)
    # Whoever may change adapters may ask too.
    if keys and access.admin_key:
        keys.append(Key("admin", access.admin_key))
    # a server on this machine alone goes by this machine's names, whatever a page elsewhere calls it
    hosts = [name.lower() for name in access.allowed_hosts or (LOCAL if access.host in LOCAL else ())]
    app.add_middleware(
        RequestLimits,
        body=options.max_body_kb * 1024,
        seconds=options.patience(),
        running=options.max_queue,
        keys=keys,
        hosts=hosts,
        figures=served.figures,
        texts=access.log_texts,
    )
    if access.cors_origins:  # outside the limits: a browser's question before the request brings no key
        app.add_middleware(
            CORSMiddleware, allow_origins=access.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    _add_errors(app, served)
    _add_pages(app, served)
    _add_own(app, served)
    _add_adapters(app, served)
    add_openai(app, served)
    add_responses(app, served)
    add_vectors(app, served)
    return app


def _failure(status: int, message: str, **headers: str) -> JSONResponse:
    # OpenAI's clients raise by this type.
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "code": status}}, status, headers=headers
    )


def _add_errors(app: FastAPI, served: Served) -> None:
    @app.exception_handler(UnknownAdapter)
    async def unknown(request: Request, error: UnknownAdapter) -> JSONResponse:
        return _failure(404, served.plain(str(error)))

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> JSONResponse:
        hint = {404: ". /docs lists what there is", 405: f" for {request.method}; /docs says how to ask"}
        return _failure(error.status_code, f"{error.detail}{hint.get(error.status_code, '')}")

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> JSONResponse:
        return _failure(400, served.plain(str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            # Cut short: what came is quoted back, and may be a megabyte.
            f"{'.'.join(str(p)[:80] for p in e['loc'] if p != 'body')}: {e['msg'][:200]}"
            for e in error.errors()[:5]
        ]
        return _failure(422, "; ".join(fault.removeprefix(": ") for fault in faults))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return _failure(503, str(error), **{"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return _failure(
            504, "The answer took longer than this server waits; ask for less, or try again later"
        )

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        # The trace goes to the log; the client gets no path and no line of code.
        logger.exception("A request broke", exc_info=error)
        return _failure(500, f"The server failed: {type(error).__name__}")


def _add_pages(app: FastAPI, served: Served) -> None:
    pool = served.pool

    def shown(page: Path) -> HTMLResponse:
        # Nothing from elsewhere, and no page may send what is typed here to another server.
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
            "img-src data:"
        )
        return HTMLResponse(page.read_text(encoding="utf-8"), headers={"Content-Security-Policy": policy})

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return shown(PAGE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return shown(DOCS)

    @app.get("/health")
    async def health() -> Any:
        """Whether this process can still answer; restart it where not."""
        if not served.working:
            return _failure(503, "No batches are being made; restart this server")
        return {"status": "ok", "adapters": len(pool.adapters()), "waiting": served.batcher.waiting}

    @app.get("/ready")
    async def ready() -> Any:
        """Whether it takes new requests; send them elsewhere where not."""
        waiting = served.batcher.waiting
        if not served.working or waiting >= served.options.max_queue:
            return _failure(503, "This server takes no requests at the moment", **{"Retry-After": "1"})
        return {"status": "ready", "waiting": waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        counts = {f"{name}_total": float(count) for name, count in served.batcher.counts.items()}
        gauges = {"waiting": float(served.batcher.waiting), "adapters": float(len(pool.adapters()))}
        gauges |= {"prefix_hits_total": float(pool.prefixes.hits)}
        return Response(served.figures.text(counts | gauges), media_type="text/plain; version=0.0.4")


def _add_own(app: FastAPI, served: Served) -> None:
    @app.post("/v1/classify")
    async def classify(ask: Classify) -> dict[str, Any]:
        fields = ask.fields()
        if fields is not None:
            return await served.ask_fields(*fields, ask.names())
        assert ask.texts is not None
        texts = ask.texts if ask.pairs is None else _paired(ask.texts, ask.pairs)
        return {"answers": await served.ask("classify", texts, ask.names(), ask.truncate)}

    @app.post("/v1/forecast")
    async def forecast(ask: AskForecast) -> dict[str, Any]:
        """What comes next in each channel, in its own unit."""
        return {"forecast": await served.ask_forecast(ask.past, ask.times, ask.adapter)}

    @app.post("/v1/attribute")
    async def attribute(ask: Attribute) -> dict[str, Any]:
        """How much each word speaks for a label: its probability with the word minus without it
        (occlusion)."""
        words = ask.text.split()
        if not 2 <= len(words) <= 200:
            raise InputError(f"The text has {len(words)} words; attribution takes 2 to 200")
        # All at once: the batcher makes few batches of them.
        texts = [ask.text, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
        whole, *without = await served.ask("classify", texts, [ask.adapter] * len(texts))
        label = whole["label"] if ask.label is None else ask.label
        if label not in whole["probabilities"]:
            raise InputError(f"No label '{label}'; there are: {', '.join(whole['probabilities'])}")
        shares = [whole["probabilities"][label] - other["probabilities"][label] for other in without]
        return {"label": label, "words": words, "attributions": shares} | {
            "probability": whole["probabilities"][label]
        }

    @app.post("/v1/tag")
    async def tag(ask: Ask) -> dict[str, Any]:
        return {"answers": await served.ask("tag", ask.texts, ask.names(), ask.truncate)}

    @app.post("/v1/embed")
    async def embed(ask: Ask) -> dict[str, Any]:
        vectors = await served.ask("embed", ask.texts, ask.names(), ask.truncate)
        return {"embeddings": [row.tolist() for row in vectors]}

    @app.post("/v1/generate")
    async def generate(ask: Generate) -> Any:
        sampling = Sampling(
            ask.max_new_tokens, ask.temperature, ask.top_p, ask.top_k, ask.seed, tuple(ask.stop)
        )
        written = await served.orders(ask.texts, ask.names(), sampling)
        seconds = served.options.timeout_seconds
        if ask.stream:
            return events(numbered(written, seconds), served.plain)
        texts = await all_whole(written, seconds)
        return {"texts": texts, "finish_reasons": [one.row.ended for one in written]}


def _add_adapters(app: FastAPI, served: Served) -> None:
    pool = served.pool

    @app.get("/v1/adapters")
    async def listed() -> dict[str, Any]:
        known = {name: _told(served, entry) for name, entry in pool.adapters().items()}
        runs = served.finished.names()
        about = {"base": served.base, "reads": pool.reads, "writes": pool.writes, "adapters": known}
        return about | ({"runs": runs} if runs else {})

    @app.post("/v1/adapters", status_code=201)
    async def add(ask: AddAdapter, request: Request) -> Any:
        folder = _allowed(served, request, ask.folder)
        if isinstance(folder, JSONResponse):
            return folder
        await _add(served, ask.name, folder, ask.replace)
        return {"name": ask.name} | _told(served, pool.adapters()[ask.name])

    @app.delete("/v1/adapters/{name}")
    async def remove(name: str, request: Request) -> Any:
        refused = _allowed(served, request, None)
        if refused is not None:
            return refused
        pool.remove(name)
        return {"removed": name}

    @app.post("/v1/load_lora_adapter")
    async def load(ask: LoadAdapter, request: Request) -> Any:
        """vLLM's way to add an adapter."""
        folder = _allowed(served, request, ask.lora_path)
        if isinstance(folder, JSONResponse):
            return folder
        await _add(served, ask.lora_name, folder, bool(ask.load_inplace))
        return Response(
            f"Success: LoRA adapter '{ask.lora_name}' added successfully.", media_type="text/plain"
        )

    @app.post("/v1/unload_lora_adapter")
    async def unload(ask: UnloadAdapter, request: Request) -> Any:
        refused = _allowed(served, request, None)
        if refused is not None:
            return refused
        pool.remove(ask.lora_name)
        return Response(
            f"Success: LoRA adapter '{ask.lora_name}' removed successfully.", media_type="text/plain"
        )


async def _add(served: Served, name: str, folder: Any, replace: bool) -> None:
    if name == served.base:
        raise InputError(f"'{name}' is the base's own name; wanted another for an adapter")
    if served.taken(name):
        raise InputError(f"'{name}' is a finished run's name here; wanted another for an adapter")
    try:
        # Reading files and laying out tensors takes seconds, in which the loop answers others.
        await asyncio.to_thread(served.pool.add, name, folder, replace)
    except InputError as error:
        # Clients speak JSON and not Python.
        raise InputError(str(error).replace("replace=True", '"replace": true')) from error


def _told(served: Served, entry: dict[str, Any]) -> dict[str, Any]:
    """What clients may know of an adapter."""
    # The folder is the server's own affair.
    kept = {key: value for key, value in entry.items() if key != "folder"}
    return kept | {"by_itself": entry["by_itself"] and served.plain(entry["by_itself"])}


def _allowed(served: Served, request: Request, folder: str | None) -> Any:
    """The folder below the one that adapters may come from (None for none); a refusal where adapters can't be
    added or removed by this client. Both under one condition: nobody can take away what nobody can put
    back."""
    root, key = served.options.adapters_dir, served.access.admin_key
    if root is None:
        return _failure(403, "Adapters can't be changed here; the server must be started with --adapters_dir")
    if key is None and served.access.host not in LOCAL:
        return _failure(403, "Adapters can't be changed here; the server must be started with --admin_key")
    # Header values are latin-1 by the standard.
    given = request.headers.get("authorization", "").encode("latin-1", "replace")
    if key is not None and key_of(given, [Key("admin", key)]) is None:
        return _failure(
            403, ("Adapters are changed with the admin's key alone; wanted 'Authorization: Bearer KEY'")
        )
    if folder is None:
        return None
    # After links are followed: one below the folder might lead out of it.
    whole = Path(root).resolve()
    # A null byte makes `resolve` raise; such a name is no folder's.
    found = (whole / folder).resolve() if "\0" not in folder else whole
    # The root itself is no adapter, and as one would hold all of them.
    if found == whole or not found.is_relative_to(whole):
        return _failure(403, "The folder is outside the one that adapters may come from; name one below it")
    return found


async def _rescan(served: Served) -> None:
    """Have the pool follow its folder: new adapters come, changed ones are replaced, vanished ones go."""
    while True:
        await asyncio.sleep(served.access.rescan_seconds)
        try:
            # In a thread: it reads the disk.
            await asyncio.to_thread(rescan, served.pool, Path(served.options.adapters_dir or "."))
        # A folder may be unmounted, or go while it is read: the next look finds what is there then.
        except Exception:
            logger.exception("Looking for adapters failed; it is tried again")


def _paired(texts: list[str], pairs: list[str]) -> list[tuple[str, str]]:
    if len(texts) != len(pairs):
        raise InputError(f"{len(texts)} texts and {len(pairs)} second texts; wanted one each")
    return list(zip(texts, pairs, strict=True))
