"""What a client must have received at the end of a conversation, and the recording that it begins with."""

from __future__ import annotations

import array
import asyncio
import os
import sys
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn

RATE = 24_000
FRAME_S = 0.04
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


def arguments() -> tuple[str, str]:
    """Return the base URL of the server and the path of a recording, as they were given to the script."""
    _, url, path = sys.argv
    return url, path


async def microphone(path: str) -> AsyncIterator[bytes]:
    """Yield a recording, 16-bit samples at 24 kHz, as fast as it sounds, and silence after it for ever."""
    with wave.open(path) as recording:
        assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (RATE, 1, 2)
        data = recording.readframes(recording.getnframes())
    size = 2 * round(RATE * FRAME_S)
    clock = asyncio.get_running_loop()
    begun, count = clock.time(), 0
    while True:
        yield data[count * size : (count + 1) * size].ljust(size, b"\0")
        count += 1
        await asyncio.sleep(begun + count * FRAME_S - clock.time())
