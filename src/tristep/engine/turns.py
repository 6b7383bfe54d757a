"""Turns: from frames of sound, when the user begins to speak, pauses, and has finished.

A voice has to last for `MIN_VOICE_S` before it counts as speech: a cough is shorter, and speech is known for what it
is within 200 ms. A turn is over after a silence (`ServerVad`), or once it sounds finished (`SemanticVad`), which
Smart-Turn judges from the last 8 s of sound where its weights are; the eagerness alone decides where they are not.

What follows depends on the frames alone, not on when they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tristep.audio import LISTEN_HZ, log_mel
from tristep.engine.dialogue import Eagerness, SemanticVad, ServerVad, TurnDetection
from tristep.engine.segments import num_frames
from tristep.engine.voice_activity import FRAME_SIZE

Detector = Callable[[Tensor], list[float]]
"""Says for each of the next frames, shape `(N, FRAME_SIZE)`, how likely it is that somebody speaks."""
EndOfTurn = Callable[[Tensor], float]
"""Says of a turn so far, shape `(S,)` at 16 kHz, how likely it is that the user has finished."""

MIN_VOICE_S = 0.128
"""A voice that lasts for so long is speech."""
PAUSE_S = 0.224
"""After so much silence it may be over, and it pays to have heard what there is: the margin that it is heard with."""
THRESHOLD, HYSTERESIS = 0.5, 0.15
"""Speech goes on until its probability falls this far below what it began with."""
FINISHED = 0.5
SILENCE_MS: dict[Eagerness, int] = {"low": 1200, "medium": 700, "auto": 700, "high": 400}
"""Silence that ends a turn where nothing judges whether it sounds finished."""
LONGEST_SILENCE_MS: dict[Eagerness, int] = {"low": 8000, "medium": 4000, "auto": 4000, "high": 2000}
"""Silence that ends a turn that does not sound finished."""
SMART_TURN = "smart-turn.onnx"
SMART_TURN_S = 8


@dataclass(frozen=True)
class Change:
    """Something that has become known, and the position that it is about, in samples at 16 kHz.

    `voice`: it may be speech, from here on. `noise`: it was none. `started`: it is speech, from here on. `paused`: so
    far it went, and it may be over. `stopped`: the turn is over, here.
    """

    kind: Literal["voice", "noise", "started", "paused", "stopped"]
    position: int


class TurnDetector:
    """Follows one sound, frame by frame."""

    def __init__(self, detector: Detector, end_of_turn: EndOfTurn | None = None) -> None:
        self.detector, self.end_of_turn = detector, end_of_turn
        self.is_speaking = False
        self.position = 0
        """Samples of the frames so far."""
        self._num_voiced = self._num_silent = 0
        self._start = 0

    def push(self, frame: Tensor, detection: TurnDetection | None, turn: Callable[[int], Tensor]) -> list[Change]:
        """Take the next frame.

        Args:
            frame: Shape `(FRAME_SIZE,)`.
            detection: How turns end; None if they don't end by themselves.
            turn: Returns the sound from a position on, shape `(S,)`.
        """
        (prob,) = self.detector(frame[None])
        threshold = detection.threshold if isinstance(detection, ServerVad) else THRESHOLD
        self.position += FRAME_SIZE
        if not self.is_speaking:
            return self._waiting(prob >= threshold)
        return self._speaking(prob >= max(threshold - HYSTERESIS, 0.01), detection, turn)

    def reset(self) -> None:
        """Wait for the next turn."""
        self.is_speaking = False
        self._num_voiced = self._num_silent = 0

    def _waiting(self, is_voiced: bool) -> list[Change]:
        """Count how long a voice lasts."""
        if not is_voiced:
            was_voiced, self._num_voiced = self._num_voiced, 0
            return [Change("noise", self.position)] if was_voiced else []
        self._num_voiced += 1
        changes = []
        if self._num_voiced == 1:
            self._start = self.position - FRAME_SIZE
            changes.append(Change("voice", self._start))
        if self._num_voiced == num_frames(MIN_VOICE_S):
            self.is_speaking, self._num_silent = True, 0
            changes.append(Change("started", self._start))
        return changes

    def _speaking(
        self, is_voiced: bool, detection: TurnDetection | None, turn: Callable[[int], Tensor]
    ) -> list[Change]:
        """Count how long the silence lasts."""
        self._num_silent = 0 if is_voiced else self._num_silent + 1
        if is_voiced:
            return []
        changes = []
        if self._num_silent == num_frames(PAUSE_S):
            changes.append(Change("paused", self.position - self._num_silent * FRAME_SIZE))
        if self._is_over(detection, turn):
            changes.append(Change("stopped", self.position))
            self.reset()
        return changes

    def _is_over(self, detection: TurnDetection | None, turn: Callable[[int], Tensor]) -> bool:
        """Say whether the silence so far ends the turn."""
        silence_ms = 1000 * self._num_silent * FRAME_SIZE / LISTEN_HZ
        if isinstance(detection, ServerVad):
            return silence_ms >= detection.silence_duration_ms
        if not isinstance(detection, SemanticVad):
            return False
        if self.end_of_turn is None:
            return silence_ms >= SILENCE_MS[detection.eagerness]
        if silence_ms >= LONGEST_SILENCE_MS[detection.eagerness]:
            return True
        return self._num_silent == num_frames(PAUSE_S) and self.end_of_turn(turn(self._start)) >= FINISHED


class SmartTurn:
    """Smart-Turn v3: whether a turn sounds finished, by its intonation and its words."""

    def __init__(self, session: Any) -> None:
        self.session = session
        """onnxruntime's `InferenceSession`."""

    @classmethod
    def load(cls, folder: Path) -> SmartTurn | None:
        """Load it from a folder of weights; None where they, or onnxruntime to run them, are missing."""
        path = folder / SMART_TURN
        if not path.is_file():
            return None
        try:
            import onnxruntime
        except ModuleNotFoundError:
            return None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return cls(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    def __call__(self, waveform: Tensor) -> float:
        """Judge a turn so far, shape `(S,)` at 16 kHz, by its end."""
        mel = smart_turn_mel(waveform)[None].numpy()
        return float(self.session.run(None, {"input_features": mel})[0].item())


def smart_turn_mel(waveform: Tensor) -> Tensor:
    """Return what Smart-Turn reads of a sound: the log-mel of its last 8 s, silence before it, shape `(80, 800)`."""
    num_samples = SMART_TURN_S * LISTEN_HZ
    last = F.pad(waveform[-num_samples:], (max(0, num_samples - len(waveform)), 0))
    return log_mel((last - last.mean()) / torch.sqrt(last.var(correction=0) + 1e-7))
