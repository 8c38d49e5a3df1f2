"""OpenAI's completions and chats with the adapter as `model`, so that existing clients work. Knows that API;
makes no batches."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from finetune.errors import InputError
from finetune.pool.registry import BASE, UnknownAdapter
from finetune.pool.sampling import Sampling
from finetune.serving import logprobs, tool_calls
from finetune.serving.openai_schemas import Chat, ChatOptions, Completion, Format
from finetune.serving.service import Served
from finetune.serving.streaming import Piece, WrittenPart, all_whole, events, merged


def add_openai(app: FastAPI, served: Served) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served, name) for name in _names(served)]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        if model not in _names(served) and model != served.base:
            raise UnknownAdapter(f"Unknown model {model!r}; a list of all models lists what there is")
        return _model(served, model)

    @app.post("/v1/completions")
    async def complete(ask: Completion) -> Any:
        head, echo = _head("cmpl", "text_completion", ask.model), bool(ask.echo)
        prompts: list[Any] = [ask.prompt] if isinstance(ask.prompt, str) else list(ask.prompt)
        # A list of numbers is one prompt in tokens.
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        # 16 is OpenAI's own default of completions.
        most, many = 16 if ask.max_tokens is None else ask.max_tokens, ask.best_of or ask.n or 1
        if most == 0 and not echo:
            raise InputError("max_tokens 0 writes nothing; wanted 1 or more, or echo: true")
        noted = 0 if many > (ask.n or 1) and ask.logprobs is None else ask.logprobs
        # Choosing the best needs every token's own log-probability, asked for or not.
        sampling = _sampling(served, ask, most, noted=noted, form=ask.response_format, echo=echo)
        ignored = served.ignored(ask)
        written = await served.orders(_each(prompts, many), ask.model, sampling)
        if ask.stream:
            chunks = _completion_chunks(served, written, head, ask)
            return events(chunks, served.plain, "[DONE]", ignored)
        texts = await all_whole(written, served.options.timeout_seconds)
        chosen = _best(written, texts, len(prompts), ask.n or 1)
        choices = [
            {
                "index": i,
                "text": (_prompt(served, one) if echo else "") + text,
                "finish_reason": one.row.ended,
            }
            | {"logprobs": _noted(served, one, ask)}
            for i, (one, text) in enumerate(chosen)
        ]
        return JSONResponse(head | {"choices": choices, "usage": token_usage(written, many)}, headers=ignored)

    @app.post("/v1/chat/completions")
    async def chat(ask: Chat) -> Any:
        # "none" forbids calls, so that the template says nothing of tools.
        tools = [tool.plain() for tool in ask.tools or []] if ask.tool_choice != "none" else []
        messages = [message.plain() for message in ask.messages]
        # In a thread: templates of others may take their time.
        prompt = await asyncio.to_thread(chat_prompt, served, messages, tools)
        unread = await asyncio.to_thread(served.pool.names_unread, messages, tools)
        most = ask.max_completion_tokens or ask.max_tokens or served.answer_tokens
        noted = ask.top_logprobs or 0 if ask.logprobs else None
        sampling = _sampling(served, ask, most, noted=noted, form=ask.response_format)
        if ask.must_call:
            # One named tool is called once, as OpenAI's own servers do it.
            several = ask.called is None and ask.parallel_tool_calls is not False
            schema = tool_calls.forced_schema(tools, ask.called, several)
            sampling = replace(sampling, grammar=served.pool.grammars.json(schema))
        ignored = served.ignored(ask, ["messages.name"] if unread else [])
        # A template has written the special tokens.
        written = await served.orders([prompt] * (ask.n or 1), ask.model, sampling, special=False)
        offer = tool_calls.Offer(
            {tool["function"]["name"] for tool in tools}, ask.parallel_tool_calls is not False
        )
        if ask.stream:
            head = _head("chatcmpl", "chat.completion.chunk", ask.model)
            return events(_chat_chunks(served, written, head, ask, offer), served.plain, "[DONE]", ignored)
        texts = await all_whole(written, served.options.timeout_seconds)
        choices = [
            _chat_choice(i, text, one, offer)
            | {"logprobs": _noted(served, one, ask) if ask.logprobs else None}
            for i, (text, one) in enumerate(zip(texts, written, strict=True))
        ]
        body = {"choices": choices, "usage": token_usage(written, len(written))}
        return JSONResponse(_head("chatcmpl", "chat.completion", ask.model) | body, headers=ignored)


def chat_prompt(served: Served, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """A chat as the text that its answer continues.

    Raises:
        InputError: nothing to answer, or a template that can't say it.
    """
    # An answer to nothing: some templates fail on it, others answer their own example.
    if not messages[-1]["content"].strip() and not messages[-1].get("tool_calls"):
        raise InputError("The last message is empty; wanted one or more words")
    return served.pool.prompt_of(messages, tools)


def _names(served: Served) -> list[str]:
    known = served.pool.adapters()
    # Models that write; adapters with heads have endpoints of their own.
    return [BASE, *(name for name, entry in known.items() if entry["task"] in (served.pool.task, None))]


def _model(served: Served, name: str) -> dict[str, Any]:
    parent = {} if name in (BASE, served.base) else {"parent": BASE}
    return {"id": name, "object": "model", "created": served.since, "owned_by": "finetune"} | parent


def _each(prompts: list[Any], many: int) -> list[Any]:
    # Of the product: either number alone may be small.
    if len(prompts) * many > 256:
        raise InputError(f"{len(prompts)} prompts with {many} answers each; wanted 256 answers at most")
    return [prompt for prompt in prompts for _ in range(many)]


def _best(
    written: list[WrittenPart], texts: list[str], prompts: int, wanted: int
) -> list[tuple[WrittenPart, str]]:
    """Of each prompt's answers as many as are wanted, those first whose tokens are likeliest on average."""
    many, pairs = len(written) // prompts, list(zip(written, texts, strict=True))
    if many == wanted:
        return pairs

    def worth(pair: tuple[WrittenPart, str]) -> float:
        row = pair[0].row
        # New tokens only: with `echo` the prompt's were noted before them.
        values = [one.logprob for one in row.noted[len(row.noted) - len(row.ids) :]]
        # A mean and not a sum, which would choose the shortest.
        return sum(value for value in values if value is not None) / max(1, len(values))

    groups = [pairs[i : i + many] for i in range(0, len(pairs), many)]
    return [pair for group in groups for pair in sorted(group, key=worth, reverse=True)[:wanted]]


