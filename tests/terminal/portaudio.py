"""A stand-in for the `sounddevice` package: its devices are in memory, its threads call back as PortAudio's do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 480
TICK_S = 0.005
"""A block of 20 ms passes in this time."""


class PortAudioError(Exception):
    pass


class PortAudio:
    """What is used of `sounddevice`: a microphone in front of which something is said, and a loudspeaker."""

    PortAudioError = PortAudioError

    def __init__(self, said: Tensor | None = None, missing: str = "", most_hz: float = 1e6) -> None:
        self.said = torch.zeros(0) if said is None else said
        self.missing, self.most_hz = missing, most_hz
        self.open: list[Stream] = []
        self.played: list[np.ndarray[Any, Any]] = []
        self.num_quiet = 0

    def query_devices(self, kind: str | None = None) -> Any:
        names = {"input": "a microphone", "output": "a loudspeaker"}
        found = [{"name": name} for each, name in names.items() if self.missing not in (each, "both")]
        if kind is None:
            return found
        if self.missing in (kind, "both"):
            raise PortAudioError("Error querying device -1")
        return {"name": names[kind]}

    def InputStream(self, **how: Any) -> Stream:  # noqa: N802
        return Stream(self, self.hear, **how)

    def OutputStream(self, **how: Any) -> Stream:  # noqa: N802
        return Stream(self, self.sound, **how)

    def hear(self, callback: Callable[..., None]) -> None:
        samples = np.zeros((BLOCK, 1), np.float32)
        heard, self.said = self.said[:BLOCK], self.said[BLOCK:]
        samples[: len(heard), 0] = heard.numpy()
        callback(samples, BLOCK, None, None)

    def sound(self, callback: Callable[..., None]) -> None:
        samples = np.full((BLOCK, 1), np.nan, np.float32)
        callback(samples, BLOCK, None, None)
        self.played.append(samples[:, 0])
        self.num_quiet = 0 if samples.any() else self.num_quiet + 1
        if self.num_quiet == 120 and any(map(np.any, self.played)):
            os.kill(os.getpid(), signal.SIGINT)  # the user has heard the answer, and presses ctrl-C


class Stream:
    """A device that is open; `start` lets it run."""

    def __init__(
        self, portaudio: PortAudio, pass_block: Callable[..., None], callback: Callable[..., None], *,
        samplerate: float, channels: int, dtype: str,
    ) -> None:  # fmt: skip
        if samplerate > portaudio.most_hz:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")
        assert (channels, dtype) == (1, "float32")
        self._portaudio, self._pass_block, self._callback = portaudio, pass_block, callback
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        portaudio.open.append(self)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        if self._thread.ident:
            self._thread.join()
        self._portaudio.open.remove(self)

    def _run(self) -> None:
        while not self._is_over.wait(TICK_S):
            self._pass_block(self._callback)
