"""The engine: sounds of any length in, transcripts out, many at a time through one backbone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tristep.audio import LISTEN_HZ, AudioError, padded_mel, stream_audio
from tristep.backbone.audio_encoder import Adapted
from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.chat import Chat
from tristep.codec.voice import Voice
from tristep.engine.sampling import Completion, greedy
from tristep.engine.segments import Segmenter, Stretch
from tristep.engine.talking import Speech, SpeechStream, Talker
from tristep.modes.asr.data import INSTRUCTIONS, Style
from tristep.modes.asr.decoding import FinishReason
from tristep.modes.mode import ASR
from tristep.vocab import LANGUAGES, TextTokenizer

Source = str | Path | bytes | Tensor
"""A path, the bytes of a file, or a waveform at `LISTEN_HZ` of shape `(S,)`."""
OnProgress = Callable[[float], None]
"""Is told how many more seconds of sound have been dealt with."""

CHUNK_S = 10.0
WINDOW = 4
"""Batches' worth of segments that are collected before they are sorted by length and decoded."""
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages that put no space between sentences."""
GRAVITY: tuple[FinishReason, ...] = ("repetition", "length", "stop", "silence")
"""How a whole sound ended: the first of these that any of its segments has."""


@dataclass(frozen=True)
class Segment:
    """A stretch of speech and what was said in it."""

    start_s: float
    end_s: float
    text: str
    """Empty where the model heard no words."""
    confidence: float
    """The mean probability of the tokens that it wrote."""
    min_confidence: float
    """The probability of the token that it was least sure of."""
    finish_reason: FinishReason
    language: str | None

    @property
    def duration_s(self) -> float:
        """Length of the stretch."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Transcription:
    """What was said in one sound."""

    text: str
    language: str | None
    """The language of most of the speech, None where nobody speaks."""
    duration_s: float
    segments: tuple[Segment, ...]
    confidence: float
    """The segments' mean by duration; in silence, how sure it is that nobody speaks."""
    finish_reason: FinishReason
    """`silence`: nobody speaks. `length` and `repetition`: a segment was cut off, because it outgrew every
    honest transcript, or repeated itself. Otherwise `stop`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass
class Hearing:
    """One source on its way through the engine: it fills as segments are found and decoded."""

    segments: dict[int, Segment] = field(default_factory=dict)
    """Decoded segments by their number."""
    num_segments: int = 0
    duration_s: float = 0.0
    silence: float = 1.0
    """How sure the detector is that nobody speaks."""
    error: AudioError | None = None
    is_read: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return self.is_read and len(self.segments) == self.num_segments

    def next_number(self) -> int:
        """Count a segment and return its number."""
        self.num_segments += 1
        return self.num_segments - 1

    def result(self) -> Transcription | AudioError:
        """Return what was said, or why it can't be known."""
        segments = [self.segments[number] for number in range(self.num_segments)]
        return self.error or joined(segments, self.duration_s, self.silence)


def joined(segments: Sequence[Segment], duration_s: float, silence: float) -> Transcription:
    """Join the segments of one sound."""
    total_s = sum(segment.duration_s for segment in segments)
    weighted = sum(segment.confidence * segment.duration_s for segment in segments)
    language = main_language(segments)
    reasons = {segment.finish_reason for segment in segments} or {"silence"}
    return Transcription(
        text=("" if language in UNSPACED else " ").join(segment.text for segment in segments if segment.text),
        language=language,
        duration_s=duration_s,
        segments=tuple(segments),
        confidence=weighted / total_s if segments else silence,
        finish_reason=next(reason for reason in GRAVITY if reason in reasons),
    )


def main_language(segments: Sequence[Segment]) -> str | None:
    """Return the language that is spoken longest, None where nobody speaks."""
    spoken: dict[str | None, float] = {}
    for segment in segments:
        spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.duration_s * bool(segment.text)
    return max(spoken, key=lambda language: spoken[language], default=None)