def _sampling(
    served: Served, ask: ChatOptions, most: int, *, noted: int | None, form: Format | None, echo: bool = False
) -> Sampling:
    """OpenAI's options as ours, with OpenAI's own defaults."""
    temperature, top_p = (1.0 if value is None else value for value in (ask.temperature, ask.top_p))
    # OpenAI draws anew each time; 62 bits, since each answer of a request adds its number to the seed.
    seed = uuid.uuid4().int % 2**31 if ask.seed is None else ask.seed % 2**62
    bias = {int(token): value for token, value in (ask.logit_bias or {}).items()}
    served.pool.check_tokens(list(bias))
    return Sampling(
        most, temperature, top_p, max(0, ask.top_k or 0), seed, ask.stops(), ask.min_p or 0.0,
        ask.frequency_penalty or 0.0, ask.presence_penalty or 0.0, ask.repetition_penalty or 1.0, bias, noted,
        echo, grammar_of(served, form),
    )  # fmt: skip


def grammar_of(served: Served, form: Format | None) -> Any:
    """What holds an answer to its form; None where any text will do."""
    if form is None or form.type == "text":
        return None
    grammars = served.pool.grammars
    if form.type == "regex":
        return grammars.regex(form.pattern or "")
    if form.type == "choice":
        return grammars.choice(form.choices or [])
    return grammars.json(form.wanted if form.type == "json_schema" else None)


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def token_usage(written: list[WrittenPart], many: int = 1) -> dict[str, int]:
    """Tokens read and written; a prompt with several answers counts once."""
    # Every `many`-th: answers to one prompt stand side by side.
    read, new = sum(len(w.row.prompt) for w in written[::many]), sum(len(w.row.ids) for w in written)
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}


