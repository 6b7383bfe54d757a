"""What the two processes do: the engine transcribes, speaks and clones; the decoder reads files of strangers."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from tristep.audio import LISTEN_HZ, AudioError, read_audio, stream_audio
from tristep.codec.speaker import similarity
from tristep.codec.voice import Voice
from tristep.engine.engine import Engine
from tristep.engine.listening import Hearing, listen
from tristep.engine.settings import Options, Settings
from tristep.engine.transcription import Segment, Transcription
from tristep.server.chat_jobs import Complete, complete
from tristep.server.realtime_jobs import Converse, converse
from tristep.server.worker import Answer, Check, Line

BLOCK_S = 5.0
SAME_SPEAKER = 0.4
"""Least similarity of a voice to the one that consents. Two clips of one reader have 0.6, of different readers at
most 0.2."""
MOST_WAITING = 10_000
"""Segments and sentences that may wait for a slot: the server's own queue is the bound."""
DECODER_MEMORY = 1 << 30
"""Bytes that the decoder may take beside what it starts with."""


@dataclass(frozen=True)
class Decode:
    """Write a file of any kind as one channel of WAV. The answer is its duration, seconds."""

    source: Path
    target: Path
    sample_rate: int
    max_audio_s: float


@dataclass(frozen=True)
class Transcribe:
    """Write down what is said in a WAV of ours. The answer is a `Transcription`."""

    path: Path
    options: Options
    by_segment: bool = False
    """Answer each `Segment` as soon as it is written, before the whole."""


@dataclass(frozen=True)
class Speak:
    """Say a text. The answer is samples at 24 kHz, chunk by chunk, and then `Spoken`."""

    text: str
    voice: Voice
    instructions: str = ""
    seed: int = 0
    speed: float = 1.0


@dataclass(frozen=True)
class Spoken:
    """How it went."""

    num_input_tokens: int
    num_output_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Clone:
    """Make a voice of a WAV of ours, if whoever consents in another one has it. The answer is a `Voice`."""

    sample: Path
    consent: Path
    name: str
    text: str
    """What is said in the sample; recognised if empty."""
    licence: str


def load_engine(model: str, threads: int | None, mark: bool) -> Answer:
    """Start the engine's process."""
    if threads is not None:
        torch.set_num_threads(threads)
    return EngineJobs(Engine.load(model), mark)


class EngineJobs:
    """Answers the engine's jobs."""

    def __init__(self, engine: Engine, mark: bool = True) -> None:
        self.engine = engine
        self.listener = engine.sharing(max_waiting=MOST_WAITING)
        """The same engine for jobs that can wait for each other; a conversation can't."""
        self.cannot_speak = ""
        """Why not, where the weights only listen."""
        try:
            engine.talker.marks = mark
            self.talker = engine.talker.sharing(max_waiting=MOST_WAITING)
        except ValueError as error:
            self.cannot_speak = str(error)

    def __call__(self, job: Any, check_in: Line) -> Iterator[Any]:
        match job:
            case Transcribe(by_segment=False):
                return self.transcribe(job, check_in)
            case Transcribe():
                return self.transcribe_by_segment(job, check_in)
            case Speak():
                return self.speak(job)
            case Clone():
                return iter([self.clone(job)])
            case Complete():
                return complete(self.engine, job, check_in)
            case Converse():
                return converse(self.engine, self.cannot_speak, job, check_in)
        raise TypeError(f"the engine was given a {type(job).__name__}")

    def transcribe(self, job: Transcribe, check_in: Check) -> Iterator[Transcription]:
        """Yield what is said."""
        results = self.listener.transcribe_each([job.path], on_progress=lambda seconds: check_in(), **job.options)
        yield from map(or_raise, results)

    def transcribe_by_segment(self, job: Transcribe, check_in: Check) -> Iterator[Segment | Transcription]:
        """Yield what is said piece by piece, and then the whole."""
        settings = Settings(**job.options)
        hotwords = self.engine.read_hotwords(settings)
        hearings: deque[Hearing] = deque()
        for hearing, number, stretch in listen([job.path], hearings, lambda seconds: check_in()):
            [(segment, _)] = self.listener.transcribe_stretches([stretch], settings, hotwords)
            hearing.segments[number] = segment
            yield segment
        yield or_raise(hearings[0].result())

    def speak(self, job: Speak) -> Iterator[np.ndarray[Any, np.dtype[np.float32]] | Spoken]:
        """Yield the sound as it comes."""
        if self.cannot_speak:
            raise ValueError(self.cannot_speak)
        stream = self.talker.stream_speech(
            job.text, job.voice, instructions=job.instructions, seed=job.seed, speed=job.speed
        )
        for chunk in stream:
            yield chunk.numpy()
        spoken_s = sum(sentence.end_s - sentence.start_s for sentence in stream.sentences)
        given = f"{job.instructions} {job.text}".strip()
        yield Spoken(
            num_input_tokens=len(self.talker.chat.tokenizer.encode(given)),
            num_output_tokens=round(spoken_s * job.speed * self.talker.codec.code_rate_hz),
            finish_reason=stream.finish_reason,
        )

    def clone(self, job: Clone) -> Voice:
        """Make a voice, and compare it with the one that consents."""
        if self.cannot_speak:
            raise ValueError(self.cannot_speak)
        text = job.text or self.engine.transcribe(job.sample).text
        voice = self.engine.talker.clone(job.sample, text, job.name)
        speaker = self.engine.talker.speaker
        assert speaker is not None
        check_consent(voice.embedding, speaker.embed(read_audio(job.consent, LISTEN_HZ)))
        return replace(voice, licence=job.licence)


def or_raise(result: Transcription | AudioError) -> Transcription:
    """Return a transcription, or raise what stands in its place."""
    if isinstance(result, AudioError):
        raise result
    return result


def check_consent(voice: torch.Tensor, consenting: torch.Tensor) -> None:
    """Refuse a voice whose embedding `(D,)` is not that of the speaker who consents."""
    if (likeness := similarity(voice, consenting)) < SAME_SPEAKER:
        raise ValueError(
            f"the voices of the sample and of the consent have a similarity of {likeness:.2f}: expected at least "
            f"{SAME_SPEAKER:g}; whoever speaks in the sample must also say that they consent"
        )


def load_decoder(max_bytes: int) -> Answer:
    """Start the decoder's process, which may neither take much memory nor write more than `max_bytes` to a file."""
    if sys.platform == "linux":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + DECODER_MEMORY, used + DECODER_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return decode


def decode(job: Decode, check_in: Check) -> Iterator[float]:
    """Decode block by block, so that the sound is never held in memory."""
    try:
        with soundfile.SoundFile(job.target, "w", job.sample_rate, 1, subtype="FLOAT", format="WAV") as target:
            for block in stream_audio(job.source, BLOCK_S, job.sample_rate, max_duration_s=job.max_audio_s):
                target.write(block.numpy())
                check_in()
            yield target.frames / job.sample_rate
    except AudioError as error:
        raise type(error)(str(error).replace(str(job.source), "the upload")) from error
