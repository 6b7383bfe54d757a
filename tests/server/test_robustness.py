"""What a server must stand: clients that leave, many at once, engines that die, hosts and names not its own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from server.toys import CLIP, KEY, SAID, Server
from websockets.asyncio.client import ClientConnection, connect

import tristep
from tristep.audio import LISTEN_HZ, read_audio
from tristep.server.errors import ApiError
from tristep.server.settings import Settings
from tristep.server.shelf import Shelf

BEARER = {"Authorization": f"Bearer {KEY}"}
SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "anna", "response_format": "pcm"}
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to look into")


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.address, headers=BEARER, timeout=60) as client:
        yield client


def opened(server: Server, **options: Any) -> Any:
    address = server.address.replace("http", "ws")
    return connect(f"{address}/v1/realtime", additional_headers=BEARER, **options)


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, and fail if that takes too long."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


# Who comes and goes


def test_a_session_is_greeted_at_once(server: Server) -> None:
    async def greeted() -> float:
        async with opened(server) as socket:
            begun = time.perf_counter()
            assert json.loads(await socket.recv())["type"] == "session.created"
            return time.perf_counter() - begun

    async def main() -> None:
        assert min([await greeted() for _ in range(5)]) < 0.2

    asyncio.run(main())


async def leave(server: Server, moment: int) -> None:
    """Ask for a spoken answer, and vanish after so many messages."""
    async with opened(server) as socket:
        content = [{"type": "input_text", "text": "Hello."}]
        await send(socket, "conversation.item.create", item={"type": "message", "role": "user", "content": content})
        await send(socket, "response.create")
        for _ in range(moment):
            if json.loads(await socket.recv())["type"] == "response.done":
                break
        socket.transport.abort()


@needs_proc
def test_thirty_who_vanish_at_any_moment_leave_no_place_no_thread_and_no_file(server: Server) -> None:
    engine, sessions, chance = server.service.engine._process.pid, server.service.sessions, Random(0)

    def kept() -> tuple[int, int, int]:
        files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", engine)]
        return *files, len(os.listdir(f"/proc/{engine}/task"))

    async def main() -> None:
        await leave(server, 5)
        await until(lambda: sessions.num_taken == 0, 5)
        await asyncio.sleep(0.5)  # until what is closed here and there is closed
        before = kept()
        for _ in range(30):
            await leave(server, chance.randrange(25))
            await until(lambda: sessions.num_taken == 0, 1)
        await until(lambda: all(now <= then for now, then in zip(kept(), before, strict=True)), 10)
        assert server.service.engine._channels == {}

    asyncio.run(main())


def test_twenty_who_speak_at_once_are_kept_up_with(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.sessions, "limit", 20)
    frame = base64.b64encode(bytes(960)).decode()  # 20 ms

    async def speak(seconds: float) -> float:
        """Send sound in real time, and return how far the server is behind then."""
        async with opened(server) as socket:
            begun = time.perf_counter()
            for number in range(round(50 * seconds)):
                await send(socket, "input_audio_buffer.append", audio=frame)
                await asyncio.sleep(max(0.0, begun + number / 50 - time.perf_counter()))
            sent = time.perf_counter()
            await send(socket, "no.such.message", event_id="the last one")
            while json.loads(await socket.recv()).get("error", {}).get("event_id") != "the last one":
                pass
            return time.perf_counter() - sent

    async def main() -> None:
        assert max(await asyncio.gather(*(speak(2) for _ in range(20)))) < 1

    asyncio.run(main())


# What goes wrong inside


def long_clip() -> bytes:
    file, pause = io.BytesIO(), np.zeros(3 * LISTEN_HZ, np.float32)
    soundfile.write(file, np.concatenate([read_audio(CLIP)[:48_000].numpy(), pause] * 9), LISTEN_HZ, format="FLAC")
    return file.getvalue()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_an_engine_that_dies_is_told_of_in_every_stream_and_replaced(
    server: Server, client: openai.OpenAI, http: httpx2.Client
) -> None:
    asked = SPEECH | {"input": "It goes on and on. " * 50, "stream_format": "sse"}
    with http.stream("POST", "/v1/audio/speech", json=asked) as spoken:
        lines = spoken.iter_lines()
        assert "speech.audio.delta" in next(lines)
        stream = iter(client.audio.transcriptions.create(model="whisper-1", file=long_clip(), stream=True))
        assert next(stream).type == "transcript.text.delta"
        pid = server.service.engine._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(stream)
        assert any("speech.audio.error" in line for line in lines)
    while http.get("/readyz").status_code != 200:
        pass
    assert client.audio.transcriptions.create(model="whisper-1", file=CLIP).text == SAID


@needs_proc
def test_a_bomb_takes_no_memory(server: Server, http: httpx2.Client) -> None:
    def most_mb() -> float:
        status = Path(f"/proc/{server.service.decoder._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    http.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": CLIP.read_bytes()})
    before, bomb = most_mb(), io.BytesIO()
    with soundfile.SoundFile(bomb, "w", 8000, 1, format="OGG", subtype="OPUS") as file:
        for _ in range(300):
            file.write(np.zeros(8000, "i2"))
    response = http.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": bomb.getvalue()})
    assert response.json()["error"]["code"] == "audio_too_long"
    assert most_mb() - before < 64


# Whose it is not


def answer_to(server: Server, *lines: str) -> str:
    """Send a request by hand; return how its answer begins."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return connection.recv(65536).decode("latin-1")


