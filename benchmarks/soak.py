"""Hold a server under load for a while, one table: does it keep anything that it should have let go?

    python benchmarks/soak.py                                   # 1,000 connects, 100 disconnects, 10 minutes of talk
    python benchmarks/soak.py --connects 200 --disconnects 30 --minutes 2
    python benchmarks/soak.py --model weights/nano --plot soak.png

A real `tristep serve` runs in processes of its own. Clients open realtime sessions and close them at once; others ask
for an answer and vanish while it comes, without a farewell; one too many is to be refused; then eight converse in real
time: each speaks a recording, listens, and speaks into every third answer. Before any of that is counted the server
goes through all of it in small, so that what is loaded once is loaded.

Memory is that of the server's processes together, with nobody connected: after the warm-up, and after each part. While
sessions go on they hold their conversations, up to 300 s of sound each; the table tells that apart. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from machine import machine
from rich.console import Console
from rich.table import Table
from served import BEARER, TESTS, Held, Served, held, serving
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tristep.audio import SPEAK_HZ, read_audio

PACKAGES = ("tristep", "torch", "uvicorn", "websockets")
RECORDING = TESTS / "data/kathleen_b0442.opus"
CHUNK_S = 0.1
MEMORY_GROWTH = 0.05
"""Share of memory by which a server may have grown."""
FREED_S = 5.0
"""Longest time until a place is free again."""
ANSWER_S = 60.0
"""Longest time until a turn is answered to its end, of which the answer itself is the greater part."""
SETTLE_S = 3.0
BARGE_IN_EVERY = 3
SPEAKS_ON_S = 1.2
"""How long one speaks into an answer."""
CONNECT = {"type": "session.update", "session": {"type": "realtime"}}


@dataclass(frozen=True)
class Sample:
    """What a server held at a time."""

    at_s: float
    part: str
    held: Held
    num_sessions: int


@dataclass
class Watch:
    """Looks at a server again and again."""

    served: Served
    http: httpx2.AsyncClient
    part: str = "start"
    samples: list[Sample] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    async def look(self) -> Sample:
        """Look once."""
        sessions = await self.sessions()
        now = held(self.served.process.pid)
        self.samples.append(Sample(time.monotonic() - self.started, self.part, now, sessions))
        return self.samples[-1]

    async def sessions(self) -> int:
        """Return how many sessions the server counts."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return round(float(next(line for line in lines if line.startswith("tristep_sessions ")).split()[1]))

    async def go_on(self, every_s: float = 2.0) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def rest(self, name: str) -> Sample:
        """Look when nobody is connected, and nothing of those who were is left to do."""
        self.part = name
        await asyncio.sleep(SETTLE_S)
        return await self.look()

    async def emptied(self) -> float:
        """Return how long it takes until no session is open, seconds; not longer than there is patience."""
        begun = time.monotonic()
        while time.monotonic() - begun < 4 * FREED_S and await self.sessions():
            await asyncio.sleep(0.02)
        return time.monotonic() - begun


@dataclass
class Talked:
    """What came of the conversations."""

    num_turns: int = 0
    num_answers: int = 0
    num_interrupted: int = 0
    num_barge_ins: int = 0
    num_stuck: int = 0
    num_errors: int = 0
    waits_s: list[float] = field(default_factory=list)
    """From the end of a turn to the first sound of its answer."""
    lags_s: list[float] = field(default_factory=list)
    """How late a client's own sound left, which tells of a machine that is too busy."""


@dataclass(frozen=True)
class Verdict:
    """A bar, and whether it was held."""

    bar: str
    measured: str
    is_held: bool


