"""Speaking a batch of texts: one pass over the prompts, then one choice a step for every row.

Each row draws from its own generator, so what it says follows from its seed and never from its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache
from tristep.engine.drafting import MOST_DRAFTS
from tristep.engine.sampling import kept_rows, prefill, repeated_rows
from tristep.modes.tts.data import NEXT
from tristep.modes.tts.decoding import Recital, allowed_mask

MOST_READ = MOST_DRAFTS + 1
"""Tokens that a row reads in one pass at most. A longer word is read in several: many tokens would be computed in
another way (`precision.MANY_TOKENS`), and so would those of the rows beside them."""


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn."""

    temperature: float = 0.25
    top_k: int = 40
    top_p: float = 0.9
    ends_apart: bool = True
    """Whether a word ends as often as the model means it to, whatever makes its codes more probable: it has one way to
    end and thousands to go on, so a temperature under 1 over both would end it early. Not at temperature 0."""
    max_attempts: int = 4
    """Times that a word is said at most where its codes tell that it will not be understood."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or min(self.top_k, self.max_attempts) < 1 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling has temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p} and max_attempts "
                f"{self.max_attempts}: expected a temperature of at least 0, top_k and max_attempts of at least 1, and "
                "top_p above 0 and at most 1"
            )


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one index by logits `(V,)`, among the most probable ones; the best one at temperature 0."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    best, indices = logits.float().topk(min(sampling.top_k, len(logits)))
    probs = (best / sampling.temperature).softmax(dim=-1)
    probs = probs * (probs.cumsum(dim=-1) - probs < sampling.top_p)  # the first one always stays
    return int(indices[torch.multinomial(probs.cpu(), 1, generator=generator)])


def draw_speech(logits: Tensor, over: int | None, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a code, or `over`, the index that ends the word, where both may be written."""
    if over is None or not sampling.ends_apart or sampling.temperature == 0:
        return draw(logits, sampling, generator)
    if torch.rand((), generator=generator) < float(logits.float().softmax(dim=-1)[over]):
        return over
    return draw(logits.index_fill(0, torch.tensor([over], device=logits.device), -math.inf), sampling, generator)


@torch.inference_mode()
def recite(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    recitals: Sequence[Recital],
    seeds: Sequence[int],
    sampling: Sampling,
) -> Iterator[None]:
    """Speak all recitals to their ends; they fill as it goes, and each step yields once.

    Args:
        backbone: The model.
        prompts: Token ids, one prompt a recital, of any lengths.
        recitals: What is spoken.
        seeds: The seed of each.
        sampling: How codes are drawn.

    Raises:
        ValueError: If a text may take more tokens than the backbone reads.
    """
    runs = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]  # answers of a prompt read it once
    cache = backbone.new_cache(len(runs), reserved_positions(backbone, prompts, recitals))
    hidden = prefill(backbone, [prompt for prompt, _ in runs], None, cache)
    if len(runs) < len(prompts):
        times = torch.tensor([number for _, number in runs], device=hidden.device)
        hidden, cache = hidden.repeat_interleave(times, dim=0), repeated_rows(cache, times)  # (B, D)
    rows = list(zip(recitals, (torch.Generator().manual_seed(seed) for seed in seeds), strict=True))
    while True:
        choose(backbone, hidden, rows, [sampling] * len(rows))
        cache.lengths -= cache.lengths.new_tensor([forgotten(recital) for recital, _ in rows])
        yield
        places = [place for place, (recital, _) in enumerate(rows) if not recital.is_done]
        if not places:
            return
        if len(places) < len(rows):
            rows, cache = [rows[place] for place in places], kept_rows(cache, places)
        hidden = read_given(backbone, [recital for recital, _ in rows], cache)


def read_given(backbone: Backbone, recitals: Sequence[Recital], cache: KVCache) -> Tensor:
    """Read what every row has to read; return the hidden state after each one's last token, `(B, D)`."""
    last, num_read = read_some(backbone, recitals, cache)
    while any(recital.given for recital in recitals):
        hidden, num_read = read_some(backbone, recitals, cache)
        last = torch.where((num_read > 0)[:, None], hidden, last)
    return last


def read_some(backbone: Backbone, recitals: Sequence[Recital], cache: KVCache) -> tuple[Tensor, Tensor]:
    """Read the next tokens of every row that has some.

    Returns:
        The hidden states after each row's last token, `(B, D)`, and how many each has read, `(B,)`.
    """
    given = [recital.take_given(MOST_READ) for recital in recitals]
    num_given = torch.tensor([len(tokens) for tokens in given], device=cache.lengths.device)
    rows = [torch.tensor(tokens, dtype=torch.long) for tokens in given]
    tokens = pad_sequence(rows, batch_first=True, padding_value=backbone.vocab.control(NEXT)).to(num_given.device)
    lengths = cache.lengths + num_given
    hidden = backbone(tokens, kv_cache=cache)  # (B, T, D)
    cache.lengths = lengths  # what was padding is never attended
    return hidden[torch.arange(len(recitals)), (num_given - 1).clamp(min=0)], num_given


def forgotten(recital: Recital) -> int:
    """Return how many tokens a recital takes back, and take note that they are forgotten."""
    num, recital.num_taken_back = recital.num_taken_back, 0
    return num


def choose(
    backbone: Backbone,
    hidden: Tensor,
    rows: Sequence[tuple[Recital, torch.Generator]],
    samplings: Sequence[Sampling],
) -> None:
    """Let every row write in its own way, given the hidden states `(B, D)`."""
    first = len(backbone.head.weight)
    allowed = allowed_mask([recital for recital, _ in rows], first, backbone.vocab.size).to(hidden.device)
    logits = backbone.head.grown_logits(hidden).masked_fill(~allowed, -math.inf)
    for (recital, generator), sampling, row in zip(rows, samplings, logits, strict=True):
        over = None if recital.over is None else recital.over - first
        recital.write(first + draw_speech(row, over, sampling, generator))
        recital.write_forced()


def reserved_positions(backbone: Backbone, prompts: Sequence[Sequence[int]], recitals: Sequence[Recital]) -> int:
    """Return the positions that the longest row can come to need, after checking that there are as many."""
    needed = MOST_READ + max(  # the padding beside what is read takes room too
        len(prompt) + recital.max_tokens for prompt, recital in zip(prompts, recitals, strict=True)
    )
    most = backbone.config.decoder.max_positions
    if needed > most:
        raise ValueError(
            f"a text may take {needed} tokens to speak, the backbone reads {most}: split it into sentences"
        )
    return needed
