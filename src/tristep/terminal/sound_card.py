"""The computer's own microphone and loudspeaker, by PortAudio: what the system has as defaults."""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue
from threading import Lock
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, Samples

DUCKED_GAIN = 0.15
DEAD_S = 5.0
"""A microphone that delivers nothing for so long is gone."""
INSTEAD = "or converse with recordings: tristep converse IN.wav --out OUT.wav"


class SoundCard:
    """A `SoundDevice`, and a context in which it runs. PortAudio calls `capture` and `fill` in threads of its own."""

    def __init__(self) -> None:
        """Look for devices; none is opened yet.

        Raises:
            ModuleNotFoundError: If `sounddevice` is not installed.
            ValueError: If PortAudio is not, or there is no microphone or no loudspeaker.
        """
        self._portaudio = load_portaudio()
        self.names = [device_name(self._portaudio, kind) for kind in ("input", "output")]
        """Of the microphone and of the loudspeaker."""
        self.num_heard = self.num_played = 0
        self._heard: SimpleQueue[Tensor] = SimpleQueue()
        self._waiting: deque[Samples] = deque()
        self._lock = Lock()  # what is waiting, and how much was played, change together
        self._gain = self._wanted_gain = 1.0
        self._streams: list[Any] = []

    def __enter__(self) -> SoundCard:
        """Open the devices.

        Raises:
            ValueError: If they can't be used as they are needed.
        """
        how = {"samplerate": SPEAK_HZ, "channels": 1, "dtype": "float32"}
        try:
            self._streams.append(self._portaudio.InputStream(callback=self.capture, **how))
            self._streams.append(self._portaudio.OutputStream(callback=self.fill, **how))
            for stream in self._streams:
                stream.start()
        except self._portaudio.PortAudioError as error:
            self._close()
            raise ValueError(
                f"the microphone ({self.names[0]}) and the loudspeaker ({self.names[1]}) can't be opened at "
                f"{SPEAK_HZ} Hz, one channel ({error}): choose others in the system's settings, {INSTEAD}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def read(self, *, wait: bool) -> Tensor:
        """Return what was captured since the last call, shape `(S,)`.

        Raises:
            ValueError: If nothing comes for `DEAD_S`.
        """
        try:
            first = [self._heard.get(timeout=DEAD_S)] if wait else []
        except Empty as error:
            raise ValueError(
                f"the microphone ({self.names[0]}) has delivered nothing for {DEAD_S:g} s: check that it is connected "
                "and that the system lets this terminal use it"
            ) from error
        return torch.cat([torch.zeros(0), *first, *(self._heard.get() for _ in range(self._heard.qsize()))])

    def play(self, waveform: Tensor) -> None:
        """Play samples `(S,)` after all that there is to be played."""
        with self._lock:
            self._waiting.append(waveform.clamp(-1, 1).numpy())

    def clear(self) -> None:
        """Fall silent, and forget what has not been played."""
        with self._lock:
            self._waiting.clear()

    def duck(self, is_ducked: bool) -> None:
        """Play more quietly, or as loud as usual again."""
        self._wanted_gain = DUCKED_GAIN if is_ducked else 1.0

    def capture(self, samples: Samples, num_samples: int, *_: object) -> None:
        """Take what the microphone brings, shape `(S, 1)`."""
        self._heard.put(torch.from_numpy(samples[:, 0].copy()))
        self.num_heard += num_samples

    def fill(self, samples: Samples, num_samples: int, *_: object) -> None:
        """Write what the loudspeaker plays next, shape `(S, 1)`; the loudness glides."""
        filled = 0
        with self._lock:
            while self._waiting and filled < num_samples:
                taken = self._waiting[0][: num_samples - filled]
                samples[filled : filled + len(taken), 0] = taken
                filled += len(taken)
                self._waiting[0] = self._waiting[0][len(taken) :]
                if not len(self._waiting[0]):
                    self._waiting.popleft()
            self.num_played += filled
        samples[filled:] = 0
        samples[:, 0] *= np.linspace(self._gain, self._wanted_gain, num_samples, dtype=np.float32)
        self._gain = self._wanted_gain


def load_portaudio() -> ModuleType:
    """Import the library, and it the system's."""
    try:
        import sounddevice
    except OSError as error:
        raise ValueError(
            f"sound devices can't be used ({error}): install PortAudio (apt install libportaudio2, dnf install "
            f"portaudio, brew install portaudio), {INSTEAD}"
        ) from error
    return sounddevice


def device_name(portaudio: Any, kind: str) -> str:
    """Return the name of the default device that hears (`input`) or plays (`output`)."""
    try:
        return str(portaudio.query_devices(kind=kind)["name"])
    except portaudio.PortAudioError as error:
        wanted = "microphone" if kind == "input" else "loudspeaker"
        names = [device["name"] for device in portaudio.query_devices()]
        found = f"finds only {', '.join(names)}" if names else "finds no sound device at all"
        raise ValueError(
            f"there is no {wanted}: PortAudio {found}; connect one and make it the system's default, {INSTEAD}"
        ) from error
