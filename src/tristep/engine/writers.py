"""Writers: each writes one answer, whatever its mode, and says what the backbone has to read for it next.

A scheduler (`scheduler.py`) knows nothing of modes: it gathers what its writers want read, and hands each what the
backbone makes of it. Three kinds write here: a transcript, the best token each time and with drafts; text that is drawn
by a seed, as in a chat; and codes, as a recital goes. All of one kind choose together, none by what another wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.engine.drafting import RowSources, agreement
from tristep.engine.reciting import MOST_READ, Sampling, choose, draw, forgotten
from tristep.engine.sampling import Completion, FindLoop, settle
from tristep.modes.tts.decoding import Recital


class Writer(Protocol):
    """Writes one answer."""

    sources: RowSources
    """What guesses its tokens."""

    @property
    def is_done(self) -> bool:
        """Whether the answer is written."""

    @property
    def most_tokens(self) -> int:
        """Positions that the answer can come to take."""

    @property
    def most_drafts(self) -> int:
        """Tokens that may be guessed ahead."""

    @property
    def given(self) -> list[int]:
        """What has to be read next, at most `MOST_READ` tokens."""

    @classmethod
    def choose(
        cls, backbone: Backbone, hidden: Tensor, writers: Sequence[Any], drafts: Sequence[Sequence[int]]
    ) -> list[int]:
        """Let writers of this kind write.

        Args:
            backbone: The model.
            hidden: Its hidden states after what each was given, drafts included, shape `(B, T, D)`; after the last
                token of the prompt at first.
            writers: Who writes.
            drafts: What was read beyond what each was given.

        Returns:
            How many of the tokens that each has read stay.
        """


@dataclass(eq=False)
class TextWriter:
    """Writes the best token each time, or all drafted ones as far as they are the best."""

    row: Completion
    opening: Tensor
    """0 for what may be written first and minus infinity for the rest, shape `(V,)`."""
    body: Tensor
    """The same for what comes after."""
    find_loop: FindLoop
    sources: RowSources = field(default_factory=lambda: RowSources(None))
    given: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources.read(self.row.tokens)

    @property
    def is_done(self) -> bool:
        return self.row.finish_reason is not None

    @property
    def most_tokens(self) -> int:
        return self.row.budget

    @property
    def most_drafts(self) -> int:
        return self.row.budget - len(self.row.tokens) - 1

    @property
    def penalty(self) -> Tensor:
        """What is added to the logits of the next token, shape `(V,)`."""
        return self.body if self.row.tokens else self.opening

    @classmethod
    def choose(
        cls, backbone: Backbone, hidden: Tensor, writers: Sequence[Any], drafts: Sequence[Sequence[int]]
    ) -> list[int]:
        width = 1 + max(map(len, drafts))
        penalties = torch.stack([writer.penalty for writer in writers])[:, None]  # (B, 1, V)
        logits = backbone.logits(hidden[:, :width]) + penalties  # (B, K + 1, V)
        rows, loops = [writer.row for writer in writers], [writer.find_loop for writer in writers]
        settled = settle(rows, drafts, logits, backbone.vocab, loops)
        for writer, draft, tokens in zip(writers, drafts, settled, strict=True):
            writer.sources.read(tokens)
            if writer.given:
                writer.row.counts.count(len(draft), agreement(draft, tokens), len(tokens))
            writer.given = tokens[-1:]
        return [len(tokens) for tokens in settled]


@dataclass(eq=False)
class DrawingWriter(TextWriter):
    """Draws its tokens by its own seed."""

    sampling: Sampling = field(default_factory=Sampling)
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def most_drafts(self) -> int:
        return 0  # a draft is verified against the best token

    @classmethod
    def choose(
        cls, backbone: Backbone, hidden: Tensor, writers: Sequence[Any], drafts: Sequence[Sequence[int]]
    ) -> list[int]:
        logits = backbone.logits(hidden[:, 0]) + torch.stack([writer.penalty for writer in writers])  # (B, V)
        logprobs = logits.float().log_softmax(dim=-1)
        for writer, scores in zip(writers, logprobs, strict=True):
            token = draw(scores, writer.sampling, writer.generator)
            writer.row.write(token, float(scores[token]), backbone.vocab, writer.find_loop)
            writer.given = [token]
        return [1] * len(writers)


@dataclass(eq=False)
class CodeWriter:
    """Speaks a recital: reads the words that are given, and draws codes."""

    recital: Recital
    sampling: Sampling
    generator: torch.Generator
    sources: RowSources = field(default_factory=lambda: RowSources(None))
    most_drafts: int = 0

    @property
    def is_done(self) -> bool:
        return self.recital.is_done

    @property
    def most_tokens(self) -> int:
        return self.recital.max_tokens

    @property
    def given(self) -> list[int]:
        return list(islice(self.recital.given, MOST_READ))

    @classmethod
    def choose(
        cls, backbone: Backbone, hidden: Tensor, writers: Sequence[Any], drafts: Sequence[Sequence[int]]
    ) -> list[int]:
        num_read = [writer.read() for writer in writers]
        ready = [place for place, writer in enumerate(writers) if not writer.recital.given]
        if ready:
            last = hidden[ready, [max(num_read[place], 1) - 1 for place in ready]]  # (B, D)
            some = [writers[place] for place in ready]
            rows = [(writer.recital, writer.generator) for writer in some]
            choose(backbone, last, rows, [writer.sampling for writer in some])
        return [num - forgotten(writer.recital) for num, writer in zip(num_read, writers, strict=True)]

    def read(self) -> int:
        """Take note that what was given has been read; return how much it was."""
        return len(self.recital.take_given(MOST_READ))
