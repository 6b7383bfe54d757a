"""Answers: what a backbone says to turns of text or sound, many conversations at once.

This is the realtime mode without a session: for making data and for measuring. A turn of sound is answered after its
trace, as the mode is trained; a backbone without the mode answers text alone, as the chat model that it is.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from tristep.backbone.branches import grow
from tristep.backbone.model import Backbone
from tristep.chat import Chat, Sound, Turn
from tristep.engine.drawing import draw_completions
from tristep.engine.reciting import Sampling
from tristep.engine.sampling import greedy
from tristep.modes.asr.decoding import repetition_start
from tristep.modes.realtime.data import Trace, read_trace
from tristep.modes.realtime.decoding import allowed
from tristep.vocab import Vocab

MOST_TOKENS = 72
"""An answer that takes more is cut."""
MOST_NOTED = 96
"""A trace that takes more is cut."""
SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.9)
"""How a session draws its answers too."""


@dataclass(frozen=True)
class Answer:
    """What was answered."""

    text: str
    trace: Trace | None = None
    """What was noted of a turn of sound."""
    times_s: tuple[float, ...] = ()
    """When each token of the answer was there, counted from the prompt; known of a conversation answered alone."""


@dataclass(frozen=True)
class Words:
    """What may be written: text, the end of the turn, and where there is a trace, its end."""

    vocab: Vocab
    traced: bool = False

    def opening(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed first, shape `(V,)`."""
        return self.body(num_tokens)

    def body(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed after that, shape `(V,)`."""
        mask = allowed(self.vocab)
        mask[self.vocab.control("think_end")] = self.traced
        return mask


@dataclass
class Watch:
    """Ends loops, and notes when the tokens of an answer were there."""

    started: float = field(default_factory=time.perf_counter)
    times_s: list[float] = field(default_factory=list)

    def __call__(self, tokens: Sequence[int]) -> int | None:
        self.times_s.append(time.perf_counter() - self.started)
        return repetition_start(tokens)


def answers(
    backbone: Backbone,
    chat: Chat,
    conversations: Sequence[Sequence[Turn]],
    audio_embeddings: Tensor | None = None,
    sampling: Sampling = SAMPLING,
) -> list[Answer]:
    """Answer the last turn of each conversation; the same conversation gets the same answer, whoever is beside it.

    Args:
        backbone: The model, in evaluation mode.
        chat: Writes turns.
        conversations: What `turns` built; either all of them end in sound or none does.
        audio_embeddings: What fills the slots of their sounds in reading order, shape `(N, D)`.
        sampling: How answers are drawn: small models that always write their best token soon go round in circles.

    Raises:
        ValueError: If some conversations end in sound and others in text.
    """
    heard = {any(isinstance(part, Sound) for part in turns[-1].parts) for turns in conversations}
    if len(heard) > 1:
        raise ValueError("some conversations end in sound and others in text: answer them apart")
    watch = Watch()
    prompts = [chat.prompt(turns) for turns in conversations]
    noted = notes(backbone, chat, prompts, audio_embeddings) if heard == {True} else [[] for _ in prompts]
    prompts = [prompt + tokens for prompt, tokens in zip(prompts, noted, strict=True)]
    seeds = [[zlib.crc32(str(prompt).encode())] for prompt in prompts]
    budgets = [MOST_TOKENS] * len(prompts)
    drawn = draw_completions(
        backbone, prompts, audio_embeddings, Words(chat.vocab), budgets, seeds, sampling, watch
    )  # fmt: skip
    times_s = tuple(watch.times_s) if len(prompts) == 1 else ()
    return [
        Answer(chat.tokenizer.decode(completion.tokens).strip(), trace_of(tokens, chat), times_s)
        for (completion,), tokens in zip(drawn, noted, strict=True)
    ]


def notes(
    backbone: Backbone, chat: Chat, prompts: Sequence[Sequence[int]], audio_embeddings: Tensor | None
) -> list[list[int]]:
    """Write the trace of each prompt by its best tokens, the marks around it included."""
    think_start, think_end = (chat.vocab.control(name) for name in ("think_start", "think_end"))

    def find_end(tokens: Sequence[int]) -> int | None:
        """End where the trace does, as if a loop began there."""
        return len(tokens) - 1 if tokens[-1] == think_end else repetition_start(tokens)

    opened = [[*prompt, think_start] for prompt in prompts]
    budgets = [MOST_NOTED] * len(opened)
    completions = greedy(backbone, opened, audio_embeddings, Words(chat.vocab, traced=True), budgets, find_end)
    return [[think_start, *completion.tokens, think_end] for completion in completions]


def trace_of(tokens: Sequence[int], chat: Chat) -> Trace | None:
    """Read a trace with its marks; None where there is none."""
    return read_trace(chat.tokenizer.decode(tokens[1:-1]).strip()) if tokens else None


@torch.inference_mode()
def mean_logprobs(
    backbone: Backbone, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float]:
    """Return how likely a backbone finds completions of prompts: the mean log-probability of the tokens of each.

    Completions of the same prompt that stand next to each other are read as a tree, the prompt once.
    """
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    same = [0, *(len(prompt) if prompt == before else 0 for before, prompt in pairwise(prompts))]
    tree = grow(rows, same).to(backbone.embedding.weight.device)
    hidden = backbone(tree.tokens, positions=tree.positions, segments=tree.segments, trunk=tree.trunk).flatten(0, 1)
    found = []
    for prompt, completion, places in zip(prompts, completions, tree.places, strict=True):
        before = places[len(prompt) - 1 : len(prompt) + len(completion) - 1]
        logprobs = backbone.logits(hidden[before]).float().log_softmax(dim=-1)
        found.append(float(logprobs.gather(1, torch.tensor(completion, device=hidden.device)[:, None]).mean()))
    return found


@torch.inference_mode()
def mean_logprob(backbone: Backbone, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """Return how likely a backbone finds a completion of a prompt: the mean log-probability of its tokens."""
    device = backbone.embedding.weight.device
    tokens = torch.tensor([[*prompt, *completion]], device=device)
    hidden = backbone(tokens)[:, len(prompt) - 1 : -1]
    logprobs = backbone.logits(hidden).float().log_softmax(dim=-1)[0]
    return float(logprobs.gather(1, tokens[0, len(prompt) :, None]).mean())
