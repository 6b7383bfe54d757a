"""The mixture: weighted corpora become batches of packed sequences, as a pure function of the step.

Clips come as lhotse cuts or as our `manifest.jsonl`. An epoch is one seeded shuffle of the weighted clips, cut into
batches of clips of similar length; each batch packs its sequences into rows. Which clips a step sees follows from
the seed and the step alone, so resuming needs no iterator's state.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from pydantic import Field
from torch import Tensor

from tristep.config import Settings
from tristep.modes.asr.data import Style


class CorpusSettings(Settings):
    """One corpus of a mixture."""

    path: str
    """A lhotse cuts file (`cuts.jsonl.gz`) or our `manifest.jsonl`, relative to the data folder."""
    split: str = "train"
    """Rows of this split are read; cuts without a split all count."""
    repeat: float = Field(default=1.0, gt=0)
    """Times that each clip is seen in one epoch; a fraction takes a fresh random part every epoch."""
    style: Style = "written"
    """How the transcripts are written, and so how the model is asked, where a row has no `style` of its own."""
    speeds: tuple[float, ...] = (1.0,)
    """Each clip is also heard at these speeds, pitch and formants moving along: other voices for nothing."""
    max_clips: int | None = None
    """Take only the first clips: for evaluation."""


def read_corpus(corpus: CorpusSettings, root: Path, max_duration_s: float = 30.0) -> list[MonoCut]:
    """Read the clips of a corpus that are at most `max_duration_s` long, as lhotse cuts with one supervision each."""
    path = root / corpus.path
    if not path.exists():
        raise ValueError(f"there is no manifest {str(path)!r}: fetch the corpus, or say where with --data")
    cuts = manifest_cuts(path) if path.name == "manifest.jsonl" else CutSet.from_file(path)
    chosen = [cut for cut in cuts if (cut.custom or {}).get("split", corpus.split) == corpus.split]
    chosen = [cut for cut in chosen if 0.1 < cut.duration <= max_duration_s]
    if not chosen:
        raise ValueError(f"{str(path)!r} has no clip of split {corpus.split!r} up to {max_duration_s:.0f} s long")
    return chosen[: corpus.max_clips]


def manifest_cuts(path: Path) -> CutSet:
    """Turn our `manifest.jsonl` into lhotse cuts, without opening the audio."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return CutSet.from_cuts(row_cut(row, path.parent) for row in rows)


def row_cut(row: dict[str, Any], folder: Path) -> MonoCut:
    """Turn one manifest row into a cut."""
    rate = row["sample_rate"]
    num_samples = round(row["duration"] * rate)
    source = AudioSource("file", [0], str(folder / row["audio"]))
    recording = Recording(row["id"], [source], rate, num_samples, num_samples / rate)
    supervision = SupervisionSegment(
        row["id"], row["id"], 0.0, recording.duration, text=row["text"], language=row["language"],
        speaker=row.get("speaker"),
    )  # fmt: skip
    return MonoCut(
        row["id"], 0.0, recording.duration, 0, [supervision], recording=recording,
        custom={name: row[name] for name in ("split", "style", "phones") if name in row},
    )  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """One cut at one speed, and how its corpus is read."""

    cut: MonoCut
    corpus: CorpusSettings
    speed: float

    @property
    def id(self) -> str:
        """Its name in its corpus."""
        return str(self.cut.id)

    @property
    def text(self) -> str:
        """The transcript."""
        return self.cut.supervisions[0].text or ""

    @property
    def speaker(self) -> str:
        """Who speaks: at another speed, somebody else."""
        name = self.cut.supervisions[0].speaker or self.cut.id
        return str(name) if self.speed == 1 else f"{name} at {self.speed:g}"

    @property
    def duration_s(self) -> float:
        """How long it sounds."""
        return float(self.cut.duration / self.speed)

    @property
    def style(self) -> Style:
        """How the transcript is written."""
        style: Style = (self.cut.custom or {}).get("style", self.corpus.style)
        return style

    @property
    def language(self) -> str:
        """The language of the transcript."""
        return self.cut.supervisions[0].language or "en"

    @property
    def phones(self) -> list[tuple[str, float]]:
        """Its phones and when each ends, in seconds; empty where they are not known."""
        return [(symbol, end_s / self.speed) for symbol, end_s in (self.cut.custom or {}).get("phones", [])]


def read_clips(corpora: Sequence[CorpusSettings], root: Path, max_duration_s: float) -> list[Clip]:
    """Read every corpus of a mixture."""
    return [
        Clip(cut, corpus, speed)
        for corpus in corpora
        for cut in read_corpus(corpus, root, max_duration_s * min(corpus.speeds))
        for speed in corpus.speeds
    ]


