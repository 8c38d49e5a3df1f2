"""OpenAI's completions and chats with the adapter as `model`, so that existing clients work. Knows that API;
makes no batches."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from finetune.errors import InputError
from finetune.pool.sampling import Sampling
from finetune.serving.schemas import Chat, Completion, Options
from finetune.serving.service import BASE, Served
from finetune.serving.streaming import Written, all_whole, events, merged


def add_openai(app: FastAPI, served: Served) -> None:
    seconds = served.options.timeout_seconds

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [BASE, *(name for name, e in served.pool.adapters().items() if e["task"] == served.pool.task)]
        return {
            "object": "list",
            "data": [{"id": n, "object": "model", "created": 0, "owned_by": "finetune"} for n in names],
        }

    @app.post("/v1/completions")
    async def complete(ask: Completion) -> Any:
        prompts = [ask.prompt] if isinstance(ask.prompt, str) else ask.prompt
        names = [served.adapter_of(ask.model)] * len(prompts)
        written = await served.orders(prompts, names, _sampling(ask, ask.max_tokens or 16))
        head = _head("cmpl", "text_completion", ask.model)
        if ask.stream:
            return events(_completion_chunks(written, head, ask, seconds), served.plain, "[DONE]")
        texts = await all_whole(written, seconds)
        choices = [
            {"index": i, "text": text, "finish_reason": one.row.ended, "logprobs": None}
            for i, (text, one) in enumerate(zip(texts, written, strict=True))
        ]
        return head | {"choices": choices, "usage": _usage(written)}

    @app.post("/v1/chat/completions")
    async def chat(ask: Chat) -> Any:
        messages = [message.plain() for message in ask.messages]
        if not messages[-1]["content"].strip():
            raise InputError("The last message is empty; wanted one or more words")
        prompt = await asyncio.to_thread(served.pool.prompt_of, messages)
        most = ask.max_completion_tokens or ask.max_tokens or 256
        written = await served.orders(
            [prompt], [served.adapter_of(ask.model)], _sampling(ask, most), special=False
        )
        if ask.stream:
            head = _head("chatcmpl", "chat.completion.chunk", ask.model)
            return events(_chat_chunks(written[0], head, ask, seconds), served.plain, "[DONE]")
        message = {"role": "assistant", "content": (await all_whole(written, seconds))[0]}
        choice = {"index": 0, "message": message, "finish_reason": written[0].row.ended, "logprobs": None}
        return _head("chatcmpl", "chat.completion", ask.model) | {
            "choices": [choice],
            "usage": _usage(written),
        }


def _sampling(ask: Options, most: int) -> Sampling:
    """OpenAI's options as ours, with OpenAI's own defaults."""
    temperature, top_p = (1.0 if value is None else value for value in (ask.temperature, ask.top_p))
    seed = uuid.uuid4().int % 2**31 if ask.seed is None else ask.seed
    return Sampling(most, temperature, top_p, seed=seed, stop=ask.stops())


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(written: list[Written]) -> dict[str, int]:
    read, new = sum(len(one.row.prompt) for one in written), sum(len(one.row.ids) for one in written)
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


async def _completion_chunks(
    written: list[Written], head: dict, ask: Options, seconds: float
) -> AsyncIterator[dict[str, Any]]:
    async for index, piece, ended in merged(written, seconds):
        yield head | {"choices": [{"index": index, "text": piece, "finish_reason": ended, "logprobs": None}]}
    if ask.stream_options is not None and ask.stream_options.include_usage:
        yield head | {"choices": [], "usage": _usage(written)}


async def _chat_chunks(
    one: Written, head: dict, ask: Options, seconds: float
) -> AsyncIterator[dict[str, Any]]:
    yield head | {
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    }
    async for _, piece, ended in merged([one], seconds):
        yield head | {
            "choices": [{"index": 0, "delta": {"content": piece} if piece else {}, "finish_reason": ended}]
        }
    if ask.stream_options is not None and ask.stream_options.include_usage:
        yield head | {"choices": [], "usage": _usage([one])}
