"""Who may in, how often, and with how much: one gate before every route.

It is plain ASGI and wraps the whole app, so that no route and no failure gets around it: the default is to refuse.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tristep.server import frontend
from tristep.server.errors import ApiError, error_response
from tristep.server.metrics import Metrics
from tristep.server.realtime_secrets import PREFIX as SECRET
from tristep.server.realtime_secrets import Secrets
from tristep.server.settings import MIB, Settings, is_address

log = logging.getLogger("tristep.server")

PUBLIC = frozenset({"/health", "/healthz", "/readyz", "/ping", *frontend.FILES})
"""Need no key; the page asks its reader for one."""
PREFIXES = ("/v1", "/step_plan/v1")
"""Where the API lies; the second is StepFun's."""
UPLOADS = ("/audio/transcriptions", "/audio/translations", "/audio/asr/sse", "/audio/voices", "/audio/voice_consents",
           "/chat/completions")  # fmt: skip
"""Paths under a prefix whose bodies hold files; the other bodies are small."""
SMALL_BODY = MIB
DRAINED = 64 * MIB
"""Bytes of a body that are read and dropped after it was refused, so that the client gets to read why."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
HOST = re.compile(r"(?:\[(?P<address>[0-9a-fA-F:.]+)\]|(?P<name>[\w.-]+))(?::\d+)?")
KEY_PROTOCOL = "openai-insecure-api-key."
MAX_CLIENTS = 10_000
"""Clients whose rates are remembered."""


class Gate:
    """Checks each request before the app sees it, and signs each answer with a request id."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, secrets: Secrets) -> None:
        self.app, self.settings, self.metrics, self.secrets = app, settings, metrics, secrets
        self.keys = [key.encode() for key in settings.api_keys]
        self.rate = Rate(settings.max_requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, started, status = chosen_request_id(Headers(scope=scope)), time.perf_counter(), 0

        async def signed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        limit = self.body_limit(scope["path"])
        try:
            await self.check(scope, limit)
        except ApiError as error:
            await drain(receive)
            await error_response(error)(scope, receive, signed)
        else:
            await self.app(scope, counted(receive, limit), signed)
        finally:
            seconds = time.perf_counter() - started
            self.metrics.request(scope, status, seconds)
            path = quote(scope["path"])  # the query may hold a key
            log.info("%s %s %s %.0f ms %s", scope["method"], path, status or "left", 1000 * seconds, request_id)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse an upgrade as a request is refused, or let the app answer it."""
        request_id, started = chosen_request_id(Headers(scope=scope)), time.perf_counter()
        how = "left"

        async def signed(message: Message) -> None:
            nonlocal how
            if message["type"] == "websocket.http.response.start":
                how = str(message["status"])
            elif message["type"] == "websocket.close":
                how = str(message.get("code", 1000))
            if message["type"] in ("websocket.http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.check(scope, SMALL_BODY)
        except ApiError as error:
            await error_response(error)(scope, receive, signed)
        else:
            await self.app(scope, receive, signed)
        finally:
            log.info("WS %s %s %.1f s %s", quote(scope["path"]), how, time.perf_counter() - started, request_id)

    def body_limit(self, path: str) -> int:
        """Return how many bytes a request to a path may bring; base64 takes a third more than the file."""
        is_upload = path.startswith(tuple(prefix + door for prefix in PREFIXES for door in UPLOADS))
        return self.settings.max_file_bytes * 4 // 3 + SMALL_BODY if is_upload else SMALL_BODY

    async def check(self, scope: Scope, limit: int) -> None:
        """Refuse what may not in, and say why."""
        headers = Headers(scope=scope)
        self.check_host(headers.get("host", ""))
        self.check_origin(headers)
        if scope["path"] not in PUBLIC:
            self.rate.check(await self.caller(scope, headers))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise too_large(limit)

    def check_host(self, host: str) -> None:
        """Refuse names that somebody else may have pointed at this machine (DNS rebinding); addresses can't be."""
        parts = HOST.fullmatch(host)
        name = (parts["address"] or parts["name"]).lower() if parts else ""
        if not (is_address(name) or name in ("localhost", self.settings.host, *self.settings.allow_hosts)):
            raise ApiError(
                421, f"this server is not called {name[:80]!r}: use its address, or start it with --allow-host"
            )

    def check_origin(self, headers: Headers) -> None:
        """Refuse requests that a foreign web page makes."""
        origin = headers.get("origin")
        own = origin and origin.partition("://")[2] == headers.get("host")
        if origin and not own and origin not in self.settings.allow_origins:
            raise ApiError(
                403, f"the page {origin[:80]!r} may not use this server: start it with --allow-origin to let it"
            )

    async def caller(self, scope: Scope, headers: Headers) -> str:
        """Return who asks, by key or address, after checking the key."""
        address = str((scope.get("client") or ("nobody",))[0])
        key = given_key(headers) or key_among(scope.get("subprotocols", ()))
        door = "/realtime" if scope["type"] == "websocket" else "/realtime/calls"
        if scope["path"] in [prefix + door for prefix in PREFIXES] and key.startswith(SECRET):
            scope["secret"] = await self.session_of(key, address)
            return address
        if not self.keys or self.is_open(scope):
            return address
        given = key.encode(errors="surrogatepass")
        matches = [hmac.compare_digest(given, key) for key in self.keys]  # all are compared, whichever matches
        if not any(matches):
            self.rate.check(address)  # keys can't be guessed fast
            raise unauthorized("the API key is missing or wrong: send it as 'Authorization: Bearer KEY'")
        return f"key {matches.index(True)}"

    async def session_of(self, key: str, address: str) -> dict[str, Any]:
        """Return the session that an ephemeral key was made for."""
        session = await self.secrets.find(key)
        if session is None:
            self.rate.check(address)
            raise unauthorized("the ephemeral key is wrong or has expired: make another one")
        return session

    def is_open(self, scope: Scope) -> bool:
        """Say whether a request lists voices, and that needs no key here."""
        paths = [f"{prefix}/audio/voices" for prefix in PREFIXES]
        lists_voices = scope.get("method") == "GET" and scope["path"] in paths
        return lists_voices and self.settings.list_voices_openly


class Rate:
    """Counts requests: a bucket for every client, which fills again within a minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left in a client's bucket, and when that was."""

    def check(self, client: str) -> None:
        """Take one from a client's bucket.

        Raises:
            ApiError: If it is empty.
        """
        now = time.monotonic()
        left, then = self.buckets.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        self.buckets[client] = (max(0.0, left - 1) if left >= 1 else left, now)
        if len(self.buckets) > MAX_CLIENTS:
            self.buckets.popitem(last=False)
        if left < 1:
            wait_s = (1 - left) * 60 / self.per_minute
            raise ApiError(
                429,
                f"more than {self.per_minute} requests a minute: wait {wait_s:.1f} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(1000 * wait_s))},
            )


class Places:
    """The queue: so many requests are worked on or wait, and no more."""

    def __init__(self, limit: int, full: str = "requests are waiting already") -> None:
        self.limit, self.full, self.num_taken = limit, full, 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            ApiError: If there is none.
        """
        if self.num_taken >= self.limit:
            raise ApiError(
                429,
                f"{self.limit} {self.full}: try again in a few seconds",
                code="server_overloaded",
                headers={"retry-after": "2"},
            )
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1


def given_key(headers: Headers) -> str:
    """Return the key that a request brings, empty if none."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    return headers.get("api-key") or headers.get("x-api-key") or ""


def key_among(subprotocols: Iterable[str]) -> str:
    """Return the key that a browser's WebSocket brings among its subprotocols, empty if none: it can set no header."""
    keys = (name.removeprefix(KEY_PROTOCOL) for name in subprotocols if name.startswith(KEY_PROTOCOL))
    return next(keys, "")


def unauthorized(message: str) -> ApiError:
    """Refuse who has no key, or a wrong one."""
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def chosen_request_id(headers: Headers) -> str:
    """Return the id that the client gave, if it is harmless, or a new one."""
    given = headers.get("x-request-id") or headers.get("x-trace-id") or ""
    return given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def too_large(limit: int) -> ApiError:
    """Say that a body is too large."""
    message = f"the body has more than {limit} bytes: send a shorter or compressed file"
    return ApiError(413, message, code="file_too_large")


def counted(receive: Receive, limit: int) -> Receive:
    """Count what a body really brings, whatever it promised."""
    num_bytes = 0

    async def counting() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            await drain(receive)
            raise too_large(limit)
        return message

    return counting


async def drain(receive: Receive) -> None:
    """Read the rest of a body and drop it, up to a limit."""
    num_bytes = 0
    while num_bytes <= DRAINED:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body"):
            return
