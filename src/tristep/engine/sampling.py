"""Greedy decoding of a batch: the ragged prompts are read, then pass after pass writes a token in every row.

Where something guesses ahead (`drafting.py`), a pass verifies the guesses too, and settles as many tokens as are right.

What a row writes does not depend on its neighbours: prompts are padded on the right, what lies beyond a row's
own length is never attended, and a row that has finished leaves the batch, so that it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache, whole_blocks
from tristep.engine.drafting import MOST_DRAFTS, Drafter, DraftSources, HeadDrafts, agreement
from tristep.engine.verify import NO_DRAFT, PassCounts, verify_draft
from tristep.modes.asr.decoding import FinishReason
from tristep.modes.mode import Constraint
from tristep.vocab import Vocab

FindLoop = Callable[[Sequence[int]], int | None]
"""From what was written to how much of it can be kept when its end is a loop, None if it is not."""
Bias = Callable[[Sequence[int], Tensor], Mapping[int, float]]
"""From what was written, and the logits `(V,)` after it, to what is added to some of these; it depends on nothing else
that changes, so that a draft is verified against the same logits that greedy decoding sees."""
PROMPT_CHUNK = 128
"""Tokens of a prompt that are read in one pass: ten seconds of sound. The chunks of a prompt are always the same and
whole blocks, so that it is computed in the same way whoever is beside it."""


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
    bias: Bias | None = None
    """What makes some tokens likelier in this row."""
    counts: PassCounts = field(default_factory=PassCounts)
    """How many passes of the backbone it took, and what was drafted for them."""

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
    completions: Sequence[Completion] | None = None,
    sources: DraftSources | None = None,
) -> list[Completion]:
    """Write the most probable allowed token, again and again, for every prompt of a batch.

    Args:
        backbone: The model.
        prompts: Token ids, one prompt a row, of any lengths.
        audio_embeddings: Vectors for the audio slots of all prompts in reading order, shape `(N, D)`.
        constraint: What may be written.
        budgets: The most tokens that each row may write.
        find_loop: Called on what a row has written after each token, to end it when it repeats itself.
        completions: Rows to go on with, where some have a bias, or have written something: their prompts end with it.
        sources: What may guess ahead: it changes how many passes are needed, and not what is written.

    Returns:
        One completion a prompt, in their order.

    Raises:
        ValueError: If a prompt is empty or has no budget, or together they exceed what the backbone reads.
    """
    if not prompts:
        return []
    completions = list(completions or map(Completion, budgets))
    num_positions = reserved_positions(backbone, prompts, budgets) + MOST_DRAFTS
    cache = backbone.new_cache(len(prompts), num_positions)
    opening, body = penalties(backbone, constraint)
    drafter = new_drafter(backbone, sources or DraftSources(), completions, num_positions, body)
    hidden = prefill(backbone, prompts, audio_embeddings, cache, drafter)  # (B, D)
    first = torch.stack([body if row.tokens else opening for row in completions])
    logits = (backbone.logits(hidden) + first)[:, None]  # (B, 1, V)
    loops = [find_loop] * len(prompts)
    settled = settle(completions, [[]] * len(prompts), logits, backbone.vocab, loops)
    writing = completions
    while True:
        drafter.read(settled)
        places = [place for place, row in enumerate(writing) if row.finish_reason is None]
        if not places:
            return completions
        if len(places) < len(writing):
            writing, settled = [writing[place] for place in places], [settled[place] for place in places]
            cache = kept_rows(cache, places)
            drafter.keep(places)
        last = [tokens[-1] for tokens in settled]
        drafts = drafter.draft([row.budget - len(row.tokens) - 1 for row in writing], cache.lengths, last)
        logits = score(backbone, last, drafts, cache, drafter) + body  # (B, K + 1, V)
        settled = settle(writing, drafts, logits, backbone.vocab, loops[: len(writing)])
        # What was read of a rejected draft is rolled back: it lies beyond the length, and is written over.
        cache.lengths = cache.lengths - logits.shape[1] + cache.lengths.new_tensor([len(row) for row in settled])
        for row, draft, tokens in zip(writing, drafts, settled, strict=True):
            row.counts.count(len(draft), agreement(draft, tokens), len(tokens))


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


def new_drafter(
    backbone: Backbone, sources: DraftSources, completions: Sequence[Completion], num_positions: int, body: Tensor
) -> Drafter:
    """Put the sources to work on the rows."""
    heads = None
    if sources.num_heads:
        heads = HeadDrafts(backbone, sources.num_heads, len(completions), num_positions, body)
    return Drafter(sources, [row.tokens for row in completions], heads, body.device.type)


def prefill(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    audio_embeddings: Tensor | None,
    cache: KVCache,
    drafter: Drafter | None = None,
) -> Tensor:
    """Read all prompts, chunk by chunk; return the hidden state after each one's last token, shape `(B, D)`."""
    longest = max(map(len, prompts))
    tokens, lengths = padded(backbone, prompts, whole_blocks(longest))
    embeddings = backbone.embed(tokens, audio_embeddings)  # (B, T, D)
    hidden = torch.cat([backbone.read(chunk, cache) for chunk in torch.split(embeddings, PROMPT_CHUNK, dim=1)], dim=1)
    cache.lengths = lengths
    if drafter and drafter.heads:
        drafter.heads.see(torch.zeros_like(lengths), hidden[:, :longest], embeddings[:, :longest])
    return hidden[torch.arange(len(prompts)), lengths - 1]


