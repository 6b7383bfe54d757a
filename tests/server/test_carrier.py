"""How uvicorn carries the app: upgrades that nobody can read, and the end of a server."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx2
import pytest
from server.test_realtime import BEARER, end_of, opened, read, refused, run, send
from server.toys import KEY, Server, running

from tristep.server.settings import Settings

NUM_ANSWERS = 6


@pytest.mark.parametrize("name", [b"\xff", b"realtime, \xff", b"openai-insecure-api-key.\xc3\xbc"])
def test_a_subprotocol_that_is_no_ascii_is_refused_with_an_answer(
    server: Server, caplog: pytest.LogCaptureFixture, name: bytes
) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    upgrade = b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(upgrade + b"Sec-WebSocket-Protocol: " + name + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    body = answer.partition(b"\r\n\r\n")[2].decode()
    by_the_library = "invalid Sec-WebSocket-Protocol header" in body  # from websockets 16 on
    assert by_the_library or "ASCII" in json.loads(body)["error"]["message"]
    assert "Traceback" not in caplog.text


def test_no_socket_is_compressed(server: Server) -> None:
    async def main() -> None:
        async with opened(server, compression="deflate") as socket:
            assert socket.response is not None
            assert "Sec-WebSocket-Extensions" not in socket.response.headers

    run(main)


def test_who_is_being_answered_when_the_server_is_stopped_is_answered_to_the_end(toy: Path) -> None:
    settings = Settings(model=str(toy), served_name="toy", port=0, api_keys=(KEY,), threads=1)

    async def main() -> None:
        with running(settings) as server:
            async with opened(server) as answered, opened(server) as waiting, httpx2.AsyncClient() as http:
                await read(waiting, "conversation.created")
                await send(answered, "session.update", session={"audio": {"output": {"speed": 0.25}}})
                for _ in range(NUM_ANSWERS):
                    await send(answered, "response.create", response={"conversation": "none", "input": []})
                messages = await read(answered, "response.output_audio.delta")
                server.stop()
                assert (await end_of(waiting))[1] == 1001
                readiness = await http.get(f"{server.address}/readyz")
                assert (readiness.status_code, readiness.json()) == (503, {"status": "stopping"})
                answer = await refused(server, "/v1/realtime", BEARER)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
                rest, code = await end_of(answered)
                done = [message["response"] for message in messages + rest if message["type"] == "response.done"]
                assert [response["status"] for response in done] == ["completed"] * NUM_ANSWERS
                assert code == 1001

    run(main)
