"""Who may ask, how much, and from where. Knows heads of requests and clocks; knows no routes and no
models."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field

from finetune.errors import InputError

LOCAL = ("localhost", "127.0.0.1", "::1")
# A context variable: many requests are answered in one thread, each in a context of its own.
current_key: ContextVar[Key | None] = ContextVar("current_key", default=None)


@dataclass
class AccessArguments:
    """Who may ask, and how much."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on."})
    port: int = field(default=8000, metadata={"help": "Port to listen on."})
    api_keys: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Keys that requests must bring, each as name=key, or name=key,REQUESTS,TOKENS with what "
            "it may ask for in a minute (else the variable API_KEY; without any, everyone may ask)."
        },
    )
    admin_key: str | None = field(
        default=None,
        metadata={
            "help": "Key that adds and removes adapters (else the variable ADMIN_KEY; without one, only a "
            "server that listens on this machine alone lets anyone do so)."
        },
    )
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata={
            "help": ("Names that requests may call this server by (default: any; on 127.0.0.1, its own).")
        },
    )
    cors_origins: list[str] = field(
        default_factory=list, metadata={"help": "Pages' origins that may ask from a browser, or *."}
    )
    connections_per_address: int = field(
        default=64,
        metadata={"help": ("Open connections of one address; beyond, its oldest idle ones are closed.")},
    )
    tls_certificate: str | None = field(default=None, metadata={"help": "A PEM file: speak HTTPS."})
    tls_key: str | None = field(default=None, metadata={"help": "The certificate's key, a PEM file."})
    drain_seconds: float = field(
        default=30.0, metadata={"help": "How long running requests may go on after a SIGTERM."}
    )
    rescan_seconds: float = field(
        default=0.0,
        metadata={
            "help": ("Look this often for new, changed and vanished folders in --adapters_dir; 0 never.")
        },
    )
    log_texts: bool = field(default=False, metadata={"help": "Write bodies of requests into the log."})


class Meter:
    """What was used in the last minute, against a limit."""

    def __init__(self, limit: float) -> None:
        self.limit, self._used = limit, deque[tuple[float, float]]()
        # Asked in the event loop, used from other threads too.
        self._turn = threading.Lock()

    def wait(self) -> float:
        """Seconds until more may be used; 0 now."""
        # Monotonic: a clock that is set back would keep a key out for as long.
        now = time.monotonic()
        with self._turn:
            # Only what is a minute old falls out: the window slides, and doesn't begin anew each minute.
            while self._used and self._used[0][0] <= now - 60:
                self._used.popleft()
            # By what was used already: a request beyond the whole limit must come through some time.
            if sum(amount for _, amount in self._used) < self.limit:
                return 0.0
            # When the oldest falls out, there is room again.
            return self._used[0][0] + 60 - now

    def use(self, amount: float) -> None:
        """Note what was used."""
        with self._turn:
            self._used.append((time.monotonic(), amount))


@dataclass(eq=False)
class Key:
    """One key, with what it may ask for in a minute."""

    name: str
    secret: str
    requests: Meter = field(default_factory=lambda: Meter(math.inf))
    tokens: Meter = field(default_factory=lambda: Meter(math.inf))

    def wait(self) -> float:
        """Seconds until the next request may come; 0 now."""
        return max(self.requests.wait(), self.tokens.wait())


def parse_keys(given: list[str]) -> list[Key]:
    """Keys as `--api_keys` has them.

    Raises:
        InputError: one that is no name=key, or limits that are no numbers.
    """
    found = []
    for entry in given:
        name, _, rest = entry.partition("=")
        # A key holds no comma; what stands behind the first are its limits.
        secret, *limits = rest.split(",")
        if (
            not name
            or not secret
            or len(limits) not in (0, 2)
            # at least one: a key that may ask for nothing is a key to leave out
            or not all(one.strip().isdecimal() and int(one) > 0 for one in limits)
        ):
            # Without the secret: messages end in logs.
            raise InputError(
                f"--api_keys {name}=…; wanted name=key or name=key,REQUESTS,TOKENS, both 1 or more"
            )
        requests, tokens = (float(one) for one in limits or ("inf", "inf"))
        found.append(Key(name, secret, Meter(requests), Meter(tokens)))
    return found


def key_of(authorization: bytes, keys: list[Key]) -> Key | None:
    """The key that a request brings; all are compared, so that the time tells nothing."""
    found = None
    for key in keys:
        # In constant time, and no stop at the first that fits.
        if hmac.compare_digest(authorization, b"Bearer " + key.secret.encode()):
            found = key
    return found


def charge(tokens: int) -> None:
    """Note tokens for the key of the request that is being answered."""
    # None where no keys are wanted, or outside a request.
    key = current_key.get()
    if key is not None:
        key.tokens.use(tokens)
