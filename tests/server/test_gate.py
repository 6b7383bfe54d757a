"""Who may in, how often and with how much; none of it needs a model."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from server.toys import KEY, assert_is_envelope, in_process

from tristep.server.app import create_app
from tristep.server.errors import ApiError
from tristep.server.limits import PUBLIC, Gate, Places, Rate
from tristep.server.service import Service
from tristep.server.settings import MIB, Settings

Ask = Callable[[httpx2.AsyncClient], Awaitable[None]]
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def settings(toy: Path) -> Settings:
    return Settings(model=str(toy))


def ask(settings: Settings, ask: Ask, **changes: Any) -> None:
    """Let a coroutine ask an app."""

    async def main() -> None:
        async with in_process(settings, **changes) as client:
            await ask(client)

    asyncio.run(main())


def routes(settings: Settings) -> list[tuple[str, str]]:
    """Name every route of the app, under StepFun's prefix too."""
    gate = create_app(Service(settings))
    assert isinstance(gate, Gate)
    paths = gate.app.openapi()["paths"]  # type: ignore[attr-defined]
    named = [(method.upper(), path.replace("{name}", "a/b")) for path, verbs in paths.items() for method in verbs]
    return named + [(method, f"/step_plan{path}") for method, path in named if path.startswith("/v1")]


def test_every_route_but_those_of_health_needs_a_right_key(settings: Settings) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY}x"},
    ]
    wrong += [{"Authorization": f"Basic {KEY}"}, {"api-key": "x"}, {"X-API-Key": KEY[:-1]}, {"api-key": b"\xff"}]

    async def main(client: httpx2.AsyncClient) -> None:
        paths = [*routes(settings), ("GET", "/openapi.json"), ("GET", "/no/such/route"), ("DELETE", "/v1")]
        assert len(paths) > 30
        for method, path in paths:
            if path in PUBLIC:
                assert (await client.request(method, path)).status_code in (200, 503)
                continue
            for headers in wrong:
                response = await client.request(method, path, headers=headers)
                assert_is_envelope(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"

    ask(settings, main, api_keys=("one", KEY))


def test_each_way_to_send_a_key_works(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        for headers in (BEARER, {"api-key": KEY}, {"X-API-Key": KEY}, {"Authorization": f"bearer {KEY} "}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200

    ask(settings, main, api_keys=("one", KEY))


def test_without_keys_any_key_is_taken(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer EMPTY"})).status_code == 200

    ask(settings, main)


def test_voices_are_listed_without_a_key_only_where_that_is_said(settings: Settings) -> None:
    async def refused(client: httpx2.AsyncClient) -> None:
        assert_is_envelope(await client.get("/v1/audio/voices"), 401, "invalid_api_key")

    async def answered(client: httpx2.AsyncClient) -> None:
        assert (await client.get("/v1/audio/voices")).status_code == 200
        assert_is_envelope(await client.post("/v1/audio/voices"), 401, "invalid_api_key")

    ask(settings, refused, api_keys=(KEY,))
    ask(settings, answered, api_keys=(KEY,), list_voices_openly=True)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200), ("10.0.0.7", 200),
        ("speech.example.org:443", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421),
        ("localhost@evil.example", 421), ("[::1", 421),
    ],
)  # fmt: skip
def test_a_name_that_is_not_the_servers_is_refused(settings: Settings, host: str, status: int) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        assert (await client.get("/health", headers={"Host": host})).status_code == status

    ask(settings, main, allow_hosts=("speech.example.org",))


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://127.0.0.1:8000", 200), ("https://page.example", 200), ("https://evil.example", 403),
        ("http://127.0.0.1:9999", 403), ("null", 403), ("http://[", 403),
    ],
)  # fmt: skip
def test_a_foreign_page_is_refused(settings: Settings, origin: str | None, status: int) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        response = await client.get("/version", headers={"Origin": origin} if origin else {})
        assert response.status_code == status
        allowed = "https://page.example" if origin == "https://page.example" else None
        assert response.headers.get("access-control-allow-origin") == allowed
        assert allowed is None or response.headers["access-control-expose-headers"] == "location, x-request-id"

    ask(settings, main, allow_origins=("https://page.example",))


def test_a_browser_may_ask_beforehand_without_a_key_if_its_page_is_allowed(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        assert (await client.options("/v1/audio/speech", headers=headers)).status_code == 200
        headers["Origin"] = "https://evil.example"
        assert (await client.options("/v1/audio/speech", headers=headers)).status_code == 400

    ask(settings, main, allow_origins=("https://page.example",), api_keys=(KEY,))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "speech.example.org"])
def test_other_machines_are_not_served_without_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="there is no API key: give --api-key"):
        Settings(host=host)
    assert Settings(host=host, insecure=True).host == host
    assert Settings(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize("key", ["", " ", "a ", "\n", "sch\u00f6n"])
def test_a_key_that_nobody_can_send_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="an API key is empty"):
        Settings(api_keys=(key,))


