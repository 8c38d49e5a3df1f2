"""HTTP over an adapter pool: own endpoints, and OpenAI's completions and chats with the adapter as `model`.

Knows requests and answers; batches are made in `gathering`.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse

from finetune.adapters.pool import AdapterPool, UnknownAdapter
from finetune.adapters.writing import Row, Sampling
from finetune.errors import InputError
from finetune.serving.gathering import Budget, Busy, Gatherer, Order, Question
from finetune.serving.limits import Figures, Limits
from finetune.serving.messages import AddAdapter, Ask, Attribute, Chat, Classify, Completion, Generate, Options

BASE = "base"
PAGE = Path(__file__).with_name("page.html")


@dataclass
class ServeArguments:
    """What is served, and within which limits."""

    base: str = field(default="smollm2", metadata={"help": "The base: a hub name, a folder, or a packaged model."})
    adapters: list[str] = field(default_factory=list, metadata={"help": "Adapters from the start, each as name=folder."})
    adapters_dir: str | None = field(
        default=None, metadata={"help": "Folder below which adapters may be added over HTTP; without it none can."}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on."})
    port: int = field(default=8000, metadata={"help": "Port to listen on."})
    api_key: str | None = field(default=None, metadata={"help": "Key that every request must bring (else the variable API_KEY)."})
    max_body_kb: int = field(default=1024, metadata={"help": "Largest body of a request."})
    max_queue: int = field(default=512, metadata={"help": "Texts that may wait; more are answered with 503."})
    max_batch_rows: int = field(default=32, metadata={"help": "Texts in one batch."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens in one batch, padding and tokens to come counted."})
    gather_ms: float = field(default=5.0, metadata={"help": "How long a first request waits for others."})
    timeout_seconds: float = field(default=120.0, metadata={"help": "Longest time of a request (of its body: 20 at most)."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Most new tokens that a request may ask for."})
    memory_limit_mb: float = field(default=1024.0, metadata={"help": "Memory for adapters; the least used are put aside."})
    allow_mismatch: bool = field(default=False, metadata={"help": "Serve adapters that don't belong on the base."})


class Served:
    """What the endpoints share: the pool, its gatherer, the limits."""

    def __init__(self, pool: AdapterPool, options: ServeArguments) -> None:
        self.pool, self.options, self.figures = pool, options, Figures()
        budget = Budget(options.max_batch_rows, options.max_batch_tokens, options.gather_ms / 1000, options.max_queue)
        self.gatherer = Gatherer(pool, budget)

    async def ask(self, kind: str, texts: list[Any], names: list[Any]) -> list[Any]:
        """The answer to each text; all are checked before any is put in line."""
        if len(texts) != len(names):
            raise InputError(f"{len(texts)} texts and {len(names)} adapters; wanted one each")
        lengths = await asyncio.to_thread(self._checked, kind, texts, names)
        questions = [Question(kind, *one) for one in zip(texts, names, lengths, strict=True)]
        for question in questions:
            self.gatherer.submit(question)
        waiting = asyncio.gather(*(asyncio.wrap_future(q.answer) for q in questions))
        return await asyncio.wait_for(waiting, self.options.timeout_seconds)

    def _checked(self, kind: str, texts: list[Any], names: list[Any]) -> list[int]:
        task = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS"}.get(kind)
        chains = self.pool.check(texts, names, task)
        return self.pool.fit(texts, chains)

    async def orders(self, prompts: list[str], names: list[Any], sampling: Sampling, special: bool = True) -> list[Written]:
        if len(prompts) != len(names):
            raise InputError(f"{len(prompts)} texts and {len(names)} adapters; wanted one each")
        if sampling.max_new_tokens > self.options.max_new_tokens:
            raise InputError(f"{sampling.max_new_tokens} new tokens asked for; {self.options.max_new_tokens} at most here")
        rows = await asyncio.to_thread(self.pool.rows, prompts, names, sampling, special)
        written = [Written(row, asyncio.get_running_loop()) for row in rows]
        try:
            for one in written:
                self.gatherer.submit(one.order)
        except Busy:
            for one in written:
                one.order.abandoned = True
            raise
        return written

    def adapter_of(self, model: str) -> str | None:
        """OpenAI's `model` → the adapter; the base by its own name or as "base"."""
        return None if model in (BASE, self.options.base) else model


class Written:
    """A text on its way, heard from the gatherer's thread and read by the request."""

    def __init__(self, row: Row, loop: asyncio.AbstractEventLoop) -> None:
        self.row, self.pieces = row, asyncio.Queue[tuple[str, Row | Exception, str | None]]()
        self.order = Order(row, lambda piece, what: loop.call_soon_threadsafe(self.pieces.put_nowait, (piece, what, row.ended)))

    async def read(self, seconds: float) -> AsyncIterator[str]:
        """Pieces as they come; an order that nobody reads any more is given up."""
        until = time.monotonic() + seconds
        try:
            while True:
                piece, what, ended = await asyncio.wait_for(self.pieces.get(), max(0.0, until - time.monotonic()))
                if isinstance(what, Exception):
                    raise what
                yield piece
                if ended:
                    return
        finally:
            self.order.abandoned = True

    async def whole(self, seconds: float) -> str:
        return "".join([piece async for piece in self.read(seconds)])