UPGRADE = ("GET /v1/realtime HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Host: evil.example", f"api-key: {KEY}"], 421), (["Host: ", f"api-key: {KEY}"], 421),
        (["Host: 127.0.0.1", f"api-key: {KEY}", "Origin: null"], 403), (["Host: 127.0.0.1", "api-key: \xff"], 401),
        (["Host: 127.0.0.1", f"api-key: {KEY}"], 101),
    ],
)  # fmt: skip
def test_a_socket_opens_for_its_own_host_page_and_key_alone(server: Server, lines: list[str], status: int) -> None:
    assert answer_to(server, *UPGRADE, *lines).startswith(f"HTTP/1.1 {status} ")


def test_a_key_is_not_logged_whichever_way_a_socket_brings_it(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        address = server.address.replace("http", "ws") + f"/v1/realtime?api_key={KEY}"
        async with connect(address, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]):  # type: ignore[list-item]
            pass
        await until(lambda: any("WS /v1/realtime" in record.getMessage() for record in caplog.records), 5)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("websockets")]
    assert not any(KEY in line for line in ours)


AUDITED: list[str] | None = None


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if AUDITED is not None and event in ("open", "os.listdir", "os.scandir"):
        AUDITED.append(str(arguments[0]))


def test_what_is_no_voice_is_looked_up_in_no_file(toy: Path, tmp_path: Path) -> None:
    global AUDITED
    shelf = Shelf(Settings(model=str(toy), voices=tmp_path))
    sys.addaudithook(audit)
    AUDITED = []
    try:
        for name in ("../anna", "/etc/passwd", "..%2fanna", "anna\0", "a" * 10_000, "anna/../bert", ".", ""):
            with pytest.raises(ApiError, match="there is no voice"):
                shelf.find(name)
            with pytest.raises(ApiError, match="there is no voice"):
                shelf.remove(name)
        assert set(AUDITED) <= {str(shelf.shipped), str(tmp_path)}
    finally:
        AUDITED = None


WATCHING = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "127.0.0.1"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost", None):
        tell(f"{event} {arguments}")

def tell(line):
    with open(os.environ["SEEN"], "a") as file:
        file.write(line + "\\n")

sys.addaudithook(watch)
tell("begun")
"""


def test_nobody_else_is_called(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCHING)
    seen, source = tmp_path / "seen.txt", Path(tristep.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}", "SEEN": str(seen)}
    command = [sys.executable, "-m", "tristep", "serve", "--model", str(toy), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[-1]
            with openai.OpenAI(base_url=address, api_key="any", max_retries=0) as client:
                assert client.audio.transcriptions.create(model="whisper-1", file=CLIP).text == SAID
                assert client.audio.speech.create(model="tts-1", voice="anna", input="Hello.").content
                content: Any = [{"role": "user", "content": "Look at http://10.0.0.1/x."}]
                assert client.chat.completions.create(model="gpt-realtime", messages=content).choices
        finally:
            process.terminate()
    lines = seen.read_text().splitlines()
    assert lines.count("begun") >= 3  # the server, its engine and its decoder
    assert set(lines) == {"begun"}
