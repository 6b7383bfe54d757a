"""Every failure, of every kind, in one shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from server.answers import load_nothing
from server.toys import CLIP, KEY, assert_is_envelope, in_process

from tristep.server import errors
from tristep.server.app import create_app
from tristep.server.service import Service
from tristep.server.settings import MIB, Settings
from tristep.server.worker import Worker, WorkerError

SPEECH = {"model": "tts-1", "input": "Hello.", "voice": "anna"}
JSON = {"Content-Type": "application/json"}
SECRETS = "/v1/realtime/client_secrets"
DEEP: Any = json.loads("[" * 400 + "]" * 400)


def ask(toy: Path, ask: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with in_process(Settings(model=str(toy), served_name="org/toy")) as client:
            await ask(client)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "code"),
    [
        ("POST", "/v1/audio/speech", {"json": {"model": "tts-1", "voice": "anna"}}, 400, "missing_required_parameter"),
        ("POST", "/v1/audio/speech", {"json": {**SPEECH, "response_format": "midi"}}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"json": {**SPEECH, "speed": 9}}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"json": {**SPEECH, "voice": 5}}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"json": []}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"content": "{", "headers": JSON}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"content": "[" * 100_000, "headers": JSON}, 400, None),
        ("POST", "/v1/audio/speech", {"content": "\xff", "headers": JSON}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"content": '{"input": "\\ud800"}', "headers": JSON}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"content": '{"speed": NaN}', "headers": JSON}, 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {"json": {"messages": DEEP}}, 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {"json": {"tools": [{"parameters": DEEP}]}}, 400, "invalid_value"),
        ("POST", SECRETS, {"content": '{"session": {"tracing": 1e999}}', "headers": JSON}, 400, "invalid_value"),
        ("POST", SECRETS, {"content": '{"session": {"\\udc00": 1}}', "headers": JSON}, 400, "invalid_value"),
        ("POST", "/v1/audio/speech", {"content": "Hello."}, 415, None),
        ("POST", "/v1/audio/speech", {"json": {**SPEECH, "model": "gpt-9"}}, 404, "model_not_found"),
        ("POST", "/v1/audio/speech", {"json": SPEECH}, 503, "server_overloaded"),
        ("POST", "/v1/audio/transcriptions", {"json": {}}, 415, None),
        ("POST", "/v1/audio/transcriptions", {"data": {"model": "a"}, "files": {}}, 415, None),
        ("POST", "/v1/audio/transcriptions", {"files": {"file": b"x"}}, 400, "missing_required_parameter"),
        ("POST", "/v1/audio/translations", {"files": {"file": b"x"}}, 400, "unsupported_value"),
        ("POST", "/v1/audio/asr/sse", {"json": {"audio": {}}}, 400, "missing_required_parameter"),
        ("GET", "/v1/live/sessions", {}, 404, None),
        ("GET", "/v1/audio/speech", {}, 405, None),
        ("DELETE", "/v1/models", {}, 405, None),
        ("GET", "/v1/models/org/other", {}, 404, "model_not_found"),
        ("DELETE", "/v1/audio/voices/nobody", {}, 404, "voice_not_found"),
        ("DELETE", "/v1/audio/voices/anna", {}, 403, None),
        ("POST", "/v1/audio/voice_consents", {"files": {"recording": b"x"}}, 403, None),
    ],
)  # fmt: skip
def test_a_failure_has_the_envelope(
    toy: Path, method: str, path: str, request_: dict[str, Any], status: int, code: str | None
) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        response = await client.request(method, path, **request_)
        assert_is_envelope(response, status, code)
        assert ("allow" in response.headers) == (status == 405)
        assert ("retry-after" in response.headers) == (status == 503)

    ask(toy, main)


def test_a_bug_tells_nothing_about_itself() -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("secret")

    async def main() -> None:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.get("/bug")
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error"
            assert "secret" not in response.text

    asyncio.run(main())


def test_a_message_says_what_was_given_and_what_was_expected(toy: Path) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        response = await client.post("/v1/audio/speech", json={**SPEECH, "response_format": "midi" * 99})
        error = response.json()["error"]
        assert error["param"] == "response_format"
        assert error["message"].startswith("response_format is 'midimidi")
        assert "'mp3', 'opus'" in error["message"]
        assert len(error["message"]) < 200

    ask(toy, main)


def test_a_request_keeps_its_id(toy: Path) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        for header in ("X-Request-Id", "X-Trace-Id"):
            assert (await client.get("/ping", headers={header: "mine-1"})).headers["x-request-id"] == "mine-1"
        generated = (await client.get("/ping", headers={"X-Request-Id": "a b\t"})).headers["x-request-id"]
        assert generated.startswith("req_")

    ask(toy, main)


def test_health_is_told_at_once_and_readiness_when_the_model_is_loaded(toy: Path) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        for path in ("/health", "/healthz", "/ping"):
            assert (await client.get(path)).json() == {"status": "ok"}
        response = await client.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "loading"})
        assert (await client.get("/version")).json()["model"] == "org/toy"
        assert "tristep_requests_total" in (await client.get("/metrics")).text

    ask(toy, main)


def test_the_official_client_raises_the_errors_of_its_own_names(toy: Path) -> None:
    async def main(client: httpx2.AsyncClient) -> None:
        asking = openai.AsyncOpenAI(api_key=KEY, base_url="http://127.0.0.1:8000/v1", http_client=client, max_retries=0)
        assert [model.id for model in (await asking.models.list()).data] == ["org/toy"]
        assert (await asking.models.retrieve("org/toy")).owned_by == "tristep"
        assert (await asking.models.retrieve("whisper-1")).id == "org/toy"
        assert (await asking.models.retrieve("gpt-4o-mini-tts-2025-12-15")).id == "org/toy"
        with pytest.raises(openai.NotFoundError) as missing:
            await asking.models.retrieve("org/other")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError) as bad:
            await asking.audio.speech.create(model="tts-1", voice="anna", input="Hello.", speed=7)
        assert bad.value.param == "speed"
        with pytest.raises(openai.InternalServerError) as loading:
            await asking.audio.transcriptions.create(model="whisper-1", file=CLIP)
        assert loading.value.code == "server_overloaded"

    ask(toy, main)


@pytest.mark.parametrize(
    ("limits", "asked", "kind", "code"),
    [
        ({"api_keys": ("another",)}, lambda asking: asking.models.list(), openai.AuthenticationError,
         "invalid_api_key"),
        ({}, lambda asking: asking.delete("/audio/voices/anna", cast_to=object), openai.PermissionDeniedError, None),
        ({}, lambda asking: asking.get("/nowhere", cast_to=object), openai.NotFoundError, None),
        ({}, lambda asking: asking.delete("/models", cast_to=object), openai.APIStatusError, None),
        ({"max_file_bytes": MIB}, lambda asking: asking.audio.transcriptions.create(model="a", file=bytes(4 * MIB)),
         openai.APIStatusError, "file_too_large"),
        ({}, lambda asking: asking.post("/audio/transcriptions", body={}, cast_to=object), openai.APIStatusError,
         None),
    ],
)  # fmt: skip
def test_each_status_is_the_official_clients_own_exception(
    toy: Path,
    limits: dict[str, Any],
    asked: Callable[[openai.AsyncOpenAI], Awaitable[Any]],
    kind: Any,
    code: str | None,
) -> None:
    async def main() -> None:
        async with in_process(Settings(model=str(toy)), **limits) as client:
            with pytest.raises(kind) as raised:
                await asked(official(client))
        assert type(raised.value) is kind
        assert (raised.value.code, raised.value.param) == (code, None)
        assert raised.value.request_id == raised.value.response.headers["x-request-id"]
        assert raised.value.body["message"] in raised.value.message

    asyncio.run(main())


def official(client: httpx2.AsyncClient, max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key=KEY, base_url="http://127.0.0.1:8000/v1", http_client=client, max_retries=max_retries
    )


@pytest.mark.parametrize(("headers", "num_asked"), [({"retry-after": "0"}, 3), ({"x-should-retry": "false"}, 1)])
def test_the_official_client_asks_twice_more_unless_that_is_of_no_use(headers: dict[str, str], num_asked: int) -> None:
    app = FastAPI()
    asked: list[str] = []
    errors.install(app)

    @app.get("/v1/models")
    async def full() -> None:
        asked.append("once more")
        raise errors.ApiError(429, "it is full", code="server_overloaded", headers=headers)

    async def main() -> None:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport) as client:
            with pytest.raises(openai.RateLimitError) as raised:
                await official(client, max_retries=2).models.list()
        assert (raised.value.code, raised.value.type) == ("server_overloaded", "rate_limit_error")

    asyncio.run(main())
    assert len(asked) == num_asked


def test_nobody_asks_again_for_a_model_that_can_not_be_loaded(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(Settings(model=str(toy)))
    service.engine = Worker("engine", load_nothing)

    async def main() -> None:
        service.engine.start()
        with pytest.raises(WorkerError):
            await service.engine.loaded()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(service))) as client:
            with pytest.raises(openai.InternalServerError, match="there are no weights 'gone'") as raised:
                await official(client, max_retries=2).audio.speech.create(model="tts-1", voice="anna", input="Hello.")
        assert "retry-after" not in raised.value.response.headers
        await service.engine.stop()

    with caplog.at_level("INFO", "tristep.server"):
        asyncio.run(main())
    assert caplog.text.count("POST /v1/audio/speech 503") == 1
