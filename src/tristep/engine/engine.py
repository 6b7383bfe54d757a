"""The engine: sounds of any length in, transcripts out, many at a time through one backbone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tristep.audio import LISTEN_HZ, AudioError, padded_mel
from tristep.backbone.audio_encoder import Adapted, CtcAdaptor, side_by_side
from tristep.backbone.checkpoints import find_weights, load_backbone
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, compute_in
from tristep.chat import Chat
from tristep.engine.drafting import MOST_DRAFTED_ROWS, DraftSources, Hypothesis, RowSources
from tristep.engine.listening import Entry, Hearing, OnProgress, Source, listen
from tristep.engine.sampling import Bias, Completion, greedy, penalties
from tristep.engine.scheduler import Request, Scheduler
from tristep.engine.segments import Stretch
from tristep.engine.settings import Options, Settings
from tristep.engine.streaming import Commit, TranscriptionStream
from tristep.engine.transcription import Segment, Token, Transcription, in_digits
from tristep.engine.words import with_confidence, words_said
from tristep.engine.writers import TextWriter
from tristep.modes.asr.data import Style
from tristep.modes.asr.decoding import hypotheses as read_hypotheses
from tristep.modes.asr.hotwords import Hotword, listen_for, read_hotwords
from tristep.modes.asr.letters import LetterBias, LetterPaths
from tristep.modes.mode import ASR
from tristep.vocab import TextTokenizer

if TYPE_CHECKING:  # imported by who speaks or converses: to transcribe takes none of it, and a sixth of a second less
    from tristep.codec.voice import Voice
    from tristep.engine.conversing import Thinker
    from tristep.engine.recorded import Recorded
    from tristep.engine.talking import Speech, SpeechStream, Talker
    from tristep.engine.turns import EndOfTurn

Drafts = Literal["auto", "none"]
"""Whether tokens are guessed ahead."""
WINDOW = 4
"""Batches' worth of segments that are collected before they are sorted by length and decoded."""