def score(
    backbone: Backbone, last: Sequence[int], drafts: Sequence[Sequence[int]], cache: KVCache, drafter: Drafter
) -> Tensor:
    """Read the token that each row wrote last, and its draft; return the logits after each, shape `(B, K + 1, V)`."""
    tokens, _ = padded(backbone, [[token, *draft] for token, draft in zip(last, drafts, strict=True)])
    first = cache.lengths
    hidden = backbone(tokens, kv_cache=cache)  # (B, K + 1, D)
    if drafter.heads:
        drafter.heads.see(first, hidden, backbone.embedding(tokens))
    return backbone.logits(hidden)


def padded(backbone: Backbone, rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad rows of tokens on the right, to the longest if no width is given.

    Returns:
        The tokens, shape `(B, T)`, and the lengths of the rows, shape `(B,)`.
    """
    lengths = torch.tensor([len(row) for row in rows], device=backbone.embedding.weight.device)
    padding, width = backbone.vocab.control("turn_end"), width or max(map(len, rows))
    tokens = [[*row, *[padding] * (width - len(row))] for row in rows]
    return torch.tensor(tokens, device=lengths.device), lengths


def repeated_rows(cache: KVCache, times: int | Tensor) -> KVCache:
    """Copy every row of a cache `times` times, or each its own number of times, copies next to each other."""
    keys, values = (tensor.repeat_interleave(times, dim=1) for tensor in (cache.keys, cache.values))
    return KVCache(keys, values, cache.lengths.repeat_interleave(times))


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


def settle(
    writing: Sequence[Completion],
    drafts: Sequence[Sequence[int]],
    logits: Tensor,
    vocab: Vocab,
    loops: Sequence[FindLoop],
) -> list[list[int]]:
    """Let every row write its best tokens: those that were drafted, as far as they are the best, and one more.

    A bias takes part in the choice and not in the probabilities: those stay the model's own.

    Args:
        writing: The rows.
        drafts: Guesses, at most K tokens a row.
        logits: After the last token and after each guess, masked, shape `(B, K + 1, V)`.
        vocab: Their id space.
        loops: What finds the end that repeats itself, for each row.

    Returns:
        What each row has written now, the end of the turn included.
    """
    K = logits.shape[1] - 1
    guessed = [[*draft, *[NO_DRAFT] * (K - len(draft))] for draft in drafts]
    draft_tokens = torch.tensor(guessed, dtype=torch.long, device=logits.device).view(len(writing), K)
    verified = verify_draft(draft_tokens, biased(logits, writing, drafts))
    logprobs = logits.gather(2, verified.tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)  # (B, K + 1)
    lines = zip(verified.tokens.tolist(), logprobs.tolist(), (verified.num_accepted + 1).tolist(), strict=True)
    settled = []
    for row, find_loop, (tokens, probs, num_tokens) in zip(writing, loops, lines, strict=True):
        count = 0
        while count < num_tokens and row.finish_reason is None:
            row.write(tokens[count], probs[count], vocab, find_loop)
            count += 1
        settled.append(tokens[:count])
    return settled


def biased(logits: Tensor, writing: Sequence[Completion], drafts: Sequence[Sequence[int]]) -> Tensor:
    """Add each row's bias to its logits `(B, K + 1, V)`, as far as its draft is right: what lies beyond is not used.

    What is forbidden, at minus infinity, stays so.
    """
    if all(row.bias is None for row in writing):
        return logits
    logits = logits.clone()
    for scores, row, draft in zip(logits, writing, drafts, strict=True):
        for place in range(len(draft) + 1 if row.bias else 0):
            add_bias(scores[place], row, draft[:place])
            if place < len(draft) and int(scores[place].argmax()) != draft[place]:
                break
    return logits


def add_bias(logits: Tensor, row: Completion, draft: Sequence[int]) -> None:
    """Add a row's bias after what it has written and drafted to the logits there, `(V,)`, in place."""
    assert row.bias is not None
    if bias := row.bias([*row.tokens, *draft], logits):
        logits[list(bias)] += logits.new_tensor(list(bias.values()))