def test_too_many_requests_are_told_when_to_come_back(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        for _ in range(3):
            assert (await client.get("/v1/models", headers=BEARER)).status_code == 200
        response = await client.get("/v1/models", headers=BEARER)
        assert_is_envelope(response, 429, "rate_limit_exceeded")
        assert 0 < int(response.headers["retry-after-ms"]) <= 20_000
        assert (await client.get("/v1/models", headers={"api-key": "another"})).status_code == 200
        assert (await client.get("/health")).status_code == 200

    ask(settings, main, api_keys=(KEY, "another"), max_requests_per_minute=3)


def test_keys_can_not_be_guessed_fast(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        guesses = [await client.get("/v1/models", headers={"api-key": str(guess)}) for guess in range(5)]
        assert [guess.status_code for guess in guesses] == [401, 401, 401, 429, 429]

    ask(settings, main, api_keys=(KEY,), max_requests_per_minute=3)


def test_a_full_queue_refuses() -> None:
    places = Places(2)
    with places.taken(), places.taken():
        with pytest.raises(ApiError, match="2 requests are waiting") as refused, places.taken():
            pass
        assert (refused.value.status_code, refused.value.code) == (429, "server_overloaded")
        assert "retry-after" in (refused.value.headers or {})
    assert places.num_taken == 0


async def endless(size: int = MIB) -> AsyncIterator[bytes]:
    """Send a body for ever; whoever reads it all hangs."""
    while True:
        yield bytes(size)


def test_a_body_is_refused_by_its_promise_and_by_its_size(settings: Settings) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        promised = await client.post("/v1/audio/transcriptions", headers={**kind, "Content-Length": str(10**9)})
        assert_is_envelope(promised, 413, "file_too_large")
        for path in ("/v1/audio/transcriptions", "/v1/audio/speech"):
            sent = await client.post(path, headers={"Content-Type": "application/json"}, content=endless())
            assert sent.status_code in (413, 415)

    ask(settings, main, max_file_bytes=MIB)


def test_a_key_is_never_logged(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        for path in (f"/v1/models?api_key={KEY}", "/v1/no%0Asuch", "/v1/models"):
            await client.get(path, headers=BEARER)
        await client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}wrong"})

    with caplog.at_level(logging.DEBUG, "tristep"):
        ask(settings, main, api_keys=(KEY,))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("tristep")]
    assert len(lines) == 4
    assert not any(KEY in line or "\n" in line for line in lines)
    assert lines[0].startswith("GET /v1/models 200 ")


def test_the_official_client_waits_and_comes_back(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    gate = limited(settings, 1200)  # a place is free after 50 ms

    async def main() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gate)) as client:
            asking = openai.AsyncOpenAI(api_key=KEY, base_url="http://127.0.0.1:8000/v1", http_client=client)
            await asking.models.list()

    with caplog.at_level(logging.INFO, "tristep.server"):
        asyncio.run(main())
    answers = [record.getMessage() for record in caplog.records if "GET /v1/models" in record.getMessage()]
    assert [answer.split()[2] for answer in answers] == ["429", "200"]


def limited(settings: Settings, per_minute: int) -> Gate:
    """Return an app whose only key has no requests left."""
    gate = create_app(Service(replace(settings, api_keys=(KEY,), max_requests_per_minute=per_minute)))
    assert isinstance(gate, Gate)
    gate.rate.buckets["key 0"] = (0.0, time.monotonic())
    return gate


@pytest.mark.parametrize("per_minute", [2, 50, 600, 100_000])
def test_who_waits_as_long_as_told_is_let_in(per_minute: int) -> None:
    rate = Rate(per_minute)
    rate.buckets["me"] = (0.0, time.monotonic())
    with pytest.raises(ApiError, match="requests a minute: wait") as refused:
        rate.check("me")
    headers = refused.value.headers or {}
    for name, unit_s in (("retry-after", 1.0), ("retry-after-ms", 0.001)):
        left, then = rate.buckets["me"]
        rate.buckets["later"] = (left, then - int(headers[name]) * unit_s)
        rate.check("later")


def test_too_many_sockets_are_told_when_to_come_back_before_they_open(settings: Settings) -> None:
    async def main() -> None:
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "websocket", "path": "/v1/realtime", "query_string": b"", "subprotocols": [],
            "headers": [(b"host", b"127.0.0.1"), (b"api-key", KEY.encode())],
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await limited(settings, 3)(scope, receive, send)
        start, body = sent
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
        assert 0 < int(dict(start["headers"])[b"retry-after"]) <= 20
        assert json.loads(body["body"])["error"]["code"] == "rate_limit_exceeded"

    asyncio.run(main())
