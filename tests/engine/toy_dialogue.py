"""A toy that converses: random weights that really hear, think and speak, with the words settled beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio
from tristep.backbone.model import Backbone
from tristep.codec.codec import Codec
from tristep.codec.voice import Voice
from tristep.config import load_backbone_config, load_codec_config
from tristep.engine.conversing import Thinker
from tristep.engine.dialogue import Event, SessionSettings, Usage
from tristep.engine.engine import Engine
from tristep.engine.session import Session
from tristep.engine.talking import Request, Talker
from tristep.modes.tts.decoding import Recital
from tristep.vocab import byte_tokenizer

Kind = TypeVar("Kind")
DATA = Path(__file__).parents[1] / "data"
HEARD = "how are you"
ANSWER = "I am well, thank you. And you?"


class Hearing(Engine):
    """An engine that hears the same words in all speech."""

    words = HEARD

    def answer(self, heard, completions, language=None, style="spoken", sources=None):  # type: ignore[no-untyped-def]
        for row in completions:
            row.tokens = [self.backbone.vocab.control("lang_en"), *self.chat.tokenizer.encode(self.words)]
            row.probs, row.finish_reason = [0.5] * len(row.tokens), "stop"
        return list(completions)


class Saying(Thinker):
    """A thinker that has its answer ready: after a prompt the tokens of `words` are the best, one by one."""

    def __init__(self, words: str) -> None:
        super().__init__(backbone(), byte_tokenizer())
        self.words = words
        self.places: dict[int, int] = {}

    def read(self, tokens: Sequence[int], cache):  # type: ignore[no-untyped-def]
        logits = super().read(tokens, cache).clone()
        place = self.places[id(cache)] = 0 if len(tokens) > 1 else self.places[id(cache)] + 1
        script = [*self.chat.tokenizer.encode(self.words), self.backbone.vocab.control("turn_end")]
        logits[script[min(place, len(script) - 1)]] += 1e4
        return logits


class Brisk(Talker):
    """A talker that takes a quarter of a second for a word: random weights would take all the time there is."""

    def recitals(self, pieces: Sequence[str], request: Request) -> list[Recital]:
        made = super().recitals(pieces, request)
        for recital in made:
            recital.budgets = [round(0.25 * self.codec.code_rate_hz)] * len(recital.words)
        return made


def backbone(num_codes: int = 0) -> Backbone:
    torch.manual_seed(0)
    made = Backbone(load_backbone_config("toy"))
    if num_codes:
        made.grow_vocabulary(num_codes)
    return made


@cache
def talker() -> Talker:
    listening = backbone()
    codec = Codec(load_codec_config("codec-toy"), listening.encode_audio)
    return Brisk(backbone(codec.codebook_size), byte_tokenizer(), codec, Path("nowhere"))


@cache
def engine(answer: str = ANSWER, heard: str = HEARD) -> Engine:
    made = Hearing(backbone(), byte_tokenizer(), talker, lambda: Saying(answer))
    made.words = heard
    return made


@cache
def voice() -> Voice:
    generator = torch.Generator().manual_seed(1)
    return Voice(
        "anna", torch.randn(192, generator=generator), torch.randn(80, 50, generator=generator),
        torch.zeros(5, dtype=torch.long), "what she says", 200.0, -20.0, "CC0",
    )  # fmt: skip


def session(answer: str = ANSWER, heard: str = HEARD, context_tokens: int = 2048, **settings: object) -> Session:
    chosen = SessionSettings(**({"voice": voice()} | settings))  # type: ignore[arg-type]
    return Session(engine(answer, heard), chosen, context_tokens=context_tokens)


def silence(duration_ms: float) -> Tensor:
    return torch.zeros(round(duration_ms * SPEAK_HZ / 1000))


@cache
def speech(duration_ms: float) -> Tensor:
    """Return the beginning of real speech: 1.9 s without a pause."""
    clip = read_audio(DATA / "jfk.flac", SPEAK_HZ)[round(0.34 * SPEAK_HZ) :]
    return clip[: round(duration_ms * SPEAK_HZ / 1000)]


def cough() -> Tensor:
    """Return 100 ms of noise that dies away."""
    num_samples = SPEAK_HZ // 10
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(5))
    return 0.3 * noise * torch.exp(-torch.arange(num_samples) / num_samples * 3)


def worked(talking: Session, most: int = 1000) -> list[Event]:
    """Do all the work there is."""
    events: list[Event] = []
    for _ in range(most):
        if not talking.has_work:
            return events
        events += talking.step()
    raise AssertionError("the work never ends")


def plain(value: Any) -> Any:
    """Return what a value holds, ready to be compared."""
    if isinstance(value, Tensor):
        return value.shape, value.numpy().tobytes()
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Usage):
        value = replace(value, cached_tokens=0)  # what had been read depends on when there was time
    if is_dataclass(value):
        return type(value).__name__, [plain(getattr(value, field.name)) for field in fields(value)]
    return value


def of(kind: type[Kind], events: Sequence[Event]) -> list[Kind]:
    """Return the events of one kind."""
    return [event for event in events if isinstance(event, kind)]
