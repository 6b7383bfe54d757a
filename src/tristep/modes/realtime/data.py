"""Realtime, data construction: persona, history and the user's sound in; a short hidden trace, then the answer.

The report's decoder writes a reasoning trace before its response and registers paralinguistic cues in it (section 6);
the trace's format and length are not public. Ours is the shortest that earns its place: the words that were heard, and
how they were said. It makes the mind that answers the text model's own, which has read nothing but text; it is what
later turns remember, so that a past sound costs a few tokens; and the adaptor's recogniser can guess it ahead. A
model may also be asked to answer at once, without a trace.

Where text and codes are written in one go, text leads sound in a fixed pattern, Step-Audio 2's one text token to four
codes at 25 Hz (section 8.6), which `interleave` in the vocabulary's settings holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from tristep.chat import Chat, Control, Part, Role, Sound, Turn
from tristep.vocab import Vocab

PERSONA = "You are talking with someone. Answer like a friend, in one or two short sentences."
"""Who answers where no persona is given."""
Label = Literal["trace", "answer", "text", "transcript"]
LABELS: tuple[Label, ...] = ("trace", "answer", "text", "transcript")
"""What a target belongs to: the trace, the answer to sound, the answer to text, a rehearsed transcript."""
NOTHING = 0
"""The label of a token that is given; those of `LABELS` are counted from 1."""


@dataclass(frozen=True)
class Trace:
    """What is noted of a turn before it is answered."""

    heard: str
    """The words, in lower case without punctuation."""
    cues: tuple[str, ...] = ()
    """How they were said, such as `fast`, `whisper` or `sigh`; nothing where that is ordinary or unknown."""

    @property
    def text(self) -> str:
        """Write it down: the words, then the cues in brackets."""
        return self.heard + (f" ({', '.join(self.cues)})" if self.cues else "")


def read_trace(text: str) -> Trace:
    """Read what `Trace.text` wrote; the inverse where words and cues have no brackets and cues no commas."""
    match = re.fullmatch(r"(.*?)(?: \(([^()]*)\))?", text, re.DOTALL)
    assert match is not None  # the pattern takes any text
    return Trace(match[1], tuple(match[2].split(", ")) if match[2] else ())


def turns(persona: str, history: Sequence[Turn], said: int | str) -> list[Turn]:
    """Build what the model is given.

    Args:
        persona: Who answers: a description, or a whole card's `prompt`.
        history: User and assistant turns before this one, as text: traces are not remembered, what they heard is.
        said: The user's turn: a sound of so many audio embeddings, or text.
    """
    part: Part = said if isinstance(said, str) else Sound(said)
    return [Turn("system", (persona or PERSONA,)), *history, Turn("user", (part,))]


def remembered(role: Role, text: str) -> Turn:
    """Build a turn of the history."""
    return Turn(role, (text,))


@dataclass(frozen=True)
class Sample:
    """One exchange, ready for the backbone."""

    tokens: list[int]
    labels: list[int]
    """Which of `LABELS` each token is, counted from 1; `NOTHING` where it is given."""


def render(chat: Chat, given: Sequence[Turn], answer: str, trace: Trace | None = None) -> Sample:
    """Write one training sample: all that the assistant says counts, its turns in the history as answers to text.

    Args:
        chat: Writes turns.
        given: What `turns` built.
        answer: What is said back.
        trace: What is noted first; None answers at once.
    """
    heard = any(isinstance(part, Sound) for part in given[-1].parts)
    noted = written(chat, (Control("think_start"), trace.text, Control("think_end"))) if trace else []
    said = [*written(chat, (answer.strip(),)), chat.vocab.control("turn_end")]
    before, header = chat.render(given), chat.header("assistant")
    labels = [label_of("text") if counts else NOTHING for counts in before.loss_mask] + [NOTHING] * len(header)
    labels += [label_of("trace")] * len(noted) + [label_of("answer" if heard else "text")] * len(said)
    return Sample(before.tokens + header + noted + said, labels)


def label_of(label: Label) -> int:
    """Return the number of a label."""
    return LABELS.index(label) + 1


def written(chat: Chat, parts: Sequence[Part]) -> list[int]:
    """Write parts one after the other."""
    return [token for part in parts for token in chat.part(part)]


def audio_pad(vocab: Vocab) -> int:
    """Return the token that stands where a code is missing: the last code in Step-Audio 2 (report section 8.5)."""
    if vocab.config.layout == "step-audio-2":
        return vocab.size - 1
    return vocab.control("tts_pad")


def interleave(text: Sequence[int], codes: Sequence[int], vocab: Vocab) -> list[int]:
    """Let text lead sound by the vocabulary's fixed pattern; the side that ends first is padded.

    Args:
        text: Text tokens.
        codes: Tokens of audio codes.
        vocab: Their id space; its `interleave` says how many of each take turns.

    Returns:
        Whole groups of text and codes; `deinterleave` takes them apart.
    """
    num_text, num_codes = vocab.config.interleave
    num_groups = max(-(-len(text) // num_text), -(-len(codes) // num_codes))
    leading = padded(text, num_groups * num_text, vocab.control("tts_pad"))
    following = padded(codes, num_groups * num_codes, audio_pad(vocab))
    return [
        token
        for group in range(num_groups)
        for token in (
            *leading[group * num_text : (group + 1) * num_text],
            *following[group * num_codes : (group + 1) * num_codes],
        )
    ]


def padded(tokens: Sequence[int], size: int, pad: int) -> list[int]:
    """Bring tokens to a length."""
    return [*tokens, *[pad] * (size - len(tokens))]


def deinterleave(tokens: Sequence[int], vocab: Vocab) -> tuple[list[int], list[int]]:
    """Take text and codes apart again; what a stream has written so far is enough.

    Raises:
        ValueError: If a token is not what its place in the pattern holds.
    """
    num_text, num_codes = vocab.config.interleave
    text: list[int] = []
    codes: list[int] = []
    places = cycle(["text"] * num_text + ["code"] * num_codes)
    for index, (token, place) in enumerate(zip(tokens, places, strict=False)):
        if token == (vocab.control("tts_pad") if place == "text" else audio_pad(vocab)):
            continue
        if vocab.region(token) != place:
            raise ValueError(
                f"token {token} at {index} is {vocab.region(token)}, the pattern of {num_text} text to {num_codes} "
                f"codes has {place} there: write it by `interleave`"
            )
        (text if place == "text" else codes).append(token)
    return text, codes