def _words(served: Served, ask: ChatOptions) -> logprobs.TokenWords:
    decode = partial(served.pool.texts.decode, special=True)
    return logprobs.TokenWords(decode, bool(ask.return_tokens_as_token_ids))


def _noted(served: Served, one: WrittenPart, ask: Completion | Chat) -> Any:
    if isinstance(ask, Chat):
        return logprobs.of_chat(one.row.noted, _words(served, ask))
    return None if ask.logprobs is None else logprobs.of_completion(one.row.noted, _words(served, ask))


def _prompt(served: Served, one: WrittenPart) -> str:
    return one.row.prompt_text or served.pool.texts.decode(one.row.prompt)


async def _completion_chunks(
    served: Served, written: list[WrittenPart], head: dict, ask: Completion
) -> AsyncIterator[dict[str, Any]]:
    words = [_words(served, ask) for _ in written]
    begun = [not ask.echo] * len(written)
    async for piece in merged(written, served.options.timeout_seconds):
        # Before the first piece of each answer, as without streaming.
        before = "" if begun[piece.index] else _prompt(served, written[piece.index])
        begun[piece.index] = True
        said = None if ask.logprobs is None else logprobs.of_completion(piece.noted, words[piece.index])
        choice = {"index": piece.index, "text": before + piece.text, "finish_reason": piece.ended}
        yield head | {"choices": [choice | {"logprobs": said}]}
    if ask.stream_options is not None and ask.stream_options.include_usage:
        yield head | {"choices": [], "usage": token_usage(written, ask.n or 1)}


def _chat_choice(index: int, text: str, one: WrittenPart, offer: tool_calls.Offer) -> dict[str, Any]:
    content, calls = offer.read(text)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    message |= {"tool_calls": calls} if calls else {}
    return {"index": index, "message": message, "finish_reason": "tool_calls" if calls else one.row.ended}


async def _chat_chunks(
    served: Served, written: list[WrittenPart], head: dict, ask: Chat, offer: tool_calls.Offer
) -> AsyncIterator[dict[str, Any]]:
    words, held = [_words(served, ask) for _ in written], [""] * len(written)
    # The role alone, as OpenAI's first chunk.
    for index in range(len(written)):
        yield head | {"choices": [_delta(index, {"role": "assistant", "content": ""}, None)]}
    async for piece in merged(written, served.options.timeout_seconds):
        index, ended = piece.index, piece.ended
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if offer.names:
            # what may be a call is held back until it is known whether it is one
            held[index] += piece.text
            delta, ended = _held(held, piece, offer)
            if not delta and ended is None:
                continue
        said = logprobs.of_chat(piece.noted, words[index]) if ask.logprobs else None
        yield head | {"choices": [_delta(index, delta, ended) | ({"logprobs": said} if ask.logprobs else {})]}
    if ask.stream_options is not None and ask.stream_options.include_usage:
        yield head | {"choices": [], "usage": token_usage(written, len(written))}


def _held(held: list[str], piece: Piece, offer: tool_calls.Offer) -> tuple[dict[str, Any], str | None]:
    text = held[piece.index]
    if piece.ended is None and tool_calls.may_call(text):
        return {}, None
    # Told once: what is held begins anew.
    held[piece.index] = ""
    content, calls = offer.read(text) if piece.ended else (text, [])
    # Streamed calls carry their number, by which clients put pieces together.
    numbered = [{"index": i} | call for i, call in enumerate(calls)]
    delta = ({"content": content} if content else {}) | ({"tool_calls": numbered} if calls else {})
    return delta, "tool_calls" if calls else piece.ended


def _delta(index: int, delta: dict[str, Any], ended: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": ended}