def make_app(pool: AdapterPool, options: ServeArguments) -> FastAPI:
    """The application; `uvicorn.run` takes it."""
    app = FastAPI(title="finetune", description="Adapters on one base, mixed in a batch.")
    served = Served(pool, options)
    app.state.served = served
    app.add_middleware(
        Limits,
        body=options.max_body_kb * 1024,
        seconds=min(20.0, options.timeout_seconds),
        key=options.api_key,
        figures=served.figures,
    )
    _add_errors(app)
    _add_own(app, served)
    _add_adapters(app, served)
    _add_openai(app, served)
    return app


def _failure(status: int, message: str, **headers: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers=headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UnknownAdapter)
    async def unknown(request: Request, error: UnknownAdapter) -> JSONResponse:
        return _failure(404, str(error))

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> JSONResponse:
        return _failure(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(str(p) for p in e['loc'] if p != 'body')}: {e['msg']}" for e in error.errors()[:5]]
        return _failure(422, "; ".join(faults))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return _failure(503, str(error), **{"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> JSONResponse:
        return _failure(504, "The answer took longer than this server waits; ask for less, or try again later")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _failure(500, f"The server failed: {type(error).__name__}")


def _add_own(app: FastAPI, served: Served) -> None:
    pool = served.pool

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "adapters": len(pool.adapters()), "waiting": served.gatherer.waiting}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        counts = {f"{name}_total": float(count) for name, count in served.gatherer.counts.items()}
        gauges = {"waiting": float(served.gatherer.waiting), "adapters": float(len(pool.adapters()))}
        return PlainTextResponse(served.figures.text(counts | gauges), media_type="text/plain; version=0.0.4")

    @app.post("/v1/classify")
    async def classify(ask: Classify) -> dict[str, Any]:
        texts = ask.texts if ask.pairs is None else _paired(ask.texts, ask.pairs)
        return {"answers": await served.ask("classify", texts, ask.names())}

    @app.post("/v1/attribute")
    async def attribute(ask: Attribute) -> dict[str, Any]:
        """How much each word speaks for a label: its probability with the word minus without it (occlusion)."""
        words = ask.text.split()
        if not 2 <= len(words) <= 200:
            raise InputError(f"The text has {len(words)} words; attribution takes 2 to 200")
        texts = [ask.text, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
        whole, *without = await served.ask("classify", texts, [ask.adapter] * len(texts))
        label = whole["label"] if ask.label is None else ask.label
        if label not in whole["probabilities"]:
            raise InputError(f"No label '{label}'; there are: {', '.join(whole['probabilities'])}")
        shares = [whole["probabilities"][label] - other["probabilities"][label] for other in without]
        return {"label": label, "words": words, "attributions": shares} | {"probability": whole["probabilities"][label]}

    @app.post("/v1/tag")
    async def tag(ask: Ask) -> dict[str, Any]:
        return {"answers": await served.ask("tag", ask.texts, ask.names())}

    @app.post("/v1/embed")
    async def embed(ask: Ask) -> dict[str, Any]:
        return {"embeddings": [row.tolist() for row in await served.ask("embed", ask.texts, ask.names())]}

    @app.post("/v1/generate")
    async def generate(ask: Generate) -> Any:
        sampling = Sampling(ask.max_new_tokens, ask.temperature, ask.top_p, ask.top_k, ask.seed, tuple(ask.stop))
        written = await served.orders(ask.texts, ask.names(), sampling)
        seconds = served.options.timeout_seconds
        if ask.stream:
            return _events(_numbered(written, seconds))
        texts = await asyncio.gather(*(one.whole(seconds) for one in written))
        return {"texts": texts, "finish_reasons": [one.row.ended for one in written]}


def _add_adapters(app: FastAPI, served: Served) -> None:
    pool = served.pool

    @app.get("/v1/adapters")
    async def listed() -> dict[str, Any]:
        known = {name: {k: v for k, v in entry.items() if k != "folder"} for name, entry in pool.adapters().items()}
        return {"base": served.options.base, "writes": pool.writes, "adapters": known}

    @app.post("/v1/adapters", status_code=201)
    async def add(ask: AddAdapter) -> Any:
        if served.options.adapters_dir is None:
            return _failure(403, "Adapters can't be added here; start the server with --adapters_dir")
        root = Path(served.options.adapters_dir).resolve()
        folder = (root / ask.folder).resolve() if "\0" not in ask.folder else root
        if folder == root or not folder.is_relative_to(root):
            return _failure(403, "The folder is outside the one that adapters may come from")
        await asyncio.to_thread(pool.add, ask.name, folder, ask.replace)
        return {"name": ask.name} | {k: v for k, v in pool.adapters()[ask.name].items() if k != "folder"}

    @app.delete("/v1/adapters/{name}")
    async def remove(name: str) -> dict[str, str]:
        pool.remove(name)
        return {"removed": name}


def _add_openai(app: FastAPI, served: Served) -> None:
    seconds = served.options.timeout_seconds

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [BASE, *(name for name, e in served.pool.adapters().items() if e["task"] == "CAUSAL_LM")]
        return {"object": "list", "data": [{"id": n, "object": "model", "created": 0, "owned_by": "finetune"} for n in names]}

    @app.post("/v1/completions")
    async def complete(ask: Completion) -> Any:
        prompts = [ask.prompt] if isinstance(ask.prompt, str) else ask.prompt
        names = [served.adapter_of(ask.model)] * len(prompts)
        written = await served.orders(prompts, names, _sampling(ask, ask.max_tokens or 16))
        head = _head("cmpl", "text_completion", ask.model)
        if ask.stream:
            return _events(_completion_chunks(written, head, ask, seconds), "[DONE]")
        texts = await asyncio.gather(*(one.whole(seconds) for one in written))
        choices = [
            {"index": i, "text": text, "finish_reason": one.row.ended, "logprobs": None}
            for i, (text, one) in enumerate(zip(texts, written, strict=True))
        ]
        return head | {"choices": choices, "usage": _usage(written)}

    @app.post("/v1/chat/completions")
    async def chat(ask: Chat) -> Any:
        prompt = served.pool.prompt_of([message.plain() for message in ask.messages])
        most = ask.max_completion_tokens or ask.max_tokens or 256
        written = await served.orders([prompt], [served.adapter_of(ask.model)], _sampling(ask, most), special=False)
        if ask.stream:
            return _events(
                _chat_chunks(written[0], _head("chatcmpl", "chat.completion.chunk", ask.model), ask, seconds), "[DONE]"
            )
        message = {"role": "assistant", "content": await written[0].whole(seconds)}
        choice = {"index": 0, "message": message, "finish_reason": written[0].row.ended, "logprobs": None}
        return _head("chatcmpl", "chat.completion", ask.model) | {"choices": [choice], "usage": _usage(written)}


def _sampling(ask: Options, most: int) -> Sampling:
    """OpenAI's options as ours, with OpenAI's own defaults."""
    temperature, top_p = (1.0 if value is None else value for value in (ask.temperature, ask.top_p))
    seed = uuid.uuid4().int % 2**31 if ask.seed is None else ask.seed
    return Sampling(most, temperature, top_p, seed=seed, stop=ask.stops())


def _paired(texts: list[str], pairs: list[str]) -> list[tuple[str, str]]:
    if len(texts) != len(pairs):
        raise InputError(f"{len(texts)} texts and {len(pairs)} second texts; wanted one each")
    return list(zip(texts, pairs, strict=True))


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(written: list[Written]) -> dict[str, int]:
    read, new = sum(len(one.row.prompt) for one in written), sum(len(one.row.ids) for one in written)
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


async def _merged(written: list[Written], seconds: float) -> AsyncIterator[tuple[int, str, str | None]]:
    """(which text, piece, how it ended) of several texts as they come."""
    for_all: asyncio.Queue[tuple[int, str, str | None] | Exception] = asyncio.Queue()

    async def forward(index: int, one: Written) -> None:
        try:
            async for piece in one.read(seconds):
                await for_all.put((index, piece, None))
            await for_all.put((index, "", one.row.ended))
        except Exception as error:
            await for_all.put(error)

    tasks = [asyncio.create_task(forward(index, one)) for index, one in enumerate(written)]
    try:
        left = len(written)
        while left:
            got = await for_all.get()
            if isinstance(got, Exception):
                raise got
            left -= got[2] is not None
            if got[1] or got[2]:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        for one in written:
            one.order.abandoned = True


async def _numbered(written: list[Written], seconds: float) -> AsyncIterator[dict[str, Any]]:
    async for index, piece, ended in _merged(written, seconds):
        yield {"index": index, "text": piece, "finish_reason": ended}


async def _completion_chunks(written: list[Written], head: dict, ask: Options, seconds: float) -> AsyncIterator[dict[str, Any]]:
    async for index, piece, ended in _merged(written, seconds):
        yield head | {"choices": [{"index": index, "text": piece, "finish_reason": ended, "logprobs": None}]}
    if (ask.stream_options or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _usage(written)}


async def _chat_chunks(one: Written, head: dict, ask: Options, seconds: float) -> AsyncIterator[dict[str, Any]]:
    yield head | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    async for _, piece, ended in _merged([one], seconds):
        yield head | {"choices": [{"index": 0, "delta": {"content": piece} if piece else {}, "finish_reason": ended}]}
    if (ask.stream_options or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _usage([one])}


def _events(chunks: AsyncIterator[dict[str, Any]], last: str | None = None) -> StreamingResponse:
    """Server-sent events, one JSON object each; an error after the start is an event too."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        except (InputError, TimeoutError, RuntimeError) as error:
            message = str(error) or "The answer took too long"
            yield f"data: {json.dumps({'error': {'message': message, 'type': 'server_error', 'code': 500}})}\n\n"
        if last:
            yield f"data: {last}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
