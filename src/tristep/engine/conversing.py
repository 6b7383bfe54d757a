"""Conversing: a turn is heard while it is spoken, thought about, and answered aloud clause by clause.

One backbone serves all three. It hears by its ASR mode: what was said, in words, is the hidden trace that the rest
goes on from. It thinks as the text model that it has always been, or by its realtime mode where the weights have one,
and it speaks by its TTS mode. Text leads sound: the first clause is being said while the next is thought of.

Every object here does its work in short steps, so that a session can do something else between any two of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ
from tristep.backbone.checkpoints import find_weights, load_backbone, served_modes
from tristep.backbone.low_rank import merge_low_rank
from tristep.backbone.model import Backbone
from tristep.backbone.precision import Precision, compute_in
from tristep.backbone.transformer import KVCache, whole_blocks
from tristep.chat import Chat
from tristep.codec.voice import Voice
from tristep.engine.reciting import Sampling, draw
from tristep.engine.streaming import StreamEvent, TranscriptionStream
from tristep.engine.talking import Talker, sentence_seed, silence, without_lead
from tristep.modes.asr.decoding import repetition_start
from tristep.modes.realtime.decoding import Call, Clauses, FinishReason, Reader, allowed
from tristep.text import speakable, without_cues, written_words
from tristep.vocab import TextTokenizer

PROMPT_SLICE = 256
"""Tokens of a prompt that are read in one step."""
THINK_SLICE, SPEAK_SLICE = 3, 4
"""Tokens that are written in one step, of text and of sound."""
FIRST_POSITIONS = 512
"""Room of a new memory; it doubles where that is not enough."""
TOP_K, TOP_P = 40, 0.9


class Ear:
    """One turn of the user, heard while it goes on."""

    def __init__(self, stream: TranscriptionStream) -> None:
        self.stream = stream
        self._todo: deque[Tensor | Literal["pause", "end"]] = deque()
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        """Whether there is something to hear."""
        return bool(self._todo)

    @property
    def is_finished(self) -> bool:
        """Whether the turn is over, and all of it has been heard."""
        return self._is_closed and not self._todo

    @property
    def text(self) -> str:
        """What was heard so far, if nothing follows."""
        return self.stream.text + self.stream.anticipated

    def push(self, waveform: Tensor) -> None:
        """Take the next sound, shape `(S,)` at 16 kHz."""
        self._todo.append(waveform)

    def pause(self) -> None:
        """Say that the turn may be over: what there is will be heard as if it were."""
        self._todo.append("pause")

    def close(self) -> None:
        """Say that the turn is over."""
        self._is_closed = True
        self._todo.append("end")

    def step(self) -> list[StreamEvent]:
        """Hear about a second more, or what a pause asks for."""
        chunks: list[Tensor] = []
        while self._todo and isinstance(chunk := self._todo[0], Tensor) and sum(map(len, chunks)) < LISTEN_HZ:
            chunks.append(chunk)
            self._todo.popleft()
        if chunks:
            return self.stream.push(torch.cat(chunks))
        if not self._todo:
            return []
        return self.stream.anticipate() if self._todo.popleft() == "pause" else self.stream.finish()


class Thinker:
    """A backbone that writes answers. It holds no state between calls: that is what a `Memory` is for."""

    def __init__(self, backbone: Backbone, tokenizer: TextTokenizer) -> None:
        merge_low_rank(backbone)
        self.backbone, self.chat = backbone.eval(), Chat(backbone.vocab, tokenizer)
        forbidden = ~allowed(backbone.vocab)
        self.penalty = torch.zeros(len(forbidden)).masked_fill(forbidden, -math.inf)

    @classmethod
    def load(cls, name: str | Path = "nano", device: str = "cpu", precision: Precision | None = None) -> Thinker:
        """Load weights: their realtime mode if they have one, else the text model that all modes share.

        Raises:
            ValueError: If there are none, or they are damaged.
        """
        mode = "realtime" if "realtime" in served_modes(name) else None
        thinker = cls(*load_backbone(find_weights(name), device, mode=mode))
        compute_in(thinker.backbone, precision)
        thinker.penalty = thinker.penalty.to(device)
        return thinker

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Read tokens behind what a cache holds; return the logits after the last of them, shape `(V,)`."""
        device = self.backbone.embedding.weight.device
        hidden = self.backbone(torch.tensor([list(tokens)], device=device), kv_cache=cache)  # (1, T, D)
        return self.backbone.logits(hidden[0, -1]) + self.penalty