def main() -> None:
    """Soak a server, print what it held and the verdicts, and fail if a bar was not held."""
    arguments = parse_arguments()
    options = ["--threads", str(arguments.threads), "--max-rate", "1000000"]
    with serving(arguments.model, "--max-sessions", str(arguments.sessions), *options) as served:
        watch, talked, verdicts = asyncio.run(soak(arguments, served))
        faults = served.faults()
    verdicts.append(Verdict("the log tells of no failure", faults[0][:60] if faults else "none", not faults))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(parts_table(watch.samples))
    console.print(verdicts_table(verdicts))
    print(conditions(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(document(arguments, watch, talked, verdicts), indent=1) + "\n", "utf-8")
    if arguments.plot:
        plot(watch.samples, arguments.plot)
    sys.exit(0 if all(verdict.is_held for verdict in verdicts) else 1)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy", help="a name or a folder; toy: that of the tests")
    parser.add_argument("--connects", type=int, default=1000, help="sessions that are opened and closed")
    parser.add_argument("--disconnects", type=int, default=100, help="clients that vanish while they are answered")
    parser.add_argument("--sessions", type=int, default=8, help="conversations at once, and the server's limit")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long they converse")
    parser.add_argument("--warm-up", type=float, default=60.0, metavar="S", help="seconds of talk that don't count")
    parser.add_argument("--threads", type=int, default=1, help="of the server's engine")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments at which clients vanish")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--plot", type=Path, help="draw them here (PNG)")
    return parser.parse_args()


async def soak(arguments: argparse.Namespace, served: Served) -> tuple[Watch, Talked, list[Verdict]]:
    """Go through all parts, and judge them."""
    chance, spoken = random.Random(arguments.seed), recording()
    async with httpx2.AsyncClient(base_url=served.address, headers=BEARER, timeout=30) as http:
        watch = Watch(served, http)
        watching = asyncio.create_task(watch.go_on())
        try:
            watch.part = "warm-up"
            await converse_all(served, arguments.sessions, arguments.warm_up, spoken, chance)
            await come_and_go(served, 5 * arguments.sessions)
            await vanish(served, watch, 2 * arguments.sessions, chance)
            rests = [await watch.rest("rest after warm-up")]
            watch.part = "connects"
            waits_s = await come_and_go(served, arguments.connects)
            rests.append(await watch.rest("rest after connects"))
            watch.part = "disconnects"
            freed_s = await vanish(served, watch, arguments.disconnects, chance)
            rests.append(await watch.rest("rest after disconnects"))
            watch.part = "refusals"
            refusals = await overfill(served, watch, arguments.sessions)
            watch.part = "talk"
            talked = await converse_all(served, arguments.sessions, 60 * arguments.minutes, spoken, chance)
            emptied_s = await watch.emptied()
            rests.append(await watch.rest("rest after talk"))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    verdicts = [*memory(watch, rests), *places(rests, waits_s, freed_s, emptied_s), refusals, *talk(talked)]
    return watch, talked, verdicts


def recording() -> list[str]:
    """Return a recording of somebody who speaks, as the pieces that clients send."""
    samples = (read_audio(RECORDING, SPEAK_HZ).numpy() * 32767).astype("<i2")
    return pieces(samples)


def pieces(samples: np.ndarray[Any, np.dtype[np.int16]]) -> list[str]:
    """Cut samples `(S,)` into what is sent at once."""
    size = round(CHUNK_S * SPEAK_HZ)
    return [
        base64.b64encode(samples[start : start + size].tobytes()).decode() for start in range(0, len(samples), size)
    ]


SILENCE = pieces(np.zeros(round(CHUNK_S * SPEAK_HZ), np.int16))[0]


@asynccontextmanager
async def opened(served: Served) -> AsyncIterator[ClientConnection]:
    """Open a session and read its greeting."""
    async with connect(f"{served.socket_address}/v1/realtime", additional_headers=BEARER) as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"
        yield socket


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    """Send a message."""
    await socket.send(json.dumps({"type": kind, **fields}))


# Parts


