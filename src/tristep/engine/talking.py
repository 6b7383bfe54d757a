"""Speaking: text of any length in, sound out, whole or as it comes.

A text is written out as it is read aloud, cut into sentences, and each sentence is spoken by the TTS mode and sounded
by the codec in one voice. What a sentence sounds like follows from its text, its place, the voice, the instructions
and the seed: a stream gives the very samples that the whole gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from tristep.audio import SPEAK_HZ, read_audio, speech_mel, write_audio
from tristep.backbone.checkpoints import find_weights, load_backbone
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, compute_in
from tristep.chat import Chat
from tristep.codec.codec import Codec, CodecStream
from tristep.codec.speaker import SpeakerEncoder
from tristep.codec.voice import Voice, list_voices, read_voice, voice_from_clip
from tristep.engine.reciting import Sampling, recite
from tristep.engine.scheduler import Request as ScheduledRequest
from tristep.engine.scheduler import Scheduler
from tristep.engine.writers import CodeWriter
from tristep.mark import SYNTHETIC, Marker, marked
from tristep.modes.tts.data import Manner, turns
from tristep.modes.tts.decoding import FinishReason, Recital
from tristep.modes.tts.pauses import Pauses, is_pause
from tristep.text import Cue, Text, join_parts, sentences, speakable, split_cues, without_cues, written_words
from tristep.vocab import TextTokenizer

BETWEEN_SENTENCES_S = 0.2
"""Silence between sentences, beside what each has at its ends."""
SEMITONES, DECIBELS, OCTAVES = 2.0, 5.0, 0.12
"""What one degree of pitch, of volume, and of pace is worth, of pace beside what the codes make of it."""
EARLY_CHUNKS_S, CHUNK_S = (0.48, 0.48), 0.96
"""Seconds of codes that are sounded at once: few at first, so that the first sound comes early, and few again, so that
the second is there before the first is over."""
LEAD_S, QUIET = 0.03, 0.01
"""Silence that is left before a first sound, and how loud that has to be."""
MAX_INSTRUCTIONS = 200
"""Characters, as in the report's API (section 7.5)."""
MIN_SPEED, MAX_SPEED = 0.25, 4.0


@dataclass(frozen=True)
class Sentence:
    """One sentence as it was spoken."""

    text: str
    start_s: float
    end_s: float
    finish_reason: FinishReason
    """`length`: a word had no end and was cut."""
    num_again: int = 0
    """Times that a word was taken back and said again."""


@dataclass(frozen=True)
class Speech:
    """What was said."""

    waveform: Tensor
    """24 kHz, shape `(S,)`."""
    sentences: tuple[Sentence, ...]
    voice: str
    seed: int
    tag: str = ""
    """What a file of it says in its tags."""

    @property
    def duration_s(self) -> float:
        """How long it sounds."""
        return len(self.waveform) / SPEAK_HZ

    @property
    def finish_reason(self) -> FinishReason:
        """`stop` if every sentence came to its own end."""
        return worst(self.sentences)

    def write(self, path: str | Path) -> None:
        """Write it as wav, flac, mp3, opus or whatever else the name's ending says."""
        write_audio(path, self.waveform, SPEAK_HZ, self.tag)


@dataclass(frozen=True)
class Request:
    """How a text is to be spoken."""

    voice: Voice
    instructions: str
    seed: int
    sampling: Sampling
    speed: float = 1.0