class Engine:
    """A backbone at work. It holds no state between calls."""

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: TextTokenizer,
        talker: Callable[[], Talker] | None = None,
        thinker: Callable[[], Thinker] | None = None,
        end_of_turn: Callable[[], EndOfTurn | None] = lambda: None,
    ) -> None:
        """Put a backbone to work.

        Args:
            backbone: Weights that serve the ASR mode.
            tokenizer: Its text tokenizer.
            talker: Loads what speaks, when it is first asked to.
            thinker: Loads what answers, when it is first asked to.
            end_of_turn: Loads what judges whether a turn sounds finished, if there is something, when it is asked for.
        """
        merge_low_rank(backbone)
        self._load_talker, self._load_thinker, self._load_end_of_turn = talker, thinker, end_of_turn
        self.backbone = backbone.eval()
        self.chat = Chat(backbone.vocab, tokenizer)
        self.scheduler: Scheduler | None = None
        """Where there is one, whatever is transcribed in several threads at once shares the passes of the backbone."""
        self._ear: AbstractContextManager[Any] = nullcontext()

    @classmethod
    def load(cls, name: str | Path = "nano", device: str = "cpu", precision: Precision | None = None) -> Engine:
        """Load weights that ship by their name, or a folder of them.

        Args:
            name: A name such as `nano`, or a folder.
            device: Where the model runs.
            precision: What it computes in: int8 on a processor and bf16 on a GPU if not given. The ear is float32
                beside bf16 and fp32, as what it hears is what the adaptor was trained on.

        Raises:
            ValueError: If there are none, or they are damaged.
        """
        later = partial(load_talker, name, device, precision), partial(load_thinker, name, device, precision)
        engine = cls(*load_backbone(name, device, mode="asr"), *later, partial(load_end_of_turn, name))
        compute_in(engine.backbone, precision, hears=True)
        return engine

    def sharing(self, num_slots: int = 8, max_waiting: int = 64) -> Engine:
        """Return the same weights at work for several threads, which share the passes of the backbone.

        They listen one at a time, so that no more memory is taken than by one of them.

        Args:
            num_slots: Segments that are written at once.
            max_waiting: Segments that may wait; a batch that goes beyond is refused with a `BusyError`.
        """
        shared = copy(self)
        shared.scheduler, shared._ear = Scheduler(self.backbone, num_slots, max_waiting), Lock()
        return shared

    @cached_property
    def talker(self) -> Talker:
        """What speaks."""
        if self._load_talker is None:
            raise ValueError("this engine was built to listen only: load it by `Engine.load` to make it speak")
        return self._load_talker()

    @cached_property
    def thinker(self) -> Thinker:
        """What answers."""
        if self._load_thinker is None:
            raise ValueError("this engine was built to listen only: load it by `Engine.load` to make it answer")
        return self._load_thinker()

    @cached_property
    def end_of_turn(self) -> EndOfTurn | None:
        """What judges whether a turn sounds finished, where there are weights for that."""
        return self._load_end_of_turn()

    def speak(self, text: str, voice: str | Voice | None = None, **settings: Any) -> Speech:
        """Say a text of any length; takes what `Talker.speak` takes."""
        return self.talker.speak(text, voice, **settings)

    def stream_speech(self, text: str, voice: str | Voice | None = None, **settings: Any) -> SpeechStream:
        """Say a text and yield its sound as it comes; takes what `Talker.stream_speech` takes."""
        return self.talker.stream_speech(text, voice, **settings)

    def converse(
        self, persona: str = "", *, voice: str | Voice | None = None, seed: int = 0, aloud: bool = True
    ) -> Recorded:
        """Begin a conversation in recordings: `hear` one after the other; a live one is a `Session`.

        Args:
            persona: Who answers, and how.
            voice: As `speak` takes it.
            seed: Chooses among the answers and the ways to say them.
            aloud: Answer in sound; else in text, which needs no codec.

        Raises:
            ValueError: If the weights can't speak, or there is no such voice.
        """
        from tristep.engine.dialogue import Modality, SessionSettings
        from tristep.engine.recorded import Recorded
        from tristep.engine.session import Session

        modality: Modality = "audio" if aloud else "text"
        settings = SessionSettings(persona, modality, voice, turn_detection=None, seed=seed)
        return Recorded(Session(self, settings))

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a str is also a sequence of str, and then one path
        self, sources: Source, *, batch_size: int = ..., **options: Unpack[Options]
    ) -> Transcription: ...

    @overload
    def transcribe(
        self, sources: Sequence[Source], *, batch_size: int = ..., **options: Unpack[Options]
    ) -> list[Transcription]: ...

    def transcribe(
        self, sources: Source | Sequence[Source], *, batch_size: int = 8, **options: Unpack[Options]
    ) -> Transcription | list[Transcription]:
        """Write down what is said in one sound, or in each of a list, of any length.

        Args:
            sources: A path, the bytes of a file, a waveform at 16 kHz of shape `(S,)`, or a list of these.
            batch_size: Segments that are decoded together; more is faster and takes more memory.
            options: The fields of `Settings`: `language`, `style`, `words`, `hotwords` and `itn`.

        Raises:
            ValueError: If a setting is not among those that exist.
            AudioError: If a source can't be read.
        """
        single = isinstance(sources, str | Path | bytes | Tensor)
        listed = [sources] if isinstance(sources, str | Path | bytes | Tensor) else sources
        results = []
        for result in self.transcribe_each(listed, batch_size=batch_size, **options):
            if isinstance(result, AudioError):
                raise result
            results.append(result)
        return results[0] if single else results

    def transcribe_each(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 8,
        on_progress: OnProgress = lambda seconds: None,
        **options: Unpack[Options],
    ) -> Iterator[Transcription | AudioError]:
        """Yield what `transcribe` returns one by one; a source that can't be read becomes its error."""
        settings = Settings(**options)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        hotwords = self.read_hotwords(settings)
        hearings: deque[Hearing] = deque()
        segments = listen(sources, hearings, on_progress)
        while window := list(islice(segments, WINDOW * batch_size)):
            window.sort(key=lambda entry: entry[2].duration_s)
            for batch in batches(window, batch_size):
                said = self.transcribe_stretches([speech for _, _, speech in batch], settings, hotwords)
                for (hearing, number, _), (segment, _) in zip(batch, said, strict=True):
                    hearing.segments[number] = segment
            while hearings and hearings[0].is_done:
                yield hearings.popleft().result()
        yield from (hearing.result() for hearing in hearings)

    def stream_transcription(
        self, *, commit: Commit = "agreement", interval_s: float = 1.0, **options: Unpack[Options]
    ) -> TranscriptionStream:
        """Transcribe one sound while it goes on: `push` its chunks, then `finish`.

        Args:
            commit: When text is settled: once two guesses agree on it (`agreement`), or at the end of a `segment`.
            interval_s: Sound between two guesses.
            options: The fields of `Settings`.

        Raises:
            ValueError: If a setting is not among those that exist, or does not go with the others.
        """
        return TranscriptionStream(self, Settings(**options), commit, interval_s)

    def read_hotwords(self, settings: Settings) -> tuple[Hotword, ...]:
        """Prepare the hotwords, after checking that the adaptor spells letters where they are needed."""
        asked = "hotwords" if settings.hotwords else "words" if settings.words else None
        if asked and self.backbone.config.adaptor.kind != "ctc":
            raise ValueError(
                f"{asked} needs an adaptor that spells letters, this one is {self.backbone.config.adaptor.kind!r}: "
                "leave it out, or load weights whose adaptor is 'ctc'"
            )
        return read_hotwords(settings.hotwords, self.chat.tokenizer, settings.style)

    def transcribe_stretches(
        self,
        stretches: Sequence[Stretch],
        settings: Settings,
        hotwords: Sequence[Hotword] = (),
        begun: Sequence[Completion] | None = None,
    ) -> list[tuple[Segment, Completion]]:
        """Write down what is said in a batch of stretches of speech.

        Args:
            stretches: Speech, each shorter than the encoder's 30 s.
            settings: How it is written.
            hotwords: The words that are listened for.
            begun: What has been written of each and stays as it is; nothing if not given.

        Returns:
            A segment for each stretch, and the completion that it was read from.
        """
        with self._ear:
            heard = self.hear([speech.waveform for speech in stretches])
        starts = begun or [Completion(0) for _ in stretches]
        rows = [
            Completion(ASR.decoding.token_budget(speech.duration_s), list(start.tokens), list(start.probs), bias=bias)
            for speech, start, bias in zip(stretches, starts, self.biases(heard, hotwords), strict=True)
        ]
        completions = self.answer(heard, rows, settings.language, settings.style)
        for row, start in zip(completions, starts, strict=True):
            if len(row.tokens) < len(start.tokens):  # a loop that begins in what was begun is cut only behind it
                row.tokens, row.probs = list(start.tokens), list(start.probs)
        segments = [self._segment(speech, row) for speech, row in zip(stretches, completions, strict=True)]
        if settings.words:
            segments = self._with_words(segments, completions, heard)
        if settings.tokens:
            written = map(self._tokens, completions)
            segments = [replace(segment, tokens=tokens) for segment, tokens in zip(segments, written, strict=True)]
        if settings.itn:
            segments = [in_digits(segment) for segment in segments]
        return list(zip(segments, completions, strict=True))

    def biases(self, heard: Adapted, hotwords: Sequence[Hotword] = ()) -> list[Bias | None]:
        """Let the letters of each clip take part in what is written of it, and the hotwords that they agree with."""
        if heard.letter_logits is None:
            return [None] * len(heard.num_embeddings)
        tokenizer, turn_end = self.chat.tokenizer, self.backbone.vocab.control("turn_end")
        biases: list[Bias | None] = []
        for logprobs, num_frames in zip(*spelt_letters(heard), strict=True):
            paths = LetterPaths(logprobs[:num_frames])
            letters, names = LetterBias(paths, tokenizer, turn_end), listen_for(hotwords, paths, tokenizer)
            biases.append(partial(summed, [letters, names]) if names else letters)
        return biases

    def _with_words(
        self, segments: Sequence[Segment], completions: Sequence[Completion], heard: Adapted
    ) -> list[Segment]:
        """Say when each word of the segments of a batch is said."""
        texts, durations_s = [segment.text for segment in segments], [segment.duration_s for segment in segments]
        timed = words_said(texts, *spelt_letters(heard), durations_s)
        result = []
        for segment, row, words in zip(segments, completions, timed, strict=True):
            sure = with_confidence(words, row.tokens[1:], row.probs[1:], self.chat.tokenizer)
            result.append(replace(segment, words=tuple(word.later(segment.start_s) for word in sure)))
        return result

    @torch.inference_mode()
    def decode(
        self,
        waveforms: Sequence[Tensor],
        language: str | None = None,
        style: Style = "spoken",
        drafts: Drafts = "auto",
    ) -> list[Completion]:
        """Answer a batch of waveforms `(S,)`, each shorter than the encoder's 30 s.

        Args:
            waveforms: The batch.
            language: What is spoken, recognised if not given.
            style: How it is written.
            drafts: `auto` guesses ahead where it pays, `none` writes token by token: the answer is the same.
        """
        heard = self.hear(waveforms)
        completions = [
            Completion(ASR.decoding.token_budget(len(waveform) / LISTEN_HZ), bias=bias)
            for waveform, bias in zip(waveforms, self.biases(heard), strict=True)
        ]
        sources = self.draft_sources(heard) if drafts == "auto" else DraftSources()
        return self.answer(heard, completions, language, style, sources)

    @torch.inference_mode()
    def answer(
        self,
        heard: Adapted,
        completions: Sequence[Completion],
        language: str | None = None,
        style: Style = "spoken",
        sources: DraftSources | None = None,
    ) -> list[Completion]:
        """Write on, row by row, from what each completion holds, about a batch that was heard.

        What guesses ahead is everything that can, if `sources` is not given.
        """
        num_slots = heard.shown.sum(dim=1).tolist()
        prompts = [self.chat.prompt(ASR.data.turns(num, style)) for num in num_slots]
        prompts = [prompt + row.tokens for prompt, row in zip(prompts, completions, strict=True)]
        budgets = [row.budget for row in completions]
        constraint = ASR.decoding.Constraint(self.backbone.vocab, language)
        find_loop = ASR.decoding.repetition_start
        if self.scheduler is not None and sources is None:
            opening, body = penalties(self.backbone, constraint)
            guesses: Sequence[Hypothesis | None] = self.hypotheses(heard) or [None] * len(prompts)
            lines = zip(prompts, completions, guesses, torch.split(heard.flat(), num_slots), strict=True)
            requests = [
                Request(prompt, TextWriter(row, opening, body, find_loop, RowSources(guess)), sound)
                for prompt, row, guess, sound in lines
            ]
            self.scheduler.submit(*requests)
            self.scheduler.finish(*requests)
            return list(completions)
        sources = sources or self.draft_sources(heard)
        return greedy(self.backbone, prompts, heard.flat(), constraint, budgets, find_loop, completions, sources)

    def draft_sources(self, heard: Adapted) -> DraftSources:
        """Let everything guess ahead that can, where it pays: the draft heads, and the adaptor's own recogniser."""
        on_cpu = heard.audio_embeddings.device.type == "cpu"
        if on_cpu and len(heard.audio_embeddings) > MOST_DRAFTED_ROWS:
            return DraftSources()
        return DraftSources(self.hypotheses(heard), self.backbone.config.num_draft_heads)

    def hypotheses(self, heard: Adapted) -> list[Hypothesis] | None:
        """Read what the adaptor's own recogniser has heard, if it has one."""
        if not isinstance(adaptor := self.backbone.adaptor, CtcAdaptor):
            return None
        texts = read_hypotheses(heard, adaptor.ctc_tokens.tolist(), self.chat.tokenizer)
        return [Hypothesis(text, self.backbone.vocab, self.chat.tokenizer) for text in texts]

    @torch.inference_mode()
    def hear(self, waveforms: Sequence[Tensor]) -> Adapted:
        """Run the encoder and the adaptor on a batch of waveforms `(S,)`, each shorter than the encoder's 30 s.

        A processor hears them one by one, which takes it no longer: so what is heard depends on no neighbour at all.
        """
        weight = self.backbone.audio_encoder.conv1.weight
        if weight.device.type == "cpu" and len(waveforms) > 1:
            return side_by_side([self.hear([waveform]) for waveform in waveforms])
        mels = [padded_mel(waveform.to(weight.device), weight.shape[1]).T for waveform in waveforms]  # (F, M)
        num_mel_frames = torch.tensor([len(mel) for mel in mels], device=weight.device)
        mel = pad_sequence(mels, batch_first=True).transpose(1, 2).to(weight.dtype)  # (B, M, F)
        return self.backbone.adapt(*self.backbone.encode_audio(mel, num_mel_frames))

    def _tokens(self, row: Completion) -> tuple[Token, ...]:
        """Read the text tokens of a completion, and how likely each was."""
        likely = [
            (token, prob)
            for token, prob in zip(row.tokens, row.probs, strict=False)
            if self.backbone.vocab.region(token) == "text"
        ]
        return tuple(Token(self.chat.tokenizer.decode([token]), math.log(max(prob, 1e-10))) for token, prob in likely)

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
            num_tokens=completion.counts.num_settled,
            num_passes=completion.counts.num_passes,
        )


