"""OpenAI's responses in their simple form: a text or turns in, one message out, whole or as events. Nothing
is kept between requests."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from finetune.pool.sampling import Sampling
from finetune.serving.openai_routes import chat_prompt, grammar_of, token_usage
from finetune.serving.openai_schemas import ChatMessage, Response
from finetune.serving.service import Served
from finetune.serving.streaming import WrittenPart, all_whole, events, merged


def add_responses(app: FastAPI, served: Served) -> None:
    @app.post("/v1/responses")
    async def respond(ask: Response) -> Any:
        prompt = await asyncio.to_thread(chat_prompt, served, _messages(ask), [])
        most = ask.max_output_tokens or served.answer_tokens
        # OpenAI's own defaults.
        temperature, top_p = (1.0 if value is None else value for value in (ask.temperature, ask.top_p))
        grammar = grammar_of(served, ask.text.format if ask.text else None)
        seed = uuid.uuid4().int % 2**31
        sampling = Sampling(most, temperature, top_p, seed=seed, grammar=grammar)
        ignored = served.ignored(ask)
        written = await served.orders([prompt], ask.model, sampling, special=False)
        body = _body(ask, most)
        if ask.stream:
            return events(_events(served, written[0], body), served.plain, None, ignored, named=True)
        text = (await all_whole(written, served.options.timeout_seconds))[0]
        return JSONResponse(_finished(body, written[0], text), headers=ignored)


def _messages(ask: Response) -> list[dict[str, Any]]:
    turns = [ChatMessage(role="user", content=ask.input)] if isinstance(ask.input, str) else [
        ChatMessage(role=turn.role, content=turn.content) for turn in ask.input
    ]  # fmt: skip
    before = [ChatMessage(role="system", content=ask.instructions)] if ask.instructions else []
    return [message.plain() for message in (*before, *turns)]


def _body(ask: Response, most: int) -> dict[str, Any]:
    form = {"type": "text"} if ask.text is None or ask.text.format is None else {"type": ask.text.format.type}
    return {
        "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
        "model": ask.model,
        "status": "in_progress", "output": [], "error": None, "incomplete_details": None,
        "instructions": ask.instructions, "max_output_tokens": most, "metadata": ask.metadata or {},
        "parallel_tool_calls": False, "previous_response_id": None, "store": False, "text": {"format": form},
        "temperature": ask.temperature, "top_p": ask.top_p, "tool_choice": "none", "tools": [], "usage": None,
    }  # fmt: skip


def _item(body: dict[str, Any], text: str, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_part(text)]
    return {
        "id": body["id"].replace("resp_", "msg_"), "type": "message", "role": "assistant", "status": status,
        "content": content,
    }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _finished(body: dict[str, Any], one: WrittenPart, text: str) -> dict[str, Any]:
    counts = token_usage([one])
    status = "incomplete" if one.row.ended == "length" else "completed"
    return body | {
        "status": status, "output": [_item(body, text, status)],
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "usage": {
            "input_tokens": counts["prompt_tokens"], "output_tokens": counts["completion_tokens"],
            "total_tokens": counts["total_tokens"], "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip


async def _events(served: Served, one: WrittenPart, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    # Its numbers must be without a gap: clients sort by them.
    number, item = 0, _item(body, "", "in_progress")
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}

    def event(kind: str, **what: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number - 1, **what}

    yield event("response.created", response=body)
    yield event("response.in_progress", response=body)
    yield event("response.output_item.added", output_index=0, item=item)
    yield event("response.content_part.added", **place, part=_part(""))
    text = ""
    async for piece in merged([one], served.options.timeout_seconds):
        text += piece.text
        # An empty piece may be half a character, or the end.
        if piece.text:
            yield event("response.output_text.delta", **place, delta=piece.text, logprobs=[])
    done = _finished(body, one, text)
    yield event("response.output_text.done", **place, text=text, logprobs=[])
    yield event("response.content_part.done", **place, part=_part(text))
    yield event("response.output_item.done", output_index=0, item=done["output"][0])
    yield event(f"response.{done['status']}", response=done)