class Engine:
    """A backbone at work. It holds no state between calls."""

    def __init__(
        self, backbone: Backbone, tokenizer: TextTokenizer, talker: Callable[[], Talker] | None = None
    ) -> None:
        """Put a backbone to work.

        Args:
            backbone: Weights that serve the ASR mode.
            tokenizer: Its text tokenizer.
            talker: Loads what speaks, when it is first asked to.
        """
        merge_low_rank(backbone)
        self._load_talker = talker
        self.backbone = backbone.eval()
        self.chat = Chat(backbone.vocab, tokenizer)

    @classmethod
    def load(cls, name: str | Path = "nano", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Engine:
        """Load weights that ship by their name, or a folder of them.

        Args:
            name: A name such as `nano`, or a folder.
            device: Where the model runs.
            dtype: What the decoder computes in, float32 if not given. The ear is always float32: it is a small
                part of the work, and what it hears is what the adaptor was trained on.

        Raises:
            ValueError: If there are none, or they are damaged.
        """
        engine = cls(*load_backbone(name, device, mode="asr"), partial(Talker.load, name, device))
        for part in (engine.backbone.decoder, engine.backbone.embedding, engine.backbone.head):
            part.to(dtype)
        return engine

    @cached_property
    def talker(self) -> Talker:
        """What speaks."""
        if self._load_talker is None:
            raise ValueError("this engine was built to listen only: load it by `Engine.load` to make it speak")
        return self._load_talker()

    def speak(self, text: str, voice: str | Voice | None = None, **settings: Any) -> Speech:
        """Say a text of any length; takes what `Talker.speak` takes."""
        return self.talker.speak(text, voice, **settings)

    def stream_speech(self, text: str, voice: str | Voice | None = None, **settings: Any) -> SpeechStream:
        """Say a text and yield its sound as it comes; takes what `Talker.stream_speech` takes."""
        return self.talker.stream_speech(text, voice, **settings)

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a str is also a sequence of str, and then one path
        self, sources: Source, *, language: str | None = ..., style: Style = ..., batch_size: int = ...
    ) -> Transcription: ...

    @overload
    def transcribe(
        self,
        sources: Sequence[Source],
        *,
        language: str | None = ...,
        style: Style = ...,
        batch_size: int = ...,
    ) -> list[Transcription]: ...

    def transcribe(
        self,
        sources: Source | Sequence[Source],
        *,
        language: str | None = None,
        style: Style = "spoken",
        batch_size: int = 8,
    ) -> Transcription | list[Transcription]:
        """Write down what is said in one sound, or in each of a list, of any length.

        Args:
            sources: A path, the bytes of a file, a waveform at 16 kHz of shape `(S,)`, or a list of these.
            language: The language that is spoken, such as `en`; recognised if not given.
            style: `spoken` in lower case without punctuation, which nano does best; `written` with both.
            batch_size: Segments that are decoded together; more is faster and takes more memory.

        Raises:
            ValueError: If a setting is not among those that exist.
            AudioError: If a source can't be read.
        """
        single = isinstance(sources, str | Path | bytes | Tensor)
        listed = [sources] if isinstance(sources, str | Path | bytes | Tensor) else sources
        results = []
        for result in self.transcribe_each(listed, language=language, style=style, batch_size=batch_size):
            if isinstance(result, AudioError):
                raise result
            results.append(result)
        return results[0] if single else results

    def transcribe_each(
        self,
        sources: Iterable[Source],
        *,
        language: str | None = None,
        style: Style = "spoken",
        batch_size: int = 8,
        on_progress: OnProgress = lambda seconds: None,
    ) -> Iterator[Transcription | AudioError]:
        """Yield what `transcribe` returns one by one; a source that can't be read becomes its error."""
        check_settings(language, style, batch_size)
        hearings: deque[Hearing] = deque()
        segments = listen(sources, hearings, on_progress)
        while window := list(islice(segments, WINDOW * batch_size)):
            self._transcribe_window(window, language, style, batch_size)
            while hearings and hearings[0].is_done:
                yield hearings.popleft().result()
        yield from (hearing.result() for hearing in hearings)

    def _transcribe_window(
        self, window: list[tuple[Hearing, int, Stretch]], language: str | None, style: Style, batch_size: int
    ) -> None:
        """Decode segments in batches of similar length, and put what they say where they belong."""
        window.sort(key=lambda entry: entry[2].duration_s)
        for batch in (window[first : first + batch_size] for first in range(0, len(window), batch_size)):
            completions = self.decode([speech.waveform for _, _, speech in batch], language, style)
            for (hearing, number, speech), completion in zip(batch, completions, strict=True):
                hearing.segments[number] = self._segment(speech, completion)

    @torch.inference_mode()
    def decode(
        self, waveforms: Sequence[Tensor], language: str | None = None, style: Style = "spoken"
    ) -> list[Completion]:
        """Answer a batch of waveforms `(S,)`, each shorter than the encoder's 30 s."""
        heard = self.hear(waveforms)
        num_slots = heard.shown.sum(dim=1).tolist()
        prompts = [self.chat.prompt(ASR.data.turns(num, style)) for num in num_slots]
        budgets = [ASR.decoding.token_budget(len(waveform) / LISTEN_HZ) for waveform in waveforms]
        constraint = ASR.decoding.Constraint(self.backbone.vocab, language)
        find_loop = ASR.decoding.repetition_start
        return greedy(self.backbone, prompts, heard.flat(), constraint, budgets, find_loop)

    @torch.inference_mode()
    def hear(self, waveforms: Sequence[Tensor]) -> Adapted:
        """Run the encoder and the adaptor on a batch of waveforms `(S,)`, each shorter than the encoder's 30 s."""
        weight = self.backbone.audio_encoder.conv1.weight
        mels = [padded_mel(waveform.to(weight.device), weight.shape[1]).T for waveform in waveforms]  # (F, M)
        num_mel_frames = torch.tensor([len(mel) for mel in mels], device=weight.device)
        mel = pad_sequence(mels, batch_first=True).transpose(1, 2).to(weight.dtype)  # (B, M, F)
        return self.backbone.adapt(*self.backbone.encode_audio(mel, num_mel_frames))

    def _segment(self, speech: Stretch, completion: Completion) -> Segment:
        """Read what was written for a stretch of speech."""
        written = ASR.decoding.parse(completion.tokens, self.backbone.vocab, self.chat.tokenizer)
        reason = completion.finish_reason or "stop"
        return Segment(
            start_s=speech.start_s,
            end_s=speech.end_s,
            text=written.text,
            confidence=sum(completion.probs) / len(completion.probs),
            min_confidence=min(completion.probs),
            finish_reason="silence" if reason == "stop" and not written.text else reason,
            language=written.language,
        )


