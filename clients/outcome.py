"""What a client must have received at the end of a conversation, and the recording that it begins with."""

from __future__ import annotations

import array
import asyncio
import math
import os
import sys
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NoReturn

RATE = 24_000
FRAME_S = 0.04
POLL_S = 0.02
LOUD = 300
"""Of 32767: an answer has somewhere to be louder than that."""
PATIENCE_S = float(os.environ.get("PATIENCE_S", "300"))
"""How long a conversation may take."""


@dataclass
class Outcome:
    """What was received."""

    transcript: str = ""
    """What the server understood."""
    answer: str = ""
    """What it answered, in words."""
    sound: bytearray = field(default_factory=bytearray)
    """What it answered, as 16-bit samples at 24 kHz."""
    errors: list[str] = field(default_factory=list)
    is_done: bool = False
    """Whether the response was said to be complete."""

    @property
    def missing(self) -> list[str]:
        """Say what should have come, and did not."""
        loudest = max(map(abs, array.array("h", bytes(self.sound))), default=0)
        wanted = {
            "a transcript": bool(self.transcript.strip()),
            "an answer in words": bool(self.answer.strip()),
            "an answer that can be heard": loudest > LOUD,
            "the end of the response": self.is_done,
        }
        return [*(f"no {name}" for name, has_come in wanted.items() if not has_come), *self.errors]

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is to come."""
        return bool(self.errors or (self.is_done and self.transcript))

    @classmethod
    def of(cls, name: str, talk: Callable[[Outcome], Awaitable[None]]) -> NoReturn:
        """Let a client talk, print one line, and exit."""
        outcome = cls()
        try:
            asyncio.run(asyncio.wait_for(talk(outcome), PATIENCE_S))
        except TimeoutError:
            outcome.errors.append(f"not over after {PATIENCE_S:g} s")
        outcome.close(name)

    def close(self, name: str) -> NoReturn:
        """Print one line, and exit."""
        duration_s = len(self.sound) / 2 / RATE
        said = f"heard {self.transcript.strip()!r}, answered {self.answer.strip()!r} in {duration_s:.1f} s of sound"
        print(f"FAIL {name}: {'; '.join(self.missing)}; {said}" if self.missing else f"PASS {name}: {said}", flush=True)
        sys.exit(bool(self.missing))


class Checks:
    """What has come true of a scenario, one thing after the other."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        """What the client complained about."""
        self.done: list[str] = []
        self.awaited = "anything"

    async def until(self, claim: str, holds: Callable[[], object]) -> None:
        """Wait until something is so."""
        self.awaited = claim
        while not holds():
            if self.errors:
                raise AssertionError("; ".join(self.errors))
            await asyncio.sleep(POLL_S)
        self.done.append(claim)

    def that(self, claim: str, holds: object) -> None:
        """Check that something is so."""
        self.awaited = claim
        if not holds:
            raise AssertionError("it is not so")
        self.done.append(claim)

    @classmethod
    def of(cls, name: str, scenario: Callable[[Checks], Coroutine[Any, Any, None]]) -> None:
        """Let a client play a scenario, print one line, and exit."""
        asyncio.run(cls().play(name, scenario))

    async def play(self, name: str, scenario: Callable[[Checks], Coroutine[Any, Any, None]]) -> NoReturn:
        """Play a scenario; a client that does not end by itself is left behind."""
        playing = asyncio.create_task(scenario(self))
        await asyncio.wait({playing}, timeout=PATIENCE_S)
        failure = f"not so within {PATIENCE_S:g} s"
        if playing.done():
            error = playing.exception()
            failure = f"{type(error).__name__}: {error}" if error else ""
        done = ", ".join(self.done)
        said = f"FAIL {name}: {self.awaited}: {failure}; before that: {done}" if failure else f"PASS {name}: {done}"
        print(" ".join(said.split()), flush=True)
        os._exit(bool(failure))


def arguments() -> tuple[str, str]:
    """Return the base URL of the server and the path of a recording, as they were given to the script."""
    _, url, path = sys.argv
    return url, path


def samples(path: str) -> bytes:
    """Read a recording, 16-bit samples at 24 kHz."""
    with wave.open(path) as recording:
        assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (RATE, 1, 2)
        return recording.readframes(recording.getnframes())


async def microphone(path: str) -> AsyncIterator[bytes]:
    """Yield a recording, 16-bit samples at 24 kHz, as fast as it sounds, and silence after it for ever."""
    data = samples(path)
    size = 2 * round(RATE * FRAME_S)
    clock = asyncio.get_running_loop()
    begun, count = clock.time(), 0
    while True:
        yield data[count * size : (count + 1) * size].ljust(size, b"\0")
        count += 1
        await asyncio.sleep(begun + count * FRAME_S - clock.time())


async def utterance(path: str) -> AsyncIterator[bytes]:
    """Yield a recording as fast as it sounds, and two seconds of silence after it."""
    num_frames = math.ceil(len(samples(path)) / 2 / RATE / FRAME_S + 2 / FRAME_S)
    count = 0
    async for frame in microphone(path):
        if count == num_frames:
            return
        yield frame
        count += 1
