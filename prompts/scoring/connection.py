"""JSON over HTTP to an OpenAI-compatible address: tries, pauses, limits, counts of tokens. Knows HTTP; knows
no prompts."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import httpx
import numpy as np

# 4xx of other kinds stay as they are
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # answers that another try may mend
LARGEST = 1 << 27  # bytes of an answer


@dataclass
class EndpointArguments:
    """Models behind an address: `--models openai:NAME --base_url http://…`."""

    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Address of an OpenAI-compatible server, with its /v1: this project's, vLLM, "
            "llama.cpp, Ollama, hosted."
        },
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "Environment variable that holds the key, if one is wanted."},
    )
    concurrency: int = field(default=4, metadata={"help": "Requests under way at once."})
    retries: int = field(default=5, metadata={"help": "Tries after a failed one, with growing pauses."})
    request_timeout: float = field(default=60.0, metadata={"help": "Seconds that one request may take."})
    weigh_by: str = field(
        default="auto",
        metadata={
            "help": "How answers are weighed: echo, top, counts, or auto (the first that the server gives)."
        },
    )
    samples: int = field(default=20, metadata={"help": "Answers drawn for each row where they are counted."})
    price_in: float = field(
        default=0.0, metadata={"help": "Price of a million tokens read, for the count of costs."}
    )
    price_out: float = field(default=0.0, metadata={"help": "Price of a million tokens written."})


class Fault(Exception):
    """A request that came to nothing, and why."""


def reads_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """What reads a server's JSON: parts that are missing or of another kind are a Fault and end no run."""

    @wraps(function)
    def guarded(*values: Any) -> Any:
        try:
            return function(*values)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Fault(f"an answer of another form ({type(error).__name__}: {error})") from error

    return guarded


def is_finite(value: Any) -> bool:
    """Whether a part of JSON is a number that can be reckoned with."""
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


class Connection:
    """One model's address; calls from many threads at once.

    Attributes:
        tokens: read and written so far, requests and tries after a failed one.
    """

    def __init__(self, model: str, options: EndpointArguments) -> None:
        self.model, self.options = model, options
        key = os.environ.get(options.api_key_env, "")  # never kept in an object that is shown
        self.client = httpx.Client(
            base_url=options.base_url.rstrip("/") + "/",
            timeout=options.request_timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=options.concurrency),
        )
        weakref.finalize(self, self.client.close)  # threads may hold it until the end
        self.tokens = Counter({"prompt_tokens": 0, "completion_tokens": 0, "requests": 0, "retries": 0})
        self.lock, self.failed = threading.Lock(), 0

    def post(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The server's answer, tried again with growing pauses where that may help.

        Raises:
            Fault: it doesn't come, or is no JSON object.
        """
        if self.failed > 3 * self.options.concurrency:
            raise Fault("the server has stopped answering")
        for attempt in range(self.options.retries + 1):
            reason, pause = self._try(path, asked)
            if reason is None:
                self.failed = 0  # one that answers is alive
                return pause
            if pause is None:  # another try is no use
                break
            if attempt < self.options.retries:
                self.tokens["retries"] += 1
                # a server that names a pause is given it; others twice the last, not all at once
                time.sleep(pause or min(0.25 * 2**attempt, 30) * random.uniform(0.5, 1.0))
        self.failed += pause is not None
        raise Fault(reason)

    def _try(self, path: str, asked: dict[str, Any]) -> tuple[str | None, Any]:
        """(None, the answer), or (reason, seconds to wait, 0 for as many as usual, None where another try is
        no use)."""
        try:
            response, body = self._answer(path, {"model": self.model, **asked})
        except httpx.TimeoutException:
            return f"no answer within {self.options.request_timeout:g} s (--request_timeout)", 0
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}", 0
        if response.status_code != 200:
            text = " ".join(body[:200].split())
            wait = response.headers.get("retry-after", "")
            # seconds; dates are left
            pause = min(float(wait), 60.0) if wait.replace(".", "", 1).isdigit() else 0
            return f"status {response.status_code}: {text}", pause if response.status_code in AGAIN else None
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            # cut off, a proxy's page, or nothing at all: another try may bring what was meant
            shown = " ".join(body[:120].split())
            return f"an answer that is no JSON: {shown}" if shown else "an empty answer", 0
        choices = found.get("choices") if isinstance(found, dict) else None
        if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
            # what a server says in its own form it would say again
            return f"other JSON than wanted: {' '.join(body[:120].split())}", None
        usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
        with self.lock:
            self.tokens["requests"] += 1
            for kind in ("prompt_tokens", "completion_tokens"):
                self.tokens[kind] += int(usage[kind]) if is_finite(usage.get(kind)) else 0
        return None, found

    def _answer(self, path: str, asked: dict[str, Any]) -> tuple[httpx.Response, str]:
        """The response and its text, within --request_timeout in all.

        Raises:
            httpx.HTTPError: it doesn't come, not in time, or is larger than any answer.
        """
        end, parts, size = time.monotonic() + self.options.request_timeout, [], 0
        with self.client.stream("POST", path, json=asked) as response:
            # a server that sends a little now and then never runs into the client's own limit
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("too slow")
                if size > LARGEST:
                    raise httpx.DecodingError(f"an answer of more than {LARGEST} bytes")
        return response, b"".join(parts).decode("utf-8", errors="replace")
