"""Drawing completions: several answers to each prompt of a batch, at a temperature.

The loop is the one of `reciting.py`, with text in the place of codes. A prompt is read once, however many answers it
gets. Each answer draws from its own generator, so what it says follows from its seed and never from its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.backbone.transformer import KVCache
from tristep.engine.reciting import Sampling, draw
from tristep.engine.sampling import (
    Completion,
    FindLoop,
    kept_rows,
    padded,
    penalties,
    prefill,
    repeated_rows,
    reserved_positions,
)
from tristep.modes.mode import Constraint

Row = tuple[Completion, torch.Generator]


@torch.inference_mode()
def draw_completions(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    audio_embeddings: Tensor | None,
    constraint: Constraint,
    budgets: Sequence[int],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    find_loop: FindLoop = lambda tokens: None,
) -> list[list[Completion]]:
    """Write several completions of each prompt.

    Args:
        backbone: The model.
        prompts: Token ids, of any lengths.
        audio_embeddings: Vectors for the audio slots of all prompts in reading order, shape `(N, D)`.
        constraint: What may be written.
        budgets: The most tokens that a completion of each prompt may take.
        seeds: For each prompt the seeds of its completions, as many for every prompt.
        sampling: How tokens are drawn.
        find_loop: Called on what a completion holds after each token, to end it when it repeats itself. Without one a
            completion is all that was drawn.

    Returns:
        For each prompt its completions, in the order of their seeds.

    Raises:
        ValueError: If a prompt is empty or has no budget, if together they exceed what the backbone reads, or if the
            prompts do not all get as many completions.
    """
    if len({len(group) for group in seeds}) != 1 or len(seeds) != len(prompts) or not seeds[0]:
        raise ValueError(
            f"{len(prompts)} prompts with {[len(group) for group in seeds]} seeds: give every prompt as many, and one "
            "at least"
        )
    group_size = len(seeds[0])
    completions = [[Completion(budget) for _ in group] for budget, group in zip(budgets, seeds, strict=True)]
    rows = [
        (completion, torch.Generator().manual_seed(seed))
        for group, own in zip(completions, seeds, strict=True)
        for completion, seed in zip(group, own, strict=True)
    ]
    cache = backbone.new_cache(len(prompts), reserved_positions(backbone, prompts, budgets))
    hidden = prefill(backbone, prompts, audio_embeddings, cache)  # (B, D)
    opening, body = penalties(backbone, constraint)
    logits = (backbone.logits(hidden) + opening).repeat_interleave(group_size, dim=0)
    cache = repeated_rows(cache, group_size)
    while rows:
        write_all(rows, logits, backbone, sampling, find_loop)
        rows, cache = still_writing(rows, cache)
        if rows:
            tokens, _ = padded(backbone, [completion.tokens[-1:] for completion, _ in rows])
            logits = backbone.logits(backbone(tokens, kv_cache=cache)[:, 0]) + body
    return completions


def write_all(rows: Sequence[Row], logits: Tensor, backbone: Backbone, sampling: Sampling, find_loop: FindLoop) -> None:
    """Let every row draw its next token by its logits, masked, shape `(B, V)`."""
    logprobs = logits.float().log_softmax(dim=-1)
    for (completion, generator), row in zip(rows, logprobs, strict=True):
        token = draw(row, sampling, generator)
        completion.write(token, float(row[token]), backbone.vocab, find_loop)


def still_writing(rows: Sequence[Row], cache: KVCache) -> tuple[list[Row], KVCache]:
    """Return the rows that have not finished, and what they have read."""
    places = [place for place, (completion, _) in enumerate(rows) if completion.finish_reason is None]
    kept = [rows[place] for place in places]
    return kept, cache if len(kept) == len(rows) or not kept else kept_rows(cache, places)
