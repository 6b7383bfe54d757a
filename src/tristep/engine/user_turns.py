"""The user's side of a session: their sound as it comes, the open turn, and turns not yet heard to their end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.codec.voice import to_listening_rate
from tristep.engine.conversing import Ear
from tristep.engine.dialogue import Part, SessionError, Transcribing, TurnDetection
from tristep.engine.microphone import Microphone
from tristep.engine.session_settings import hearing
from tristep.engine.streaming import TranscriptionStream
from tristep.engine.turns import Change, TurnDetector
from tristep.engine.voice_activity import FRAME_SIZE

if TYPE_CHECKING:
    from tristep.engine.engine import Engine

MIN_COMMIT_S = 0.1
MAX_TURN_S = 600.0
"""The longest turn: it ends, or takes no more sound."""
MAX_UNHEARD_S = 1200.0
"""The most sound, of turns that are over and of items, that waits to be heard."""
NEVER_S = 1e6
"""Between two guesses at a turn that is not told live."""


def milliseconds(num_samples: int) -> int:
    """Return the time of a position in the user's sound."""
    return round(1000 * num_samples / LISTEN_HZ)


@dataclass
class OpenTurn:
    """A turn of the user: being spoken, or over and not yet heard to its end."""

    item_id: str
    start: int
    """Samples at 16 kHz."""
    ear: Ear
    is_told: bool
    """Whether the client is told what was heard."""
    num_samples: int = 0
    """How long it is, once it is over."""


class UserTurns:
    """Cuts the user's sound into turns; positions count samples at 16 kHz. It knows nothing of answers."""

    def __init__(self, engine: Engine, detector: TurnDetector, new_id: Callable[[str], str]) -> None:
        """Begin to listen.

        Args:
            engine: Hears.
            detector: Finds turns.
            new_id: Names them.
        """
        self.engine, self.detector, self.new_id = engine, detector, new_id
        self.turn: OpenTurn | None = None
        """The one that is open."""
        self.unheard = deque[OpenTurn]()
        """Those that are over, the oldest first."""
        self._microphone = Microphone()
        self._taken = 0  # position up to which sound has become items, or was cleared

    @property
    def position(self) -> int:
        """How much sound has been looked at."""
        return self.detector.position

    @property
    def is_too_long(self) -> bool:
        """Whether the turn that is open has to end."""
        return self.turn is not None and self.position - self.turn.start > MAX_TURN_S * LISTEN_HZ

    def push(self, waveform: Tensor, sample_rate: int, detection: TurnDetection | None) -> list[Tensor]:
        """Take the next sound; return the frames that it completes, each of which is to be given to `look_at`.

        Raises:
            SessionError: If it is no sound, or too much.
        """
        self.check_unheard(0)
        if detection is None and self.is_too_long:
            raise SessionError("audio_too_long", f"the turn is longer than {MAX_TURN_S:g} s: commit or clear it")
        return self._microphone.push(waveform, sample_rate)

    def look_at(self, frame: Tensor, detection: TurnDetection | None, told: Transcribing | None) -> list[Change]:
        """Take the next frame, shape `(FRAME_SIZE,)`; where nothing finds turns, one is always open."""
        changes = self.detector.push(frame, detection, self.sound_since)
        if self.turn:
            self.turn.ear.push(frame)
        elif detection is None:
            self.open(self.position - FRAME_SIZE, told)
        return changes

    def open(self, start: int, told: Transcribing | None) -> OpenTurn:
        """Begin to hear a turn, from a position on that is not in another one."""
        turn = self.turn = self.made(max(self._taken, start, 0), told)
        return turn

    def made(self, start: int, told: Transcribing | None) -> OpenTurn:
        """Make a turn of the sound from a position on."""
        turn = OpenTurn(self.new_id("item"), start, self._ear(told or Transcribing()), told is not None)
        turn.ear.push(self.sound_since(start))
        return turn

    def _ear(self, told: Transcribing) -> Ear:
        if told.live:
            return Ear(TranscriptionStream(self.engine, hearing(told)))
        return Ear(TranscriptionStream(self.engine, hearing(told), "segment", NEVER_S))

    def sound_since(self, start: int) -> Tensor:
        """Return the sound from a position up to the last frame, shape `(S,)`."""
        return self._microphone.between(start, self.position)

    def take(self, turn: OpenTurn, end: int) -> Tensor:
        """End a turn at a position and return its sound, shape `(S,)`; it will be heard to its end."""
        waveform = self._microphone.between(turn.start, end)
        self.turn, self._taken = None, end
        turn.num_samples = len(waveform)
        turn.ear.close()
        self.unheard.append(turn)
        return waveform

    def committed(self, told: Transcribing | None) -> tuple[OpenTurn, int]:
        """Return the turn that is all there is up to now, and where it ends.

        Raises:
            SessionError: If that is too little.
        """
        end = self._microphone.num_samples
        start = self.turn.start if self.turn else max(self._taken, self._microphone.first)
        if end - start < MIN_COMMIT_S * LISTEN_HZ:
            raise SessionError(
                "input_audio_buffer_commit_empty",
                f"the buffer is too small: it holds {milliseconds(max(0, end - start))} ms of sound, expected at least "
                "100 ms; append more before it is committed",
            )
        turn = self.turn or self.made(start, told)
        turn.ear.push(self._microphone.between(self.position, end))
        self.detector.reset()
        return turn, end

    def clear(self) -> None:
        """Forget what is in no item."""
        self.turn, self._taken = None, self._microphone.num_samples
        self.detector.reset()

    def forget(self, prefix: int) -> None:
        """Drop the sound that no turn can need any more, but so many samples before the last second."""
        self._microphone.forget(self.turn.start if self.turn else self.position - LISTEN_HZ - prefix)

    def hear_later(self, item_id: str, parts: tuple[Part, ...]) -> None:
        """Let sounds of an item be heard that nobody has written down yet.

        Raises:
            SessionError: If so much waits to be heard already.
        """
        heard = [at_listening_rate(part) for part in parts if part.text is None and part.waveform is not None]
        if not heard:
            return
        num_samples = sum(map(len, heard))
        self.check_unheard(num_samples)
        turn = OpenTurn(item_id, 0, self._ear(Transcribing()), is_told=False, num_samples=num_samples)
        for waveform in heard:
            turn.ear.push(waveform)
        turn.ear.close()
        self.unheard.append(turn)

    def check_unheard(self, num_samples: int) -> None:
        """Refuse more sound where too much waits to be heard already."""
        waiting = sum(turn.num_samples for turn in self.unheard) + num_samples
        if waiting > MAX_UNHEARD_S * LISTEN_HZ:
            raise SessionError(
                "audio_too_long",
                f"{waiting / LISTEN_HZ:.0f} s of sound would wait to be heard: expected at most {MAX_UNHEARD_S:g} s",
            )


def at_listening_rate(part: Part) -> Tensor:
    """Return the sound of a part at 16 kHz, shape `(S,)`."""
    assert part.waveform is not None
    if part.sample_rate == LISTEN_HZ:
        return part.waveform
    if part.sample_rate != SPEAK_HZ:
        raise SessionError("invalid_value", f"the sound has {part.sample_rate} Hz: expected {LISTEN_HZ} or {SPEAK_HZ}")
    return to_listening_rate(part.waveform)
