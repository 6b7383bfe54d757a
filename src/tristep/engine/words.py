"""Words of a transcript: when each is said, and how sure the model is of it.

The adaptor spells what it hears at 25 Hz, and the best path through its letters that writes the text says when each
word is said. What is not written as it sounds, digits and symbols, is aligned as it is read aloud; where several
spoken words stand for one written one, or the other way round, they share their time by length. A text that can't be
spelt, or has more letters than there are frames, is spread over its segment in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tristep.objectives.alignment import ctc_align_batch, spoken_when
from tristep.text import speakable, spell_letters
from tristep.vocab import TextTokenizer


@dataclass(frozen=True)
class Word:
    """A word as it is written, when it is said, and how sure the model is of it."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """The mean probability of its tokens."""

    def later(self, by_s: float) -> Word:
        """Return the word as it is said in a sound that begins `by_s` earlier."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


def words_said(
    texts: Sequence[str], logprobs: Tensor, num_frames: Sequence[int], durations_s: Sequence[float]
) -> list[list[Word]]:
    """Say when the words of each clip of a batch are said; their confidence is left at 0.

    Args:
        texts: What is said in each clip.
        logprobs: Log-probabilities over `LETTERS` and blank, shape `(B, N, 29)`.
        num_frames: Valid frames per clip.
        durations_s: Length of each clip.

    Returns:
        The words of each clip, as its text has them between spaces: in order, disjoint, and inside the clip.
    """
    reads = [read_as(text) for text in texts]
    rows = [row for row, read in enumerate(reads) if read is not None and fits(read, num_frames[row])]
    words = [spread(text.split(), 0.0, duration_s) for text, duration_s in zip(texts, durations_s, strict=True)]
    if not rows:
        return words
    letters = [torch.tensor(spell_letters(reads[row] or ""), device=logprobs.device) for row in rows]
    spans = ctc_align_batch(logprobs[rows], [num_frames[row] for row in rows], letters)
    for row, span in zip(rows, spans, strict=True):
        said = spoken_when(span, reads[row] or "")
        end_s = durations_s[row]
        timed = [Word(word.text, min(word.start_s, end_s), min(word.end_s, end_s), 0.0) for word in said]
        words[row] = carried(timed, texts[row].split())
    return words


def read_as(text: str) -> str | None:
    """Return a text in words that can be spelt, the text itself if it is; None where there is nothing to spell."""
    for read in (text, speakable(text)):
        if spell_letters(read):
            return read
    return None


def fits(read: str, num_frames: int) -> bool:
    """Say whether a CTC path of `num_frames` can spell a text: a frame per letter, a blank between equal ones."""
    letters = spell_letters(read) or []
    return len(letters) + sum(a == b for a, b in pairwise(letters)) <= num_frames


def spread(texts: Sequence[str], start_s: float, end_s: float, confidence: float = 0.0) -> list[Word]:
    """Share a stretch of time among words by their length."""
    total = max(sum(map(len, texts)), 1)
    edges = [start_s + (end_s - start_s) * num / total for num in accumulate(map(len, texts), initial=0)]
    return [Word(text, first, last, confidence) for text, (first, last) in zip(texts, pairwise(edges), strict=True)]


def carried(words: Sequence[Word], texts: Sequence[str]) -> list[Word]:
    """Carry times and confidences from words to another way of writing them.

    Words that both have keep theirs; where the two differ, the new words share the stretch of the old ones.
    """
    result: list[Word] = []
    matcher = SequenceMatcher(None, [word.text for word in words], texts, autojunk=False)
    for kind, first, last, start, end in matcher.get_opcodes():
        if kind == "equal":
            result += words[first:last]
            continue
        replaced = words[first:last]
        sure = sum(word.confidence for word in replaced) / max(len(replaced), 1)
        result += spread(texts[start:end], *_stretch(words, first, last), sure)
    return result


def _stretch(words: Sequence[Word], first: int, last: int) -> tuple[float, float]:
    """Return from when to when words `first` to `last` are said; where there are none, the edge of a word beside."""
    if first < last:
        return words[first].start_s, words[last - 1].end_s
    edge_s = words[first - 1].end_s if first else words[0].start_s if words else 0.0
    return edge_s, edge_s


def with_confidence(
    words: Sequence[Word], body: Sequence[int], probs: Sequence[float], tokenizer: TextTokenizer
) -> list[Word]:
    """Give each word of a text the mean probability of the text tokens `body` that write it."""
    sums = [[0.0, 0] for _ in words]
    for end, prob in enumerate(probs[: len(body)], start=1):
        place = len(tokenizer.decode(body[:end]).split()) - 1  # a lone space goes with the word before it
        if 0 <= place < len(words):
            sums[place][0] += prob
            sums[place][1] += 1
    return [replace(word, confidence=total / max(num, 1)) for word, (total, num) in zip(words, sums, strict=True)]