class Memory:
    """What has been read of a conversation. A prompt that begins like it is read only from where they part."""

    def __init__(self, thinker: Thinker) -> None:
        self.thinker = thinker
        self.tokens: list[int] = []
        self.logits: Tensor | None = None
        """Scores of the token that follows, shape `(V,)`."""
        self._cache = thinker.backbone.new_cache(1, FIRST_POSITIONS)

    def missing(self, prompt: Sequence[int]) -> int:
        """Count the tokens of a prompt that have to be read before the next can be written."""
        same = 0
        while same < min(len(prompt), len(self.tokens)) and prompt[same] == self.tokens[same]:
            same += 1
        is_read = same == len(prompt) == len(self.tokens) and self.logits is not None
        return 0 if is_read else len(prompt) - min(same, len(prompt) - 1)

    def read(self, prompt: Sequence[int], most: int = PROMPT_SLICE) -> bool:
        """Read at most so many tokens of a prompt; return whether all of it is read."""
        num_missing = self.missing(prompt)
        if num_missing:
            first = len(prompt) - num_missing
            self._roll_back(first)
            self._extend(prompt[first : first + most])
        return num_missing <= most

    def write(self, token: int) -> None:
        """Go on by a token."""
        self._extend([token])

    def _roll_back(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        del self.tokens[num_tokens:]
        self._cache.lengths = torch.full_like(self._cache.lengths, num_tokens)
        self.logits = None

    def _extend(self, tokens: Sequence[int]) -> None:
        self._make_room(len(self.tokens) + len(tokens))
        self.logits = self.thinker.read(tokens, self._cache)
        self.tokens += tokens

    def _make_room(self, num_positions: int) -> None:
        """Take a larger cache where this one would overflow."""
        room = self._cache.keys.shape[3]
        if num_positions <= room:
            return
        larger = self.thinker.backbone.new_cache(1, whole_blocks(max(num_positions, 2 * room)))
        larger.keys[:, :, :, :room], larger.values[:, :, :, :room] = self._cache.keys, self._cache.values
        larger.lengths = self._cache.lengths
        self._cache = larger


@dataclass(frozen=True)
class Prompt:
    """What is answered, and how."""

    tokens: Sequence[int]
    """They end where the answer begins."""
    budget: int
    """The most tokens of the answer."""
    opening: str = ""
    """How the answer has to begin; it is part of the answer."""
    tools: tuple[str, ...] = ()
    """Names of what may be called."""
    temperature: float = 0.7
    seed: int = 0


class Thought:
    """One answer while it is being written."""

    def __init__(self, memory: Memory, prompt: Prompt) -> None:
        self.memory, self.prompt = memory, prompt
        self.num_cached = len(prompt.tokens) - memory.missing(prompt.tokens)
        """Tokens of the prompt that had been read before."""
        self.finish_reason: FinishReason | None = None
        """None while it is being written."""
        self.written: list[int] = memory.thinker.chat.tokenizer.encode(prompt.opening) if prompt.opening else []
        self._reader = Reader(prompt.tools)
        self._num_shown = 0
        self._generator = torch.Generator().manual_seed(prompt.seed)
        self._sampling = Sampling(prompt.temperature, TOP_K, TOP_P)

    def step(self) -> list[str | Call]:
        """Read a piece of the prompt, or write a few tokens; return what they say.

        Raises:
            ValueError: If a call was written that can't be read.
        """
        if not self.memory.read([*self.prompt.tokens, *self.written]):
            return []
        for _ in range(THINK_SLICE):
            self._write()
            if self.finish_reason:
                break
        read = self._reader.push(self._new_text())
        return [*read, *self._reader.finish()] if self.finish_reason else read

    def _write(self) -> None:
        """Write the next token."""
        assert self.memory.logits is not None
        token = draw(self.memory.logits, self._sampling, self._generator)
        if token == self.memory.thinker.backbone.vocab.control("turn_end"):
            self.finish_reason = "stop"
            return
        self.written.append(token)
        if repetition_start(self.written) is not None:
            self.finish_reason = "stop"
        elif len(self.written) >= self.prompt.budget:
            self.finish_reason = "length"
        else:
            self.memory.write(token)

    def _new_text(self) -> str:
        """Return the characters that are settled and were not returned before."""
        text = self.memory.thinker.chat.tokenizer.decode(self.written)
        if not self.finish_reason:
            text = text.rstrip("\ufffd")  # a character of which some bytes are still missing
        new, self._num_shown = text[self._num_shown :], max(self._num_shown, len(text))
        return new


@dataclass
class Clause:
    """A part of an answer and where it sounds; the clauses joined are the text."""

    text: str
    start: int
    """Samples at 24 kHz, from the beginning of the answer."""
    end: int | None = None
    """None while it is being said."""


class Utterance:
    """One answer while it is being said."""

    def __init__(
        self, talker: Talker, voice: str | Voice | None, instructions: str, seed: int, speed: float = 1.0
    ) -> None:
        self.talker, self.voice, self.instructions, self.seed, self.speed = talker, voice, instructions, seed, speed
        self.clauses: list[Clause] = []
        """What has been said, and is being said."""
        self.num_samples = 0
        self._cutter = Clauses()
        self._waiting: deque[str] = deque()
        self._chunks: Iterator[Tensor] = iter(())

    @property
    def is_speaking(self) -> bool:
        """Whether a clause is being said."""
        return bool(self.clauses) and self.clauses[-1].end is None

    @property
    def num_waiting(self) -> int:
        """Clauses that are complete, and not begun."""
        return len(self._waiting)

    @property
    def num_codes(self) -> int:
        """Codes of what has been said, silence included."""
        return round(self.speed * self.num_samples / SPEAK_HZ * self.talker.codec.code_rate_hz)

    def push(self, text: str) -> None:
        """Take more of the text."""
        self._waiting.extend(self._cutter.push(text))

    def finish(self) -> None:
        """Say that the text is complete."""
        self._waiting.extend(self._cutter.finish())

    def step(self) -> Tensor:
        """Do a little of the work and return the sound that it gives, often none, shape `(0,)`."""
        if not self.is_speaking and self._waiting:
            self._begin(self._waiting.popleft())
        for _ in range(SPEAK_SLICE):
            chunk = next(self._chunks, None)
            if chunk is None:
                self._end()
                break
            if not self.num_samples:  # nobody should wait for silence
                chunk = without_lead(chunk)
            if len(chunk):
                self.num_samples += len(chunk)
                return chunk
        return torch.zeros(0)

    def _begin(self, text: str) -> None:
        seed = sentence_seed(self.seed, len(self.clauses))
        self.clauses.append(Clause(text, self.num_samples))
        self._chunks = self._sound(text, seed)

    def _end(self) -> None:
        if self.is_speaking:
            self.clauses[-1].end = self.num_samples

    def _sound(self, text: str, seed: int) -> Iterator[Tensor]:
        """Yield the sound of a clause in small steps, after a short silence where a sentence came before it."""
        if not has_words(text):
            return
        before = "".join(clause.text for clause in self.clauses[:-1]).rstrip()
        if self.num_samples and before.endswith((".", "!", "?")):
            yield silence(self.speed)
        at_once = not self.num_samples
        stream = self.talker.stream_speech(
            text, self.voice, instructions=self.instructions, seed=seed, speed=self.speed, at_once=at_once
        )
        with suppress(StopIteration):
            while True:
                yield stream.step()


def has_words(text: str) -> bool:
    """Say whether there is anything in a text to say."""
    return bool(written_words(without_cues(speakable(text))))


class Answer:
    """One answer on its way: it is thought, and said where it has a voice."""

    def __init__(self, thought: Thought, utterance: Utterance | None = None) -> None:
        self.thought, self.utterance = thought, utterance
        self._has_sounded = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        silent = self.utterance is None or not (self.utterance.is_speaking or self.utterance.num_waiting)
        return self.thought.finish_reason is not None and silent

    def step(self) -> list[str | Call | Tensor]:
        """Do a short piece of work; return text, calls, and sound at 24 kHz of shape `(S,)`.

        What can be said is said; the next clause is thought of in between, once none is waiting.
        """
        voice = self.utterance
        if voice and (voice.is_speaking or voice.num_waiting):
            enough = self.thought.finish_reason is not None or voice.num_waiting > 0
            if enough or not self._has_sounded:
                chunk = voice.step()
                self._has_sounded = len(chunk) > 0
                return [chunk] if len(chunk) else []
        self._has_sounded = False
        return [*self._think()]

    def _think(self) -> list[str | Call]:
        """Think on, and pass on what can be said."""
        read = self.thought.step()
        if self.utterance:
            for text in read:
                if isinstance(text, str):
                    self.utterance.push(text)
            if self.thought.finish_reason:
                self.utterance.finish()
        return read
