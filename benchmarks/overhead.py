"""Time what a server adds to its model, one table: messages that no model has to think about, at many sessions at once.

    python benchmarks/overhead.py                             # 20 sessions, 20 s silent, 20 s with open microphones
    python benchmarks/overhead.py --sessions 4 --seconds 5
    python benchmarks/overhead.py --model weights/nano --json overhead.json

A real `tristep serve` runs in processes of its own. Each session asks for one thing after the other, at random moments,
first while nobody sends sound, then while every session sends 20 ms of silence fifty times a second, in which the
server looks for voices. Of the rows the first is the socket alone: the event loop answers pings without the app. The
second goes through the app, the others to the engine's process and back. An answer is timed until it is accepted.

Times are the client's, from the moment before a message is sent to that after its answer is read; the client shares the
machine with the server, and what it needs itself is in all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from machine import machine
from rich.console import Console
from rich.table import Table
from served import BEARER, Served, serving
from websockets.asyncio.client import ClientConnection, connect

from tristep.audio import SPEAK_HZ

PACKAGES = ("tristep", "torch", "uvicorn", "websockets")
FRAME_S = 0.02
BAR_MS = 15.0
"""What protocol alone may take at most, 95 times of 100."""
PAUSE_S = 0.2
"""Mean time between two things that a session asks for."""
QUIET: dict[str, Any] = {
    "type": "realtime", "output_modalities": ["text"],
    "audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": False}}},
}  # fmt: skip
ITEM = {"id": "msg_1", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
ASIDE = {"conversation": "none", "input": [ITEM], "max_output_tokens": 1}
FRAME = json.dumps(
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(2 * round(FRAME_S * SPEAK_HZ))).decode()}
)

Times = dict[str, list[float]]
"""What was asked, and how long each answer took, milliseconds."""


def main() -> None:
    """Serve, ask, print the table, and fail if the bar was not held."""
    arguments = parse_arguments()
    options = ["--threads", str(arguments.threads), "--max-rate", "1000000", "--max-sessions", str(arguments.sessions)]
    with serving(arguments.model, *options) as served:
        parts = {
            "silent": asyncio.run(ask_all(served, arguments, is_open=False)),
            "microphones open": asyncio.run(ask_all(served, arguments, is_open=True)),
        }
    Console(width=None if sys.stdout.isatty() else 120).print(table(parts))
    highest = max(float(np.percentile(times, 95)) for part in parts.values() for times in part.values())
    is_held = highest <= BAR_MS
    verdict = "held" if is_held else "NOT HELD"
    print(f"bar: p95 at most {BAR_MS:g} ms in every row: {verdict}, the highest is {highest:.1f} ms")
    print(
        f"{arguments.model}, {arguments.sessions} sessions, {arguments.threads} thread(s), seed {arguments.seed}, "
        f"{arguments.seconds:g} s each; {machine(PACKAGES)}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if is_held else 1)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy", help="a name or a folder; toy: that of the tests")
    parser.add_argument("--sessions", type=int, default=20, help="at once")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--threads", type=int, default=1, help="of the server's engine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments at which something is asked")
    parser.add_argument("--json", type=Path, help="write every time here")
    return parser.parse_args()


async def ask_all(served: Served, arguments: argparse.Namespace, is_open: bool) -> Times:
    """Let all sessions ask for a while."""
    times: Times = defaultdict(list)
    chance = random.Random(arguments.seed)
    start = time.monotonic() + 1
    sessions = (ask(served, start, arguments.seconds, is_open, chance, times) for _ in range(arguments.sessions))
    await asyncio.gather(*sessions)
    return times


async def ask(served: Served, start: float, seconds: float, is_open: bool, chance: random.Random, times: Times) -> None:
    """Ask for one thing after the other in one session."""
    async with opened(served, is_open) as socket, httpx2.AsyncClient(base_url=served.address, headers=BEARER) as http:
        await asked(socket, "session.updated", "session.update", session=QUIET)
        await http.get("/v1/models")
        moment = start + chance.random()
        while moment < start + seconds:
            for name, act in acts(socket, http).items():
                await asyncio.sleep(max(0.0, moment - time.monotonic()))
                begun = time.perf_counter()
                await act()
                times[name].append(1000 * (time.perf_counter() - begun))
                if name.startswith("response.create"):
                    await read(socket, "response.done")
                moment = max(moment + chance.uniform(0.5, 1.5) * PAUSE_S, time.monotonic())


def acts(socket: ClientConnection, http: httpx2.AsyncClient) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Name what a session asks for, in order, and how; none of it waits for a model."""

    async def ping() -> None:
        await (await socket.ping())

    return {
        "ping": ping,
        "GET /v1/models": lambda: http.get("/v1/models"),
        "session.update": lambda: asked(socket, "session.updated", "session.update", session=QUIET),
        "conversation.item.create": lambda: asked(
            socket, "conversation.item.done", "conversation.item.create", item=ITEM
        ),
        "conversation.item.delete": lambda: asked(
            socket, "conversation.item.deleted", "conversation.item.delete", item_id=ITEM["id"]
        ),
        "response.create, until accepted": lambda: asked(socket, "response.created", "response.create", response=ASIDE),
    }


@asynccontextmanager
async def opened(served: Served, is_open: bool) -> AsyncIterator[ClientConnection]:
    """Open a session, its microphone open or not."""
    async with connect(f"{served.socket_address}/v1/realtime", additional_headers=BEARER) as socket:
        await read(socket, "conversation.created")
        microphone = asyncio.create_task(send_silence(socket)) if is_open else None
        try:
            yield socket
        finally:
            if microphone:
                microphone.cancel()
                await asyncio.gather(microphone, return_exceptions=True)


async def send_silence(socket: ClientConnection) -> None:
    """Send sound as it comes from a microphone, until cancelled."""
    moment = time.monotonic()
    while True:
        await socket.send(FRAME)
        moment += FRAME_S
        await asyncio.sleep(max(0.0, moment - time.monotonic()))


async def asked(socket: ClientConnection, answer: str, kind: str, **fields: Any) -> None:
    """Send a message and wait for its answer."""
    await socket.send(json.dumps({"type": kind, **fields}))
    await read(socket, answer)


async def read(socket: ClientConnection, until: str) -> None:
    """Read messages up to the first of a type.

    Raises:
        RuntimeError: If the server says that something is wrong.
    """
    async with asyncio.timeout(60):
        while (message := json.loads(await socket.recv()))["type"] != until:
            if message["type"] == "error":
                raise RuntimeError(f"the server was asked for {until} and said {message['error']['message']!r}")


def table(parts: dict[str, Times]) -> Table:
    """Lay out how long each answer took."""
    made = Table(title="Time to the answer, ms")
    made.add_column("asked")
    for name in parts:
        for column in (f"{name}: n", "p50", "p95", "p99"):
            made.add_column(column, justify="right")
    for name in next(iter(parts.values())):
        cells = []
        for part in parts.values():
            quantiles = np.percentile(part[name], (50, 95, 99))
            cells += [str(len(part[name])), *(f"{quantile:.1f}" for quantile in quantiles)]
        made.add_row(name, *cells)
    return made


if __name__ == "__main__":
    main()