@dataclass(frozen=True)
class Sample:
    """One clip, ready for the backbone."""

    tokens: list[int]
    loss_mask: list[bool]
    frames: Tensor
    """Frozen encoder frames, shape `(N, De)`."""
    ctc_targets: list[int]
    """CTC classes of the transcript; empty where it cannot be spelt in them."""
    letters: list[int]
    """Indices into `LETTERS`; empty where the transcript is not plain words."""


@dataclass(frozen=True)
class Batch:
    """Packed sequences and the sounds in them, in reading order."""

    tokens: Tensor
    """Shape `(B, T)`."""
    loss_mask: Tensor
    segments: Tensor
    """Which packed sequence each token belongs to, -1 for padding."""
    frames: Tensor
    """Encoder frames of the sounds, shape `(A, N, De)`."""
    num_frames: Tensor
    ctc_targets: Tensor
    num_ctc_targets: Tensor
    letters: Tensor
    num_letters: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move every tensor."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def pack_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Put sequences into as few rows as first-fit finds, longest first; a row holds at most `row_tokens`.

    A sequence longer than a row gets one of its own.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            rows.append([])
            room.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def collate(samples: Sequence[Sample], row_tokens: int) -> Batch:
    """Pack samples into rows and pad what is left."""
    rows = pack_rows([len(sample.tokens) for sample in samples], row_tokens)
    width = max(sum(len(samples[i].tokens) for i in row) for row in rows)
    shape = (len(rows), width)
    tokens = torch.zeros(shape, dtype=torch.long)
    loss_mask, segments = torch.zeros(shape, dtype=torch.bool), torch.full(shape, -1)
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members):
            span = slice(start, start := start + len(samples[index].tokens))
            tokens[row, span] = torch.tensor(samples[index].tokens)
            loss_mask[row, span] = torch.tensor(samples[index].loss_mask)
            segments[row, span] = segment
    ordered = [samples[index] for members in rows for index in members]
    targets = [torch.tensor(sample.ctc_targets, dtype=torch.long) for sample in ordered]
    letters = [torch.tensor(sample.letters, dtype=torch.long) for sample in ordered]
    return Batch(
        tokens, loss_mask, segments,
        torch.nn.utils.rnn.pad_sequence([sample.frames.float() for sample in ordered], batch_first=True),
        torch.tensor([len(sample.frames) for sample in ordered]),
        torch.cat(targets), torch.tensor([len(target) for target in targets]),
        torch.cat(letters), torch.tensor([len(spelt) for spelt in letters]),
    )  # fmt: skip


@dataclass(frozen=True)
class Mixture:
    """Weighted clips, shuffled and batched anew each epoch."""

    durations_s: np.ndarray
    """Duration of every clip, shape `(clips,)`."""
    repeats: np.ndarray
    """Times that each clip is seen in one epoch."""
    batch_s: float
    """Seconds of sound in one batch."""
    seed: int

    def epoch(self, number: int) -> list[list[int]]:
        """Cut one epoch into batches of clip indices, similar lengths together, in random order."""
        rng = np.random.default_rng([self.seed, number])
        whole = self.repeats.astype(int)
        times = whole + (rng.random(len(whole)) < self.repeats - whole)
        clips = rng.permutation(np.repeat(np.arange(len(times)), times))
        # Lengths are jittered before sorting, so that a clip meets different neighbours each epoch.
        order = clips[np.argsort(self.durations_s[clips] * rng.uniform(0.85, 1.15, len(clips)), kind="stable")]
        batches: list[list[int]] = [[]]
        total_s = 0.0
        for clip in order.tolist():
            if batches[-1] and total_s + self.durations_s[clip] > self.batch_s:
                batches.append([])
                total_s = 0.0
            batches[-1].append(clip)
            total_s += self.durations_s[clip]
        return [batches[i] for i in rng.permutation(len(batches)) if batches[i]]

    def locate(self, index: int, epoch_of: Callable[[int], list[list[int]]]) -> list[int]:
        """Find the clips of the batch numbered `index`, counting through the epochs."""
        number = 0
        while index >= len(batches := epoch_of(number)):
            index -= len(batches)
            number += 1
        return batches[index]


def batch_finder(mixture: Mixture) -> Callable[[int, int, int, int, int], list[int]]:
    """Return `(step, micro, num_micro, rank, world_size)` -> clip indices, remembering the epochs it has drawn."""
    epoch_of = lru_cache(maxsize=64)(mixture.epoch)

    def find(step: int, micro: int, num_micro: int, rank: int, world_size: int) -> list[int]:
        return mixture.locate((step * num_micro + micro) * world_size + rank, epoch_of)

    return find
