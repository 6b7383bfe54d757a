"""The code listener: which phones will be heard in the sound of codes, before there is any sound.

What codes say and what is heard of them differ: the flow decoder blurs some, and the phones of others drown in their
neighbours. A few local layers learn it from codes and what the phone reader (`codec.ear`) heard in their sound
(`python -m tristep.training.code_listener`), and tell it in a millisecond, where sounding and hearing takes a tenth of
a second. So a word that will be misunderstood can be mended, or said again (`modes.tts.decoding`), before it is heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tristep.codec.flow import NO_CODE
from tristep.config import TokenizerConfig
from tristep.phones import PHONES

WIDTH, NUM_LAYERS, KERNEL_SIZE, DROPOUT = 192, 5, 5, 0.1
CONTEXT = NUM_LAYERS * (KERNEL_SIZE // 2)
"""Codes before and after one that bear on what is heard of it."""
MISSED = -4.0
"""Nats that a phone costs at most: beyond that it is not heard at all."""
WELL = -1.0
"""How well a word has to be understood to be left as it is, in nats; 0 is best."""
MOST_CHANGES, NUM_CHANGES, WORTH_IT = 3, 24, 0.5
"""Codes of a word that are changed at most, ways that are tried each time, and nats that make a change worth it."""

Verdict = tuple[float, list[int]]
"""How well a word will be understood, in nats, 0 being best, and the codes that say it so."""
Verify = Callable[[Sequence[int], range, str], Verdict]
"""Judges a word, as `CodeListener.verify` does."""


class CodeListener(nn.Module):
    """Codes `(B, T)` -> log-probabilities of the phone that will be heard in each frame of 20 ms, `(B, N, P)`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.stride, levels = config.stride, config.levels
        self.num_cells = math.prod(levels[: config.num_phone_dims])
        self.cells = nn.Embedding(self.num_cells, WIDTH)
        self.prosody = nn.Embedding(math.prod(levels) // self.num_cells, WIDTH)
        self.nothing = nn.Parameter(torch.zeros(WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.convs = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, KERNEL_SIZE, padding=KERNEL_SIZE // 2) for _ in range(NUM_LAYERS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(NUM_LAYERS))
        self.head = nn.Linear(WIDTH, config.stride * len(PHONES))

    def forward(self, codes: Tensor) -> Tensor:
        """Listen to codes, `NO_CODE` where none is known: what comes after is not written yet."""
        known = codes.clamp(min=0)
        embedded = self.cells(known % self.num_cells) + self.prosody(known // self.num_cells)
        return self.hear(torch.where((codes != NO_CODE)[..., None], embedded, self.nothing))

    def hear(self, hidden: Tensor) -> Tensor:
        """Listen to embedded codes, shape `(B, T, D)`."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = norm(hidden + F.gelu(conv(self.dropout(hidden).mT).mT))
        logits: Tensor = self.head(hidden)
        return logits.reshape(len(logits), -1, len(PHONES)).log_softmax(dim=-1)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def verify(self, codes: Sequence[int], own: range, phones: str) -> Verdict:
        """Say how well a word will be understood; one that will not be is mended as far as that goes.

        Args:
            codes: What is said, up to where the word has sounded out.
            own: Which of them are the word's own.
            phones: How it is said, in `PHONES`.

        Returns:
            How well, and the word's own codes: as they were, or mended.
        """
        first = max(0, own.start - CONTEXT)
        own, near = range(own.start - first, own.stop - first), torch.tensor(codes[first:])
        score = float(self.scores(self(near[None]), own, phones))
        for _ in range(MOST_CHANGES):
            if score >= WELL or not own:
                break
            ways = self.changes(near, own, phones)
            scores = self.scores(self(ways), own, phones)
            if float(scores.max()) < score + WORTH_IT:
                break
            near, score = ways[scores.argmax()], float(scores.max())
        return score, near[own.start : own.stop].tolist()

    def scores(self, heard: Tensor, own: range, phones: str) -> Tensor:
        """Score a word in what is heard of codes, `(B, N, P)`; shape `(B,)`."""
        return in_order(heard[:, self.stride * own.start :], phones)

    def changes(self, codes: Tensor, own: range, phones: str) -> Tensor:
        """Change one of a word's codes in the most promising ways, by the gradient (Ebrahimi et al. 2018, HotFlip).

        The prosody of a code stays, what it says of phones changes.

        Args:
            codes: The word and what is around it, shape `(T,)`.
            own: Which of them are the word's own.
            phones: How the word is said.

        Returns:
            Shape `(NUM_CHANGES, T)`.
        """
        said = codes % self.num_cells
        with torch.enable_grad():
            embedded = (self.cells(said) + self.prosody(codes // self.num_cells)).detach().requires_grad_()
            self.scores(self.hear(embedded[None]), own, phones).sum().backward()  # type: ignore[no-untyped-call]
        assert embedded.grad is not None
        slope = embedded.grad[own.start : own.stop]  # (own, D)
        gains = slope @ self.cells.weight.T - (slope * self.cells(said[own.start : own.stop])).sum(-1, keepdim=True)
        best = gains.flatten().topk(min(NUM_CHANGES, gains.numel())).indices
        ways, places = codes.repeat(len(best), 1), own.start + best // self.num_cells
        ways[torch.arange(len(best)), places] += best % self.num_cells - said[places]
        return ways

    def save(self, path: Path) -> None:
        """Write the weights in bfloat16."""
        save_file({name: tensor.bfloat16().contiguous() for name, tensor in self.state_dict().items()}, path)


def in_order(heard: Tensor, phones: str) -> Tensor:
    """Find where phones are heard best one after the other, and return their log-probabilities' sum.

    Args:
        heard: Log-probabilities of all phones in each frame, shape `(B, N, P)`.
        phones: What should be heard, each in a frame of its own; one that is not costs `MISSED`.

    Returns:
        Shape `(B,)`.
    """
    best = heard.new_zeros(len(heard), heard.shape[1] + 1)  # what the frames before each one allow
    for phone in phones:
        found = best[:, :-1] + heard[:, :, PHONES.index(phone)]
        found = F.pad(found, (1, 0), value=-math.inf).cummax(dim=1).values
        best = torch.maximum(found, best + MISSED)
    return best[:, -1]