class Talker:
    """A backbone, a codec and a folder of voices at work. It holds no state between calls."""

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: TextTokenizer,
        codec: Codec,
        voices: Path,
        speaker: SpeakerEncoder | None = None,
    ) -> None:
        """Put a backbone to work.

        Args:
            backbone: Weights that serve the TTS mode.
            tokenizer: Its text tokenizer.
            codec: The codec whose codes it speaks.
            voices: The folder of named voices.
            speaker: CAM++, without which no voice can be cloned.
        """
        if backbone.vocab.config.num_codes != codec.codebook_size:
            raise ValueError(
                f"the backbone speaks {backbone.vocab.config.num_codes} codes, the codec has {codec.codebook_size}: "
                "load the codec that the backbone was trained with"
            )
        merge_low_rank(backbone)
        self.backbone, self.codec, self.voices, self.speaker = backbone.eval(), codec, voices, speaker
        self.chat = Chat(backbone.vocab, tokenizer)
        self.marks = True
        """Whether all that is said bears the mark of synthetic speech (`tristep.mark`)."""
        self.scheduler: Scheduler | None = None
        """Where there is one, whatever is spoken in several threads at once shares the passes of the backbone."""

    @classmethod
    def load(cls, name: str | Path = "nano", device: str = "cpu", precision: Precision | None = None) -> Talker:
        """Load weights that ship by their name, or a folder of them with `codec/` and `voices/` inside.

        Args:
            name: A name such as `nano`, or a folder.
            device: Where the model runs.
            precision: What the decoder computes in: int8 on a processor and bf16 on a GPU if not given.

        Raises:
            ValueError: If there are none, or they are damaged.
        """
        folder = find_weights(name)
        backbone, tokenizer = load_backbone(folder, device, mode="tts")
        codec = Codec.load(folder / "codec", backbone.encode_audio, device)
        speaker = folder / "codec" / "speaker.safetensors"
        talker = cls(
            backbone, tokenizer, codec, folder / "voices", SpeakerEncoder.load(speaker) if speaker.exists() else None
        )
        compute_in(talker.backbone, precision)
        return talker

    def speak(
        self,
        text: str,
        voice: str | Voice | None = None,
        *,
        instructions: str = "",
        seed: int = 0,
        sampling: Sampling | None = None,
        speed: float = 1.0,
        batch_size: int = 4,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Speech:
        """Say a text of any length.

        Args:
            text: What to say. Cues in round brackets say how, and are not spoken.
            voice: The name of a voice, or one that was made from a clip; the first name there is if not given.
            instructions: How to say all of it, in words.
            seed: Chooses among the ways in which it can be said.
            sampling: How codes are drawn.
            speed: How much faster than comes naturally, at the same pitch; pauses are shorter too.
            batch_size: Sentences that are spoken together.
            on_progress: Is told the share of the text that has been dealt with since it was told last.

        Raises:
            ValueError: If there is nothing to say, no such voice, or a setting that makes no sense.
        """
        request = self.request(voice, instructions, seed, sampling, speed)
        pieces = self.pieces(text)
        parts: list[Tensor] = []
        spoken: list[Sentence] = []
        num_samples = 0
        for first in range(0, len(pieces), batch_size):
            group = pieces[first : first + batch_size]
            recitals = self.recitals(group, request)
            for _ in self.recite(group, recitals, request, first):
                pass
            for number, (piece, recital) in enumerate(zip(group, recitals, strict=True), first):
                stream = self.sound(request, recital.settled, number)
                waveform = torch.cat([stream.push(torch.tensor(recital.codes)), stream.finish()])
                parts += [waveform, silence(speed)]
                end = num_samples + len(waveform)
                spoken.append(sentence(piece, num_samples, end, recital))
                num_samples = end + len(parts[-1])
                on_progress(1 / len(pieces))
        waveform = torch.cat(parts[:-1])
        waveform, tag = (marked(waveform), SYNTHETIC) if self.marks else (waveform, "")
        return Speech(waveform, tuple(spoken), request.voice.name, seed, tag)

    def stream_speech(
        self,
        text: str,
        voice: str | Voice | None = None,
        *,
        instructions: str = "",
        seed: int = 0,
        sampling: Sampling | None = None,
        speed: float = 1.0,
        at_once: bool = False,
    ) -> SpeechStream:
        """Begin to say a text; takes what `speak` takes, and the samples are those that `speak` returns.

        With `at_once` it begins where the first sound does, so that nobody waits for the silence before it.
        """
        request = self.request(voice, instructions, seed, sampling, speed)
        return SpeechStream(self, self.pieces(text), request, at_once)

    def clone(self, clip: str | Path | bytes, text: str, name: str = "cloned") -> Voice:
        """Make a voice from a clip of 3 to 10 s and what is said in it.

        Raises:
            ValueError: If the clip can't be read, or no voice can be made of it.
        """
        if self.speaker is None:
            raise ValueError(
                "these weights come without the speaker encoder (codec/speaker.safetensors): they can't clone"
            )
        vocoder = self.codec.vocoder
        return voice_from_clip(
            read_audio(clip, SPEAK_HZ), text, name=name, speaker=self.speaker, encode=self.codec.encode,
            pitch=lambda waveform: vocoder.voiced_f0(speech_mel(waveform[None]))[0],
        )  # fmt: skip

    def request(
        self,
        voice: str | Voice | None,
        instructions: str,
        seed: int,
        sampling: Sampling | None,
        speed: float = 1.0,
    ) -> Request:
        """Check how a text is to be spoken, and find the voice."""
        if not MIN_SPEED <= speed <= MAX_SPEED:
            raise ValueError(f"speed is {speed!r}: expected {MIN_SPEED:g} to {MAX_SPEED:g}, 1 is natural")
        if len(instructions) > MAX_INSTRUCTIONS:
            raise ValueError(
                f"the instructions have {len(instructions)} characters, at most {MAX_INSTRUCTIONS} are read: "
                "shorten them"
            )
        if not isinstance(voice, Voice):
            names = list_voices(self.voices)
            if voice is None and not names:
                raise ValueError("these weights come without voices: clone one from a clip")
            voice = read_voice(self.voices, names[0] if voice is None else voice)
        return Request(voice, instructions, seed, sampling or Sampling(), speed)

    def pieces(self, text: str) -> list[str]:
        """Write a text as it is read aloud, cut into sentences, and passages of one manner, that have words in them."""
        passed = (passage for sentence in sentences(speakable(text)) for passage in passages(sentence))
        pieces = [piece for piece in passed if written_words(without_cues(piece))]
        if not pieces:
            raise ValueError(f"there is nothing to say in {text[:60]!r}: give a text with words or numbers in it")
        return pieces

    def recitals(self, pieces: Sequence[str], request: Request) -> list[Recital]:
        """Prepare to speak some sentences; whether they have long pauses is settled by a word of the instructions."""
        vocab, tokenizer, rate = self.backbone.vocab, self.chat.tokenizer, self.codec.code_rate_hz
        silence = self.codec.config.silence
        pauses = [None if silence is None else Pauses.of(piece, silence, rate) for piece in pieces]
        asked = {"pauses": 4} if is_pause(request.instructions) else {}
        verify, attempts = self.codec.verify, request.sampling.max_attempts
        return [
            Recital.of(
                written_words(without_cues(piece)), vocab, tokenizer, rate,
                silences=found, verify=verify, max_attempts=attempts, **asked,
            )
            for piece, found in zip(pieces, pauses, strict=True)
        ]  # fmt: skip

    def recite(
        self, pieces: Sequence[str], recitals: Sequence[Recital], request: Request, first: int
    ) -> Iterator[None]:
        """Speak sentences step by step; `first` is the number of the first of them in its text."""
        prompts = [self.chat.prompt(turns(piece, request.instructions)) for piece in pieces]
        seeds = [sentence_seed(request.seed, first + place) for place in range(len(pieces))]
        if self.scheduler is None:
            return recite(self.backbone, prompts, recitals, seeds, request.sampling)
        requests = [
            ScheduledRequest(prompt, CodeWriter(recital, request.sampling, torch.Generator().manual_seed(seed)))
            for prompt, recital, seed in zip(prompts, recitals, seeds, strict=True)
        ]
        self.scheduler.submit(*requests)
        return self.scheduler.follow(*requests)

    def sharing(self, num_slots: int = 8, max_waiting: int = 64) -> Talker:
        """Return the same weights at work for several threads, which share the passes of the backbone."""
        shared = copy(self)
        shared.scheduler = Scheduler(self.backbone, num_slots, max_waiting)
        return shared

    def sound(self, request: Request, manner: Manner, number: int) -> CodecStream:
        """Begin the sound of a sentence that is spoken in some manner."""
        seed = sentence_seed(request.seed, number)
        return self.codec.stream(request.voice, seed=seed, **sounding(manner, request.speed))


class SpeechStream:
    """A text on its way to being said: an iterator over its sound, 24 kHz, chunks of shape `(S,)`."""

    def __init__(self, talker: Talker, pieces: Sequence[str], request: Request, at_once: bool = False) -> None:
        self.talker, self.pieces, self.settings, self.at_once = talker, pieces, request, at_once
        self.sentences: list[Sentence] = []
        """What has been said."""
        self._num_samples = 0
        self._marker = Marker() if talker.marks else None
        self._chunks = self._say()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while not len(chunk := self.step()):
            pass
        return chunk

    def step(self) -> Tensor:
        """Do a little of the work and return the sound that it gives, often none, shape `(0,)`.

        Raises:
            StopIteration: If all has been said.
        """
        chunk = next(self._chunks)
        self._num_samples += len(chunk)
        return self._marker.push(chunk) if self._marker else chunk

    @property
    def finish_reason(self) -> FinishReason:
        """How what has been said ended."""
        return worst(self.sentences)

    def _say(self) -> Iterator[Tensor]:
        for number, piece in enumerate(self.pieces):
            if number:
                yield silence(self.settings.speed)
            start = self._num_samples
            recital = self.talker.recitals([piece], self.settings)[0]
            yield from self._sound(piece, number, recital)
            self.sentences.append(sentence(piece, start, self._num_samples, recital))

    def _sound(self, piece: str, number: int, recital: Recital) -> Iterator[Tensor]:
        """Yield the sound of one sentence while it is being spoken."""
        stream: CodecStream | None = None
        num_sounded = 0
        sizes = (round(seconds * self.talker.codec.code_rate_hz) for seconds in chain(EARLY_CHUNKS_S, repeat(CHUNK_S)))
        size = next(sizes)
        for _ in self.talker.recite([piece], [recital], self.settings, number):
            num_ready = recital.num_settled
            if self.at_once and not number:  # nobody waits for the last words to be verified
                num_ready = len(recital.codes)
                if stream is None:
                    num_sounded = max(0, self.talker.codec.num_leading_silent(recital.codes) - 1)
            if num_ready - num_sounded >= size:
                if num_ready > recital.num_settled:
                    recital.settle_all()
                stream = stream or self.talker.sound(self.settings, recital.settled, number)
                yield stream.push(torch.tensor(recital.codes[num_sounded:num_ready]))
                num_sounded, size = num_ready, next(sizes)
            else:
                yield torch.zeros(0)
        stream = stream or self.talker.sound(self.settings, recital.settled, number)
        yield stream.push(torch.tensor(recital.codes[num_sounded:], dtype=torch.long))
        yield stream.finish()


class Sounding(TypedDict):
    """The settings of `Codec.stream` for pitch, volume and pace."""

    semitones: float
    decibels: float
    tempo: float


def sounding(manner: Manner, speed: float = 1.0) -> Sounding:
    """Say what a manner is to the codec, at some speed."""
    return Sounding(
        semitones=SEMITONES * (manner.pitch - 3),
        decibels=DECIBELS * (manner.volume - 3),
        tempo=speed * 2 ** (OCTAVES * (manner.pace - 3)),
    )


def passages(sentence: str) -> list[str]:
    """Cut a sentence before each cue inside it that asks for another manner; cues of pauses stay where they are."""
    found: list[list[Text | Cue]] = [[]]
    for part in split_cues(sentence):
        if isinstance(part, Cue) and not is_pause(part.text) and any(isinstance(one, Text) for one in found[-1]):
            found.append([])
        found[-1].append(part)
    return [join_parts(parts) for parts in found]


def worst(spoken: Sequence[Sentence]) -> FinishReason:
    """Return `stop` if every sentence came to its own end."""
    return "length" if any(sentence.finish_reason == "length" for sentence in spoken) else "stop"


def sentence_seed(seed: int, number: int) -> int:
    """Give every sentence of a text a seed of its own."""
    return (seed * 1_000_003 + number) % 2**62


def silence(speed: float) -> Tensor:
    """Return the pause between two sentences."""
    return torch.zeros(round(BETWEEN_SENTENCES_S * SPEAK_HZ / speed))


def without_lead(waveform: Tensor) -> Tensor:
    """Cut the silence before the first sound of a waveform `(S,)`; nothing is left of one that is all silence."""
    heard = (waveform.abs() > QUIET).nonzero()
    first = int(heard[0]) - round(LEAD_S * SPEAK_HZ) if len(heard) else len(waveform)
    return waveform[max(0, first) :]


def sentence(piece: str, start: int, end: int, recital: Recital) -> Sentence:
    """Write down how a sentence was spoken, from sample `start` to `end`."""
    assert recital.finish_reason is not None
    return Sentence(piece, start / SPEAK_HZ, end / SPEAK_HZ, recital.finish_reason, recital.num_again)