async def come_and_go(served: Served, count: int, at_once: int = 4) -> list[float]:
    """Open sessions and close them; return how long each took to be greeted, seconds."""
    waits_s: list[float] = []

    async def one_after_the_other(share: int) -> None:
        for _ in range(share):
            begun = time.monotonic()
            async with opened(served):
                waits_s.append(time.monotonic() - begun)

    await asyncio.gather(*(one_after_the_other(count // at_once) for _ in range(at_once)))
    return waits_s


async def vanish(served: Served, watch: Watch, count: int, chance: random.Random) -> list[float]:
    """Ask for answers and vanish while they come; return how long each place then stayed taken, seconds."""
    freed_s = []
    for _ in range(count):
        async with opened(served) as socket:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
            await send(socket, "conversation.item.create", item=item)
            await send(socket, "response.create")
            for _ in range(chance.randrange(20)):
                if json.loads(await socket.recv())["type"] == "response.done":
                    break
            socket.transport.abort()
        freed_s.append(await watch.emptied())
    return freed_s


async def overfill(served: Served, watch: Watch, limit: int) -> Verdict:
    """Open as many sessions as there may be, and one more; then close one, and try again."""
    wrong = []
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(opened(served)) for _ in range(limit)]
        if (answer := await refusal(served)) != "429 server_overloaded, retry-after":
            wrong.append(f"one too many: {answer}")
        await sockets[0].close()
        await asyncio.sleep(1)
        if (answer := await refusal(served)) != "opened":
            wrong.append(f"once there is room: {answer}")
    await watch.emptied()
    return Verdict("one too many is refused, and let in later", "; ".join(wrong) or "429, then opened", not wrong)


async def refusal(served: Served) -> str:
    """Return how an attempt to open a session is answered."""
    try:
        async with opened(served):
            return "opened"
    except InvalidStatus as error:
        answer = error.response
        code = json.loads(answer.body or b"{}")["error"]["code"]
        return f"{answer.status_code} {code}{', retry-after' if 'retry-after' in answer.headers else ''}"


async def converse_all(served: Served, count: int, seconds: float, spoken: list[str], chance: random.Random) -> Talked:
    """Hold so many conversations at once for a while."""
    talked, end = Talked(), time.monotonic() + seconds
    await asyncio.gather(*(Caller(served, talked, spoken, chance.random() * 5).converse(end) for _ in range(count)))
    return talked


class Caller:
    """One who converses: their microphone is always open."""

    def __init__(self, served: Served, talked: Talked, spoken: list[str], begins_s: float) -> None:
        self.served, self.talked, self.spoken, self.begins_s = served, talked, spoken, begins_s
        self._to_say: list[str] = []
        self._seen: set[str] = set()
        self._news = asyncio.Event()
        self._stopped_at = 0.0

    async def converse(self, end: float) -> None:
        """Speak and listen until a time."""
        async with opened(self.served) as socket:
            await socket.send(json.dumps(CONNECT))
            tasks = [asyncio.create_task(work(socket)) for work in (self._speak, self._listen)]
            try:
                await asyncio.sleep(self.begins_s)
                number = 0
                while time.monotonic() < end:
                    number += 1
                    await self._turn(is_interrupting=number % BARGE_IN_EVERY == 0)
            except (TimeoutError, ConnectionClosed):
                self.talked.num_stuck += 1
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _turn(self, is_interrupting: bool) -> None:
        """Say something, and listen to the answer, or speak into it."""
        self.talked.num_turns += 1
        self._seen.clear()
        self._to_say = list(self.spoken)
        async with asyncio.timeout(ANSWER_S):
            await self._until("input_audio_buffer.speech_stopped")
            if is_interrupting:
                await self._until("response.output_audio.delta")
                self._seen.clear()
                self._to_say = self.spoken[: round(SPEAKS_ON_S / CHUNK_S)]
                await self._until("input_audio_buffer.speech_stopped")
                self.talked.num_barge_ins += 1
                self.talked.num_interrupted += "interrupted" in self._seen
            await self._until("response.done")
        self.talked.num_answers += 1
        await asyncio.sleep(1)

    async def _until(self, kind: str) -> None:
        """Wait until something has come."""
        while kind not in self._seen:
            self._news.clear()
            await self._news.wait()

    async def _speak(self, socket: ClientConnection) -> None:
        """Send what there is to say, else silence, as a microphone does."""
        due = time.monotonic()
        with suppress(ConnectionClosed):
            while True:
                await send(socket, "input_audio_buffer.append", audio=self._to_say.pop(0) if self._to_say else SILENCE)
                due += CHUNK_S
                self.talked.lags_s.append(max(0.0, time.monotonic() - due))
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _listen(self, socket: ClientConnection) -> None:
        """Note what comes."""
        with suppress(ConnectionClosed):
            async for text in socket:
                self._note(json.loads(text))
                self._news.set()

    def _note(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "input_audio_buffer.speech_stopped":
            self._stopped_at = time.monotonic()
            self._seen.discard("response.done")  # what is done from here on answers this
        elif kind == "response.output_audio.delta" and self._stopped_at:
            self.talked.waits_s.append(time.monotonic() - self._stopped_at)
            self._stopped_at = 0.0
        elif kind == "error":
            self.talked.num_errors += 1
        is_cut = kind == "response.done" and message["response"]["status"] == "cancelled"
        self._seen.add("interrupted" if is_cut or kind == "conversation.item.truncated" else kind)


# Verdicts


def memory(watch: Watch, rests: list[Sample]) -> list[Verdict]:
    """Judge whether memory came back to what it was."""
    first, *later = [sample.held.resident_mb for sample in rests]
    growth = max(mb / first - 1 for mb in later)
    talking = [sample.held.resident_mb for sample in watch.samples if sample.part == "talk"]
    peak = max(talking, default=first) / first - 1
    told = f"{first:.0f} -> {', '.join(f'{mb:.0f}' for mb in later)} MiB ({growth:+.1%}); {peak:+.1%} while they talk"
    return [Verdict(f"memory at rest grows by less than {MEMORY_GROWTH:.0%}", told, growth < MEMORY_GROWTH)]


def places(rests: list[Sample], waits_s: list[float], freed_s: list[float], emptied_s: float) -> list[Verdict]:
    """Judge whether places, files, threads and processes came back."""
    slowest = max([*freed_s, emptied_s])
    kept = [(rest.held.num_files, rest.held.num_threads, rest.held.num_processes) for rest in rests]
    grown = [max(last) - first for first, *last in zip(*kept, strict=True)]
    names = ("files", "threads", "processes")
    told = ", ".join(f"{name} {first} {more:+d}" for name, first, more in zip(names, kept[0], grown, strict=True))
    left = [rest.num_sessions for rest in rests]
    return [
        Verdict(
            "every connect is greeted", f"{len(waits_s)}, {quantiles(waits_s)}", max(waits_s, default=0) < ANSWER_S
        ),
        Verdict(
            f"a place is free within {FREED_S:g} s", f"{quantiles(freed_s)}, slowest {slowest:.2f} s", slowest < FREED_S
        ),
        Verdict("no session is left", f"{max(left)} at rest", max(left) == 0),
        Verdict("no files, threads or processes are left", told, max(grown) <= 2),
    ]


def talk(talked: Talked) -> list[Verdict]:
    """Judge the conversations."""
    answers = f"{talked.num_answers} of {talked.num_turns} turns, first sound {quantiles(talked.waits_s)}"
    all_answered = not talked.num_stuck and talked.num_turns > 0
    cuts = f"{talked.num_interrupted} of {talked.num_barge_ins}"
    return [
        Verdict(f"every turn is answered within {ANSWER_S:g} s", answers, all_answered),
        Verdict("who speaks into an answer stops it", cuts, talked.num_interrupted == talked.num_barge_ins),
        Verdict("no message was an error", f"{talked.num_errors}; clients lag {quantiles(talked.lags_s)}",
                not talked.num_errors),
    ]  # fmt: skip


def quantiles(seconds: list[float]) -> str:
    """Write a median and a 95th percentile."""
    if not seconds:
        return "none"
    middle, high = statistics.median(seconds), sorted(seconds)[int(0.95 * (len(seconds) - 1))]
    return f"p50 {1000 * middle:.0f} ms, p95 {1000 * high:.0f} ms"


# What is told


def parts_table(samples: list[Sample]) -> Table:
    """Lay out what was held in each part."""
    table = Table("part")
    for column in ("s", "memory, MiB", "least", "most", "private, most", "sessions", "files", "threads"):
        table.add_column(column, justify="right")
    for part in dict.fromkeys(sample.part for sample in samples):
        mine = [sample for sample in samples if sample.part == part]
        memories = [sample.held.resident_mb for sample in mine]
        table.add_row(
            part,
            f"{mine[0].at_s:.0f} - {mine[-1].at_s:.0f}",
            f"{statistics.median(memories):.0f}",
            f"{min(memories):.0f}",
            f"{max(memories):.0f}",
            f"{max(sample.held.private_mb for sample in mine):.0f}",
            str(max(sample.num_sessions for sample in mine)),
            str(max(sample.held.num_files for sample in mine)),
            str(max(sample.held.num_threads for sample in mine)),
        )
    return table


def verdicts_table(verdicts: list[Verdict]) -> Table:
    """Lay out the verdicts."""
    table = Table("bar", "measured", "")
    for verdict in verdicts:
        table.add_row(verdict.bar, verdict.measured, "held" if verdict.is_held else "[bold]NOT HELD[/bold]")
    return table


def conditions(arguments: argparse.Namespace) -> str:
    """Say on what the numbers were measured."""
    return (
        f"{arguments.model}, {arguments.threads} thread(s), {arguments.connects} connects, {arguments.disconnects} "
        f"disconnects, {arguments.sessions} sessions for {arguments.minutes:g} minutes after {arguments.warm_up:g} s "
        f"of warm-up; {machine(PACKAGES)}"
    )


def document(arguments: argparse.Namespace, watch: Watch, talked: Talked, verdicts: list[Verdict]) -> dict[str, Any]:
    """Gather the numbers."""
    return {
        "conditions": conditions(arguments),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "talked": asdict(talked) | {"lags_s": quantiles(talked.lags_s)},
        "samples": [asdict(sample) for sample in watch.samples],
    }


def plot(samples: list[Sample], path: Path) -> None:
    """Draw memory, and sessions, files and threads, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    minutes = [sample.at_s / 60 for sample in samples]
    above.plot(minutes, [sample.held.resident_mb for sample in samples], label="resident")
    above.plot(minutes, [sample.held.private_mb for sample in samples], label="private")
    above.set_ylabel("memory, MiB")
    above.set_ylim(bottom=0)
    counts: dict[str, Callable[[Sample], int]] = {
        "sessions": lambda sample: sample.num_sessions,
        "files": lambda sample: sample.held.num_files,
        "threads": lambda sample: sample.held.num_threads,
    }
    for name, count in counts.items():
        below.plot(minutes, [count(sample) for sample in samples], label=name)
    below.set_xlabel("minutes")
    for axes in (above, below):
        mark_parts(axes, samples)
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def mark_parts(axes: Any, samples: list[Sample]) -> None:
    """Mark where each part begins."""
    for part in dict.fromkeys(sample.part for sample in samples):
        if part.startswith("rest"):
            continue
        begun = next(sample.at_s for sample in samples if sample.part == part) / 60
        axes.axvline(begun, color="0.8", linewidth=1)
        axes.text(begun, axes.get_ylim()[1], f" {part}", va="top", fontsize=8, color="0.4")


if __name__ == "__main__":
    main()
