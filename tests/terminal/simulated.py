"""A sound device in memory, and a user at it: whenever the loop looks, 20 ms have passed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ

BLOCK = SPEAK_HZ // 50


class Simulated:
    """A microphone that hears what the user says, and a loudspeaker that remembers what it played and when."""

    def __init__(self, said: Tensor) -> None:
        self.to_say = said
        self.num_heard = self.num_played = 0
        self.at_each_block: Callable[[], object] = lambda: None
        """What the user does meanwhile."""
        self.ducks: list[bool] = []
        self.sounded: list[Tensor] = []
        """What came out of the loudspeaker: one tensor a block, silence where it is shorter."""
        self.num_quiet = 0
        """Blocks since anybody was last heard."""
        self._waiting = torch.zeros(0)

    def read(self, *, wait: bool) -> Tensor:
        self._pass()
        heard, self.to_say = self.to_say[:BLOCK], self.to_say[BLOCK:]
        self.num_quiet = 0 if len(heard) or len(self.sounded[-1]) else self.num_quiet + 1
        return torch.cat([heard, torch.zeros(BLOCK - len(heard))])

    def _pass(self) -> None:
        self.at_each_block()
        self.sounded.append(self._waiting[:BLOCK])
        self._waiting = self._waiting[BLOCK:]
        self.num_heard += BLOCK
        self.num_played += len(self.sounded[-1])

    def play(self, waveform: Tensor) -> None:
        self._waiting = torch.cat([self._waiting, waveform])

    def clear(self) -> None:
        self._waiting = torch.zeros(0)

    def duck(self, is_ducked: bool) -> None:
        self.ducks.append(is_ducked)

    def say(self, waveform: Tensor) -> None:
        """Let the user say something now."""
        self.to_say = waveform

    @property
    def now_s(self) -> float:
        return self.num_heard / SPEAK_HZ

    @property
    def played(self) -> Tensor:
        """All that was played, without the silence."""
        return torch.cat(self.sounded)

    def starts_s(self) -> list[float]:
        """When it began to sound each time, after silence."""
        sounds = [False, *(len(block) > 0 for block in self.sounded)]
        return [place * BLOCK / SPEAK_HZ for place, (before, now) in enumerate(pairwise(sounds)) if now and not before]