def load_talker(name: str | Path, device: str, precision: Precision | None) -> Talker:
    """Load what speaks."""
    from tristep.engine.talking import Talker

    return Talker.load(name, device, precision)


def load_thinker(name: str | Path, device: str, precision: Precision | None) -> Thinker:
    """Load what answers."""
    from tristep.engine.conversing import Thinker

    return Thinker.load(name, device, precision)


def load_end_of_turn(name: str | Path) -> EndOfTurn | None:
    """Load what judges whether a turn sounds finished, if there is something."""
    from tristep.engine.turns import SmartTurn

    return SmartTurn.load(find_weights(name))


def batches(window: Sequence[Entry], batch_size: int) -> Iterator[Sequence[Entry]]:
    """Cut a window of segments into batches."""
    yield from (window[first : first + batch_size] for first in range(0, len(window), batch_size))


def summed(biases: Sequence[Bias], written: Sequence[int], logits: Tensor) -> dict[int, float]:
    """Add up several biases."""
    total: dict[int, float] = {}
    for bias in biases:
        for token, gain in bias(written, logits).items():
            total[token] = total.get(token, 0.0) + gain
    return total


def spelt_letters(heard: Adapted) -> tuple[Tensor, list[int]]:
    """Return log-probabilities of letters and blank, shape `(B, N, 29)`, and the valid frames of each row."""
    assert heard.letter_logits is not None
    assert heard.num_letter_frames is not None
    return heard.letter_logits.float().log_softmax(dim=-1).cpu(), heard.num_letter_frames.tolist()
