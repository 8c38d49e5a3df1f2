"""A model behind an OpenAI-compatible address, asked as a local one is. Knows the JSON of such servers; knows
no weights.

Log-probabilities come from `echo` where the server gives them, else from the likeliest first tokens, else
from counts of drawn answers; `how` says which. The key is read from the environment and goes nowhere else.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np

from finetune.errors import InputError
from prompts.scoring.connection import Connection, EndpointArguments, Fault, is_finite, reads_json
from prompts.scoring.drawn import LETTERS, LONG, named, with_letters
from prompts.scoring.generate import Drawing, cut
from prompts.scoring.score import Request
from prompts.templates.entries import Ending

logger = logging.getLogger(__name__)
ENDPOINT_PREFIX = "openai:"
WAYS = ("echo", "top", "counts")
TOP = (20, 5)  # likeliest tokens asked for; some servers give fewer
IN_WORDS = {
    "echo": "log-probabilities of the whole answers (echo)",
    "top": "log-probabilities of the answers' first tokens, among the likeliest (top_logprobs)",
    "counts": "counts of {samples} drawn answers",
}


class Endpoint:
    """Asks one model of one server; many requests at once. A request that fails gives None, and its reason in
    `silent`."""

    family = "causal"
    tokenizer = None
    longest = 10**9  # an address doesn't say what its model reads
    virtual_tokens = 0

    def __init__(self, name: str, options: EndpointArguments) -> None:
        """
        Raises:
            InputError: no address, an unknown way, an address that doesn't answer.
        """
        if not options.base_url:
            raise InputError(
                f"{ENDPOINT_PREFIX}{name} is a model behind an address; name it by --base_url http://…/v1"
            )
        if options.weigh_by not in ("auto", *WAYS):
            raise InputError(f"--weigh_by {options.weigh_by}; wanted auto or one of: {', '.join(WAYS)}")
        self.name, self.options = name, options
        self.connection = Connection(name, options)
        self.tokens = self.connection.tokens
        self.silent: dict[str, int] = {}
        self.reasons: dict[str, str] = {}  # of the last failure, by the prompt's text
        self.lock = threading.Lock()
        self.completes = True  # whether there are plain completions, or chats alone
        self.how = options.weigh_by if options.weigh_by != "auto" else self._find_way()

    @property
    def told(self) -> str:
        """How answers are weighed."""
        return IN_WORDS[self.how].format(samples=self.options.samples)

    @property
    def cost(self) -> float:
        """Of all tokens so far."""
        priced = (("prompt_tokens", self.options.price_in), ("completion_tokens", self.options.price_out))
        return sum(self.tokens[kind] * price for kind, price in priced) / 1e6

    def fingerprint(self) -> str:
        """What a kept answer depends on besides its request; the key isn't part of it."""
        made_of = [
            str(self.connection.client.base_url),
            self.name,
            self.how,
            self.options.samples if self.how == "counts" else 0,
        ]
        return sha256(json.dumps(made_of).encode()).hexdigest()  # the address too: two servers, two models

    def __call__(self, requests: Sequence[Request]) -> list[Any]:
        """As Scorer's; None for a request that failed, or for an answer where each is asked alone."""
        if self.how == "echo":
            flat = [(r, answer) for r in requests for answer in r.answers]
            scored = iter(self._all(self._echoed, flat))
            # what came of a request stays, so that it can be kept and needn't be asked again
            return [[next(scored) for _ in r.answers] for r in requests]
        weigh = self._first_tokens if self.how == "top" else self._counted
        return self._all(weigh, list(requests))

    def write(
        self, requests: Sequence[Request], ending: Ending, drawing: Drawing | None = None
    ) -> list[str | None]:
        """What the model writes, up to the ending; None for a request that failed."""

        def one(request: Request) -> str:
            asked: dict[str, Any] = {"max_tokens": ending.tokens, "temperature": 0}
            if drawing:
                asked |= {
                    "temperature": drawing.temperature,
                    "top_p": drawing.top_p,
                    "seed": drawing.number(request.context),
                }
            return cut(self._texts(request, asked)[0], ending)

        return self._all(one, list(requests))

    def _all(self, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """Each item's result, as many at once as allowed; reasons of what failed are kept."""

        def tried(item: Any) -> Any:
            try:
                return work(item)
            except Fault as fault:
                request = item[0] if isinstance(item, tuple) else item  # (request, answer) where it is echoed
                with self.lock:
                    self.silent[str(fault)] = self.silent.get(str(fault), 0) + 1
                    self.reasons[request.context] = str(fault)
                return None

        with ThreadPoolExecutor(self.options.concurrency) as pool:
            return list(pool.map(tried, items))

    def _find_way(self) -> str:
        """The first way that the server gives, tried on a short text.

        Raises:
            InputError: the server doesn't answer at all.
        """
        try:
            self.connection.post("completions", {"prompt": "One, two,", "max_tokens": 1})
        except Fault as fault:
            if not self._chats(fault):
                raise InputError(
                    f"{ENDPOINT_PREFIX}{self.name}: {fault}. Set --base_url or --models"
                ) from fault
            self.completes = False
        tries: list[tuple[str, Callable[[], Any]]] = [
            ("echo", lambda: self._echoed((Request("One, two,", (" three",)), " three"))),
            ("top", lambda: self._likeliest(Request("One, two,", (" three",)))),
        ]  # without completions there is nothing to echo
        for way, attempt in tries[0 if self.completes else 1 :]:
            try:
                attempt()
                return way
            except Fault as fault:
                logger.warning("%s gives no log-probabilities by %s: %s", self.name, way, fault)
        self.silent.clear()  # of trials alone
        return "counts"

    def _chats(self, fault: Fault) -> bool:
        """Whether a server that refused a completion answers chats; some say so by 400."""
        if not str(fault).startswith(("status 400", "status 404", "status 405", "status 422")):
            return False
        try:
            turns = [{"role": "user", "content": "One, two,"}]
            self.connection.post("chat/completions", {"messages": turns, "max_tokens": 1})
        except Fault:
            return False
        return True

    # a chat lays turns out by itself
    def _ask(self, request: Request, asked: dict[str, Any]) -> dict[str, Any]:
        """A request as a chat where it has turns, or where there is nothing else, and as a text otherwise."""
        if self.completes and not request.turns:
            try:
                return self.connection.post("completions", {"prompt": request.context, **asked})
            except Fault as fault:
                # a server of chats alone; with --weigh_by nothing was tried before
                if not _elsewhere(fault):
                    raise
                self.completes = False
        turns = request.turns or (("user", request.context),)
        messages = [{"role": role, "content": content} for role, content in turns]
        if request.prefill:
            messages.append({"role": "assistant", "content": request.prefill})
        return self.connection.post("chat/completions", {"messages": messages, **asked})

    @reads_json
    def _texts(self, request: Request, asked: dict[str, Any]) -> list[str]:
        texts = []
        for choice in self._ask(request, asked)["choices"]:
            text = choice.get("text") if "text" in choice else (choice.get("message") or {}).get("content")
            if not isinstance(text, str):
                raise Fault(f"an answer without text: {json.dumps(choice)[:120]}")
            texts.append(text)
        return texts

    @reads_json
    def _echoed(self, pair: tuple[Request, str]) -> np.ndarray:
        """Log-probabilities of an answer's tokens, from the text said back with them."""
        request, answer = pair
        if request.turns or not self.completes:
            raise Fault("a chat can't be said back; set --chat false or --weigh_by top")
        text = request.context + answer
        asked = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        try:
            found = self.connection.post("completions", asked)
        except Fault as fault:
            if "status 4" not in str(fault):
                raise
            found = self.connection.post(
                "completions", asked | {"max_tokens": 1}
            )  # some write one token at least
        told = found["choices"][0].get("logprobs") or {}
        tokens, values = told.get("tokens"), told.get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
            raise Fault("no log-probabilities of the prompt (echo)")
        ends = _ends(tokens, told.get("text_offset"), text)
        kept = [
            # a token over the border belongs to the answer, as where a local model is asked
            v
            for v, (start, end) in zip(values, ends, strict=True)
            if end > len(request.context) and start < len(text)
        ]
        if not kept or not all(map(is_finite, kept)):
            raise Fault("no log-probabilities of the answer's tokens (echo)")
        return np.array(kept, dtype=np.float32)

    @reads_json
    def _likeliest(self, request: Request) -> dict[str, float]:
        """The likeliest first tokens and their log-probabilities."""
        fault = Fault("no top_logprobs")
        for most in TOP:
            # a server may turn out to have chats alone
            chat = bool(request.turns) or not self.completes
            asked = {
                "max_tokens": 1,
                "temperature": 0,
                **({"logprobs": True, "top_logprobs": most} if chat else {"logprobs": most}),
            }
            try:
                told = self._ask(request, asked)["choices"][0].get("logprobs") or {}
            except Fault as error:
                fault = error
                continue
            pairs: list[tuple[str, Any]] = []
            if told.get("content"):
                pairs = [
                    (one["token"], one["logprob"]) for one in told["content"][0].get("top_logprobs") or []
                ]
            elif told.get("top_logprobs"):
                pairs = list((told["top_logprobs"][0] or {}).items())
            found = {token: float(value) for token, value in pairs if is_finite(value)}
            if found:
                return found
            fault = Fault("no top_logprobs in the answer")
        raise fault

    def _first_tokens(self, request: Request) -> list[np.ndarray]:
        """Each answer by the likeliest token that it begins with; one that isn't among them is below them
        all."""
        top = self._likeliest(request)
        found: list[float | None] = []
        taken: dict[str, str] = {}
        for answer in request.answers:
            # " Yes" for "yes"
            fit = [t for t in top if t.strip() and answer.strip().lower().startswith(t.strip().lower())]
            best = max(fit, key=lambda t: top[t], default=None)
            if best is not None and taken.setdefault(best, answer) != answer:
                raise Fault(
                    f"{taken[best]!r} and {answer!r} begin with the same token; set --weigh_by counts"
                )
            found.append(None if best is None else top[best])
        if all(value is None for value in found):
            raise Fault("none of the answers is among the likeliest first tokens")
        floor = min(top.values()) - 1.0  # below all that is shown
        return [np.array([floor if value is None else value], dtype=np.float32) for value in found]

    def _counted(self, request: Request) -> list[np.ndarray]:
        """Log of the smoothed share of drawn answers that begin with each answer, or name its letter."""
        answers = [answer.strip() for answer in request.answers]
        lettered = any(len(answer.split()) >= LONG for answer in answers) and len(answers) <= len(LETTERS)
        if lettered:
            request, answers = with_letters(request, answers), list(LETTERS[: len(answers)])
        room = max(len(answer.encode()) for answer in answers) // 2 + 8
        asked = {"max_tokens": room, "temperature": 1, "n": self.options.samples}
        try:
            texts = self._texts(request, asked)
        except Fault as fault:
            if "status 4" not in str(fault):
                raise
            texts = []  # some servers refuse to give several at once
        while len(texts) < self.options.samples:  # and some give one whatever they are asked
            texts += self._texts(request, asked | {"n": 1, "seed": len(texts)})
        # about two bytes a token, and some room
        counts = Counter(named(text, answers) for text in texts[: self.options.samples])
        known = sum(counts[answer] for answer in answers)
        if not known:
            raise Fault(f"none of {len(texts)} drawn answers was one of: {', '.join(answers)[:80]}")
        return [
            np.array([np.log((counts[a] + 0.5) / (known + 0.5 * len(answers)))], dtype=np.float32)
            for a in answers
        ]


def _elsewhere(fault: Fault) -> bool:
    return str(fault).startswith(("status 404", "status 405"))


def _ends(tokens: list[str], offsets: Any, text: str) -> list[tuple[int, int]]:
    """Where each token begins and ends in the text, by the server's offsets or by their lengths."""
    if isinstance(offsets, list) and len(offsets) == len(tokens) and all(isinstance(o, int) for o in offsets):
        return list(zip(offsets, [*offsets[1:], max(len(text), offsets[-1] + 1)], strict=True))
    places = np.cumsum([0, *map(len, tokens)])
    # without offsets the tokens themselves must spell the text
    if not "".join(tokens).startswith(text):
        raise Fault("tokens that don't say where they stand in the text (text_offset)")
    return [(int(a), int(b)) for a, b in pairwise(places)]
