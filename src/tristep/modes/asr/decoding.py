"""ASR, decoding constraint: a language tag first, then text only; loops are cut, and how it ended is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tristep.backbone.audio_encoder import Adapted
from tristep.vocab import TextTokenizer, Vocab

FinishReason = Literal["stop", "length", "repetition", "silence"]

MAX_TOKENS_PER_SECOND = 12
"""A budget no honest transcript reaches: fast speech is five tokens a second."""
LONG_PERIOD = 15
"""Tokens of a phrase that nobody repeats as often as a short one."""
REFRAIN, MOST_REFRAINS = 12, 2
"""Tokens of a phrase that comes back with other words between, and how often it may be said in one segment."""
MIN_TOKENS = 24
"""The budget of the shortest clip: tag, a few words and the end of the turn."""


@dataclass(frozen=True)
class Constraint:
    """What the model may write, per position of the transcript."""

    vocab: Vocab
    language: str | None = None
    """Fix the language tag instead of letting the model choose."""

    def opening(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed first, shape `(V,)`: a language tag, or the one that says nobody spoke."""
        names = [f"lang_{self.language}"] if self.language else [n for n in self.vocab.controls if n[:5] == "lang_"]
        return self._only([self.vocab.control(name) for name in (*names, "nospeech")], num_tokens)

    def body(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed after the tag, shape `(V,)`: text, and the end of the turn."""
        allowed = torch.zeros(num_tokens, dtype=torch.bool)
        allowed[: self.vocab.config.num_text] = True
        allowed[list(self.vocab.control_ids)] = False
        allowed[self.vocab.control("turn_end")] = True
        return allowed

    def closing(self, num_tokens: int) -> Tensor:
        """Return the only token allowed after `nospeech`: the end of the turn."""
        return self._only([self.vocab.control("turn_end")], num_tokens)

    @staticmethod
    def _only(tokens: Sequence[int], num_tokens: int) -> Tensor:
        allowed = torch.zeros(num_tokens, dtype=torch.bool)
        allowed[list(tokens)] = True
        return allowed

    def allowed(self, written: Sequence[int], num_tokens: int) -> Tensor:
        """Return the tokens allowed after `written`, shape `(V,)`."""
        if not written:
            return self.opening(num_tokens)
        if written[0] == self.vocab.control("nospeech"):
            return self.closing(num_tokens)
        return self.body(num_tokens)


def token_budget(duration_s: float) -> int:
    """Return the most tokens that a transcript of `duration_s` of sound may take."""
    return MIN_TOKENS + round(duration_s * MAX_TOKENS_PER_SECOND)


def repetition_start(tokens: Sequence[int], min_repeats: int = 4, max_period: int = 48) -> int | None:
    """Find where a loop at the end begins: the same 1..`max_period` tokens at least `min_repeats` times in a row.

    Short periods need more repeats ("no no no no" is speech, twelve times is a loop), and long ones fewer: nobody says
    the same fifteen tokens three times in a row. A loop with small changes in each round is one as well: a phrase of
    `REFRAIN` tokens is not said three times in half a minute.

    Returns:
        The index after the loop's first round, up to which the transcript can be kept; None if there is no loop.
    """
    for period in range(1, max_period + 1):
        repeats = max(min_repeats, -(-12 // period)) if period < LONG_PERIOD else min_repeats - 1
        tail = tokens[-period * repeats :]
        if len(tail) == period * repeats and all(tail[i] == tail[i % period] for i in range(len(tail))):
            start = len(tokens) - len(tail)
            while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
                start -= 1
            return start + period
    return refrain_start(tokens)


def refrain_start(tokens: Sequence[int]) -> int | None:
    """Find where the last `REFRAIN` tokens were said for the second time, if they have now been said too often."""
    last, said, place = list(tokens[-REFRAIN:]), list[int](), 0
    if len(last) < REFRAIN:
        return None
    while place <= len(tokens) - REFRAIN:
        if tokens[place] == last[0] and list(tokens[place : place + REFRAIN]) == last:
            said.append(place)
            place += REFRAIN
        else:
            place += 1
    return said[1] if len(said) > MOST_REFRAINS else None


@dataclass(frozen=True)
class Transcript:
    """What the written tokens say."""

    text: str
    language: str | None


def parse(tokens: Sequence[int], vocab: Vocab, tokenizer: TextTokenizer) -> Transcript:
    """Read the tag and the text out of what was written."""
    language = vocab.language_of(tokens[0]) if tokens else None
    body = [token for token in tokens[1:] if vocab.region(token) == "text"]
    return Transcript(tokenizer.decode(body).strip(), language)


def hypotheses(adapted: Adapted, tokens: Sequence[int], tokenizer: TextTokenizer) -> list[str]:
    """Read what the adaptor's own recogniser, whose classes are these text tokens, has heard in each sound."""
    assert adapted.ctc_logits is not None
    rows = ctc_tokens(adapted.ctc_logits, adapted.num_embeddings)
    return [tokenizer.decode([tokens[index] for index in row]).strip() for row in rows]


def ctc_tokens(logits: Tensor, num_frames: Tensor) -> list[list[int]]:
    """Read CTC logits `(B, N, V + 1)` greedily: the best class of each frame, repeats merged, blanks dropped."""
    blank = logits.shape[-1] - 1
    rows = []
    for best, num in zip(logits.argmax(dim=-1), num_frames.tolist(), strict=True):
        merged = best[:num].unique_consecutive().tolist()
        rows.append([index for index in merged if index != blank])
    return rows
