"""Alignment: when each letter and each word of a known text is said.

The best CTC path (Graves et al. 2006) that writes the text says which frames each target takes. CTC is free to be late
or early by a frame or two and leaves most frames blank, so a target's span is where the recogniser is sure of it, and
not all of its sound: pauses come out a little long, words a little short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tristep.text import LETTERS, spell_letters, spoken_words, written_words

LETTER_HZ = 25.0
"""Frames of letter log-probabilities in a second, as the codec's recogniser writes them."""
BLANK = len(LETTERS)
"""The class after the letters."""


@dataclass(frozen=True)
class Spans:
    """Where each target sits on the best path."""

    first: Tensor
    """First frame of each target, shape `(L,)`."""
    last: Tensor
    """Last frame of each target, itself included, shape `(L,)`."""
    logprob: float
    """Mean log-probability of the path per frame: near zero where sound and text agree."""


@dataclass(frozen=True)
class Word:
    """A word and when it is said."""

    text: str
    start_s: float
    end_s: float


def ctc_align(logprobs: Tensor, targets: Tensor) -> Spans:
    """Find the frames of each target on the most probable CTC path of one clip.

    Args:
        logprobs: Log-probabilities of one clip, blank last, shape `(N, V + 1)`.
        targets: Class indices, shape `(L,)`; may be empty.

    Returns:
        The spans: in order, disjoint, and a blank apart where a target repeats the one before.

    Raises:
        ValueError: If the targets do not fit the frames, or no path has a probability above zero.
    """
    return ctc_align_batch(logprobs[None], [len(logprobs)], [targets])[0]


def ctc_align_batch(logprobs: Tensor, num_frames: Sequence[int], targets: Sequence[Tensor]) -> list[Spans]:
    """Align several clips at once; what `ctc_align` finds for each of them alone.

    Viterbi over the `2 L + 1` states blank, target, blank, target, ..., blank: from one frame to the next a path
    stays, moves on by one state, or skips the blank between two different targets.

    Args:
        logprobs: Log-probabilities, blank last, shape `(B, N, V + 1)`.
        num_frames: Valid frames per clip, B numbers.
        targets: Class indices of each clip, B tensors of shape `(L_b,)`.

    Returns:
        One value of spans per clip.
    """
    for row, frames in zip(targets, num_frames, strict=True):
        _check_fit(row, frames)
    B, N, _ = logprobs.shape
    num_targets = torch.tensor([len(row) for row in targets], device=logprobs.device)
    states = _states(targets, logprobs)  # (B, S)
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    beyond = torch.arange(states.shape[1], device=logprobs.device) > 2 * num_targets[:, None]
    emitted = logprobs.float().gather(2, states[:, None].expand(B, N, -1)).masked_fill(beyond[:, None], -torch.inf)
    score = torch.full_like(emitted[:, 0], -torch.inf)
    score[:, :2] = emitted[:, 0, :2]
    moves, ends = [], torch.tensor(num_frames, device=logprobs.device)
    for frame in range(1, N):
        best, move = _step(score, skips)
        score = torch.where((frame < ends)[:, None], best + emitted[:, frame], score)
        moves.append(move)
    return _trace(score, moves, num_frames, num_targets)


def _check_fit(targets: Tensor, num_frames: int) -> None:
    """Refuse targets that need more frames than there are: one each, and a blank between equal neighbours."""
    needed = len(targets) + int((targets[1:] == targets[:-1]).sum())
    if not max(needed, 1) <= num_frames:
        raise ValueError(
            f"{len(targets)} targets need at least {max(needed, 1)} frames, the clip has {num_frames}: "
            "check that the text belongs to the clip"
        )


def _states(targets: Sequence[Tensor], logprobs: Tensor) -> Tensor:
    """Put blanks around all targets and after the shorter ones, shape `(B, 2 max(L) + 1)`."""
    longest = max(map(len, targets))
    states = torch.full((len(targets), 2 * longest + 1), logprobs.shape[-1] - 1, device=logprobs.device)
    for row, target in zip(states, targets, strict=True):
        row[1 : 2 * len(target) : 2] = target
    return states


def _step(score: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
    """Choose each state's best predecessor: its score `(B, S)`, and how many states back it is (0, 1, 2)."""
    nowhere = score.new_full((len(score), 2), -torch.inf)
    padded = torch.cat([nowhere, score], dim=1)
    skipped = padded[:, :-2].masked_fill(~skips, -torch.inf)
    best, move = torch.stack([score, padded[:, 1:-1], skipped]).max(dim=0)
    return best, move.to(torch.uint8)


def _trace(score: Tensor, moves: list[Tensor], num_frames: Sequence[int], num_targets: Tensor) -> list[Spans]:
    """Walk back from the better of the last two states of each clip."""
    spans = []
    steps = torch.stack(moves).cpu().numpy() if moves else None  # (N - 1, B, S)
    for row, (frames, length) in enumerate(zip(num_frames, num_targets.tolist(), strict=True)):
        last_two = score[row, max(2 * length - 1, 0) : 2 * length + 1]
        state = max(2 * length - 1, 0) + int(last_two.argmax())
        if last_two.max() == -torch.inf:
            raise ValueError("no path has a probability above zero: check that the log-probabilities are finite")
        path = [state]
        for frame in range(frames - 2, -1, -1):
            assert steps is not None
            state -= int(steps[frame, row, state])
            path.append(state)
        walked = torch.tensor(path[::-1])  # (N,), never falls
        own = 2 * torch.arange(length) + 1
        first, last = torch.searchsorted(walked, own), torch.searchsorted(walked, own, right=True) - 1
        spans.append(Spans(first, last, float(last_two.max()) / frames))
    return spans


def word_times(logprobs: Tensor, text: str, frame_rate: float = LETTER_HZ) -> list[Word]:
    """Say when each word of a transcript begins and ends.

    Args:
        logprobs: Log-probabilities over `LETTERS` and blank, shape `(N, 29)`.
        text: What is said, in plain words: pass numbers and symbols through `text.speakable` first.
        frame_rate: Frames per second, Hz.

    Returns:
        The words as they are written, punctuation included: joined by spaces they are the text.

    Raises:
        ValueError: If the text holds digits or symbols, or does not fit the clip.
    """
    letters = spell_letters(text)
    if letters is None:
        raise ValueError(f"{text!r} can't be spelt in letters: pass it through `tristep.text.speakable` first")
    return spoken_when(ctc_align(logprobs, torch.tensor(letters, dtype=torch.long)), text, frame_rate)


def spoken_when(spans: Spans, text: str, frame_rate: float = LETTER_HZ) -> list[Word]:
    """Gather the spans of a text's letters, as `spell_letters` spells it, into its words."""
    words, start = [], 0
    for written in written_words(text):
        end = start + len(" ".join(spoken_words(written) or []))
        start_s, end_s = int(spans.first[start]) / frame_rate, (int(spans.last[end - 1]) + 1) / frame_rate
        words.append(Word(written, start_s, end_s))
        start = end + 1  # behind the space
    return words
