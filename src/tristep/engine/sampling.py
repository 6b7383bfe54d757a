"""Greedy decoding of a batch: one pass over the ragged prompts, then one token a step for every row.

What a row writes does not depend on its neighbours: prompts are padded on the right, what lies beyond a row's
own length is never attended, and a row that has finished leaves the batch, so that it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache
from tristep.modes.asr.decoding import FinishReason
from tristep.modes.mode import Constraint
from tristep.vocab import Vocab

FindLoop = Callable[[Sequence[int]], int | None]
"""From what was written to how much of it can be kept when its end is a loop, None if it is not."""


@dataclass
class Completion:
    """What one row of the batch writes."""

    budget: int
    """The most tokens that it may take."""
    tokens: list[int] = field(default_factory=list)
    """The token that ends a turn is not among them."""
    probs: list[float] = field(default_factory=list)
    """The probability of each choice among what was allowed, of the end of the turn too."""
    finish_reason: FinishReason | None = None
    """None while it is being written."""

    def write(self, token: int, logprob: float, vocab: Vocab, find_loop: FindLoop) -> None:
        """Take the next token, and finish when it ends the turn, uses up the budget or closes a loop."""
        self.probs.append(math.exp(logprob))
        if token == vocab.control("turn_end"):
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        if token == vocab.control("nospeech"):  # nothing but the end of the turn may follow it
            self.finish_reason = "stop"
        elif (kept := find_loop(self.tokens)) is not None:
            del self.tokens[kept:], self.probs[kept:]
            self.finish_reason = "repetition"
        elif len(self.tokens) == self.budget:
            self.finish_reason = "length"


@torch.inference_mode()
def greedy(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    audio_embeddings: Tensor | None,
    constraint: Constraint,
    budgets: Sequence[int],
    find_loop: FindLoop = lambda tokens: None,
) -> list[Completion]:
    """Write the most probable allowed token, again and again, for every prompt of a batch.

    Args:
        backbone: The model.
        prompts: Token ids, one prompt a row, of any lengths.
        audio_embeddings: Vectors for the audio slots of all prompts in reading order, shape `(N, D)`.
        constraint: What may be written.
        budgets: The most tokens that each row may write.
        find_loop: Called on what a row has written after each token, to end it when it repeats itself.

    Returns:
        One completion a prompt, in their order.

    Raises:
        ValueError: If a prompt is empty or has no budget, or together they exceed what the backbone reads.
    """
    if not prompts:
        return []
    num_positions = reserved_positions(backbone, prompts, budgets)
    completions = [Completion(budget) for budget in budgets]
    cache = backbone.new_cache(len(prompts), num_positions)
    hidden = prefill(backbone, prompts, audio_embeddings, cache)  # (B, D)
    opening, body = penalties(backbone, constraint)
    tokens = write(completions, backbone.logits(hidden) + opening, backbone.vocab, find_loop)
    writing = completions
    while True:
        places = [place for place, row in enumerate(writing) if row.finish_reason is None]
        if not places:
            return completions
        if len(places) < len(writing):
            writing, tokens = [writing[place] for place in places], tokens[places]
            cache = kept_rows(cache, places)
        hidden = backbone(tokens[:, None], kv_cache=cache)[:, 0]  # (B, D)
        tokens = write(writing, backbone.logits(hidden) + body, backbone.vocab, find_loop)


def reserved_positions(backbone: Backbone, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> int:
    """Return the positions that the longest row can come to need, after checking that there are as many."""
    if not all(prompts) or min(budgets) < 1:
        raise ValueError(
            f"{len(prompts)} prompts with budgets {list(budgets)}: give each a token to read and one to write"
        )
    needed = max(len(prompt) + budget for prompt, budget in zip(prompts, budgets, strict=True))
    most = backbone.config.decoder.max_positions
    if needed > most:
        raise ValueError(
            f"a prompt and its answer may take {needed} tokens, the backbone reads {most}: split the sound"
        )
    return needed


def prefill(
    backbone: Backbone, prompts: Sequence[Sequence[int]], audio_embeddings: Tensor | None, cache: KVCache
) -> Tensor:
    """Read all prompts in one pass; return the hidden state after each one's last token, shape `(B, D)`."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=cache.lengths.device)
    padding = backbone.vocab.control("turn_end")
    rows = [list(prompt) + [padding] * (int(lengths.max()) - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(rows, device=lengths.device)
    hidden = backbone(tokens, audio_embeddings, kv_cache=cache)  # (B, T, D)
    cache.lengths = lengths
    return hidden[torch.arange(len(prompts)), lengths - 1]


def kept_rows(cache: KVCache, places: Sequence[int]) -> KVCache:
    """Move the rows at `places`, in ascending order, to the front, and return them without taking new memory."""
    end = int(cache.lengths.max())
    for target, place in enumerate(places):
        if target != place:
            cache.keys[:, target, :, :end] = cache.keys[:, place, :, :end]
            cache.values[:, target, :, :end] = cache.values[:, place, :, :end]
    num_rows = len(places)
    return KVCache(cache.keys[:, :num_rows], cache.values[:, :num_rows], cache.lengths[list(places)])


def penalties(backbone: Backbone, constraint: Constraint) -> tuple[Tensor, Tensor]:
    """Turn the masks of the first token and of the others into terms for the logits: 0 or minus infinity."""
    device, size = backbone.embedding.weight.device, backbone.vocab.size
    forbidden = (~constraint.opening(size).to(device), ~constraint.body(size).to(device))
    opening, body = (torch.zeros(size, device=device).masked_fill(mask, -math.inf) for mask in forbidden)
    return opening, body


def write(writing: Sequence[Completion], logits: Tensor, vocab: Vocab, find_loop: FindLoop) -> Tensor:
    """Let every row write its best token by logits `(B, V)`; return the tokens, shape `(B,)`."""
    best, tokens = logits.max(dim=-1)
    logprobs = best - logits.logsumexp(dim=-1)
    for row, token, logprob in zip(writing, tokens.tolist(), logprobs.tolist(), strict=True):
        row.write(token, logprob, vocab, find_loop)
    return tokens