def listen(
    sources: Iterable[Source], hearings: deque[Hearing], on_progress: OnProgress
) -> Iterator[tuple[Hearing, int, Stretch]]:
    """Yield the speech of every source in turn; each appends its `Hearing`, which fills as it is read."""
    for source in sources:
        hearing = Hearing()
        hearings.append(hearing)
        segmenter = Segmenter()
        try:
            for chunk in chunks(source):
                for speech in segmenter.push(chunk):
                    yield hearing, hearing.next_number(), speech
                on_progress(len(chunk) / LISTEN_HZ)
            for speech in segmenter.flush():
                yield hearing, hearing.next_number(), speech
        except AudioError as error:
            hearing.error = error
        hearing.duration_s = segmenter.num_samples / LISTEN_HZ
        hearing.silence = 1 - segmenter.max_prob
        hearing.is_read = True


def chunks(source: Source) -> Iterator[Tensor]:
    """Read a source piece by piece."""
    if not isinstance(source, Tensor):
        yield from stream_audio(source, CHUNK_S)
        return
    if source.dim() != 1 or not source.is_floating_point() or not source.isfinite().all():
        raise AudioError(
            f"the waveform has shape {tuple(source.shape)} and type {source.dtype}: expected finite floats "
            f"in [-1, 1] at {LISTEN_HZ} Hz, of shape (S,); mix channels down, and resample it"
        )
    yield from torch.split(source.detach().to("cpu", torch.float32), round(CHUNK_S * LISTEN_HZ))


def check_settings(language: str | None, style: str, batch_size: int) -> None:
    """Refuse what is not among the settings that exist."""
    if language is not None and language not in LANGUAGES:
        raise ValueError(
            f"there is no language {language!r}: give a code such as en or zh, or none to have it recognised"
        )
    if style not in INSTRUCTIONS:
        raise ValueError(f"there is no style {style!r}: give one of {', '.join(INSTRUCTIONS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
