"""Speech for the codec: waveforms at 24 kHz, their pitch, and what frozen models say of them, kept on disk.

Everything that does not learn is computed once per corpus. A table holds rows of numbers by clip, appended one
clip after the other; a killed run resumes where it stopped.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from tristep.audio import LISTEN_HZ, SPEAK_HZ, SPEECH_HOP, raw_log_mel, read_audio, speech_mel
from tristep.codec.pitch import pitch
from tristep.codec.tokenizer import MEL_PER_FRAME
from tristep.training.ahead import ahead
from tristep.training.mixture import Clip

BAND_OF_RATE = 0.475
"""Share of a recording's sample rate up to which it holds sound; the rest is its filter's slope."""


class Table:
    """Rows of numbers on disk, `(num_rows, width)` for each clip, by clip id."""

    def __init__(self, folder: Path, width: int, dtype: type[np.generic]) -> None:
        self.folder, self.width, self.dtype = folder, width, np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self.spans: dict[str, tuple[int, int]] = self._whole_spans()
        self._rows: NDArray[Any] | None = None

    @property
    def _index(self) -> Path:
        return self.folder / "index.jsonl"

    @property
    def _data(self) -> Path:
        return self.folder / "rows.bin"

    def _whole_spans(self) -> dict[str, tuple[int, int]]:
        """Read the index up to the first line that is cut off, or whose rows are not all there."""
        spans: dict[str, tuple[int, int]] = {}
        row_bytes = self.width * self.dtype.itemsize
        num_stored = self._data.stat().st_size // row_bytes if self._data.exists() else 0
        for line in self._index.read_text().splitlines(keepends=True) if self._index.exists() else []:
            if not line.endswith("\n") or sum(json.loads(line)[1:]) > num_stored:
                break
            name, start, num = json.loads(line)
            spans[name] = (start, num)
        return spans

    def rows(self, name: str, start: int = 0, num_rows: int | None = None) -> NDArray[Any]:
        """Read rows of a clip, from `start` on: all that follow, or at most `num_rows` of them."""
        first, num = self.spans[name]
        stop = num if num_rows is None else min(num, start + num_rows)
        if self._rows is None:
            self._rows = np.memmap(self._data, self.dtype, "r").reshape(-1, self.width)
        return np.array(self._rows[first + start : first + stop])

    def fill(self, names: Iterable[str], compute: Callable[[str], NDArray[Any]], num_threads: int = 1) -> None:
        """Compute the rows of the clips that are not there yet; a run that fills the same table waits its turn."""
        names = list(dict.fromkeys(names))
        if all(name in self.spans for name in names):
            return
        with self._data.open("ab") as data, self._index.open("a") as index:
            fcntl.flock(index, fcntl.LOCK_EX)
            self.spans, self._rows = self._whole_spans(), None
            num_rows = sum(num for _, num in self.spans.values())
            # What a killed run left in only one of the two files goes.
            data.truncate(num_rows * self.width * self.dtype.itemsize)
            index.truncate(sum(len(_index_line(name, *span)) for name, span in self.spans.items()))
            missing = [name for name in names if name not in self.spans]
            computed = ahead(compute, missing, num_threads, num_threads)
            for name in track(missing, description=f"filling {self.folder.parent.name} {self.folder.name}"):
                rows = np.ascontiguousarray(next(computed), self.dtype).reshape(-1, self.width)
                data.write(rows.tobytes())
                data.flush()
                index.write(_index_line(name, num_rows, len(rows)))
                index.flush()
                self.spans[name] = (num_rows, len(rows))
                num_rows += len(rows)


def _index_line(name: str, start: int, num_rows: int) -> str:
    return json.dumps([name, start, num_rows]) + "\n"


def top_hz(clip: Clip) -> float:
    """Return up to where the recording of a clip holds sound, Hz."""
    return min(SPEAK_HZ / 2, BAND_OF_RATE * float(clip.cut.recording.sampling_rate) * clip.speed)


def clip_waveform(clip: Clip) -> Tensor:
    """Read a clip at 24 kHz, shape `(S,)`, cut to whole frames of the frozen encoder."""
    waveform = read_audio(clip.cut.recording.sources[0].source, SPEAK_HZ).numpy()
    start = round(clip.cut.start * SPEAK_HZ)
    waveform = waveform[start : start + round(clip.cut.duration * SPEAK_HZ)]
    if clip.speed != 1:
        waveform = soxr.resample(waveform, SPEAK_HZ * clip.speed, SPEAK_HZ)
    whole = len(waveform) - len(waveform) % (MEL_PER_FRAME * SPEECH_HOP)
    return torch.from_numpy(np.ascontiguousarray(waveform[:whole], np.float32))


def listening(waveform: Tensor) -> Tensor:
    """Resample a waveform `(S,)` from 24 to 16 kHz: exactly two thirds of the samples."""
    heard = soxr.resample(waveform.numpy(), SPEAK_HZ, LISTEN_HZ)
    return torch.from_numpy(np.asarray(heard, np.float32))


class SpeechStore:
    """Waveforms and pitch of one corpus at one speed, and what frozen models say of its clips."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waveforms = Table(folder / "waveform", SPEECH_HOP, np.int16)
        self.pitches = Table(folder / "f0", 1, np.float32)
        self.tables: dict[str, Table] = {}

    def fill(self, clips: Sequence[Clip]) -> None:
        """Read the clips that are not there yet, and measure their pitch."""
        by_id = {clip.id: clip for clip in clips}
        num_threads = torch.get_num_threads()
        self.waveforms.fill(by_id, lambda name: np.rint(clip_waveform(by_id[name]).numpy() * 32767), num_threads)
        self.pitches.fill(by_id, lambda name: pitch(self.waveform(name)).numpy())

    def fill_table(
        self, kind: str, width: int, clips: Sequence[Clip], compute: Callable[[Tensor], Tensor], num_threads: int = 1
    ) -> None:
        """Compute `(num_rows, width)` of 16 kHz waveforms `(S,)` for the clips that lack them.

        `kind` names the table, and with it the frozen model's weights.
        """
        self.tables[kind] = Table(self.folder / kind, width, np.float32 if kind.startswith("voice") else np.float16)
        names = [clip.id for clip in clips]
        self.tables[kind].fill(names, lambda name: compute(listening(self.waveform(name))).float().numpy(), num_threads)

    def num_frames(self, name: str) -> int:
        """Return the speaking mel frames of a clip."""
        return self.waveforms.spans[name][1]

    def waveform(self, name: str, start: int = 0, num_frames: int | None = None) -> Tensor:
        """Read the waveform `(S,)` of a stretch given in mel frames."""
        rows = self.waveforms.rows(name, start, num_frames)
        return torch.from_numpy(rows.astype(np.float32).reshape(-1) / 32767)

    def f0(self, name: str, start: int = 0, num_frames: int | None = None) -> Tensor:
        """Read the pitch `(F,)` of a stretch given in mel frames: Hz, 0 where unvoiced."""
        return torch.from_numpy(self.pitches.rows(name, start, num_frames)[:, 0])


@dataclass(frozen=True)
class CodecBatch:
    """What the parts of the codec learn from; fields that a part does not need are None."""

    waveform: Tensor
    """24 kHz, shape `(B, S)`."""
    mel: Tensor
    """Speaking mel, shape `(B, 80, F)` with `F = S // 240`."""
    num_mel_frames: Tensor
    """Shape `(B,)`."""
    f0: Tensor
    """Hz, 0 unvoiced, shape `(B, F)`."""
    frames: Tensor | None = None
    """Frozen encoder frames at 50 Hz, shape `(B, N, 512)` with `N = F // 2`."""
    listening_mel: Tensor | None = None
    """Raw log10 mel of the 16 kHz waveform at 100 Hz, shape `(B, 80, 2 * N)`."""
    voice: Tensor | None = None
    """CAM++ embedding of the whole clip, shape `(B, 192)`."""
    reference_mel: Tensor | None = None
    """Another stretch of the same clip or speaker, shape `(B, 80, R)`."""
    prosody: Tensor | None = None
    """Bins of pitch offset and energy offset, shape `(B, 2)`."""
    phones: Tensor | None = None
    """Indices into `PHONES` at 50 Hz, `UNLABELLED` where not known, shape `(B, N)`; only where clips are whole."""
    top_hz: Tensor | None = None
    """Up to where the recording holds sound, shape `(B,)`."""

    def to(self, device: torch.device) -> CodecBatch:
        """Move every tensor."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in present.items()})


class SpeechSource:
    """Clips of several corpora, read by stretches."""

    def __init__(self, clips: Sequence[Clip], folder: Path) -> None:
        self.clips = clips
        self.stores: dict[str, SpeechStore] = {}
        for clip in clips:
            self.stores.setdefault(store_name(clip), SpeechStore(folder / store_name(clip)))
        for name, store in self.stores.items():
            store.fill([clip for clip in clips if store_name(clip) == name])
        self.num_frames = np.array([self.store(clip).num_frames(clip.id) for clip in clips])

    def store(self, clip: Clip) -> SpeechStore:
        """Return the store that holds a clip."""
        return self.stores[store_name(clip)]

    def crop(self, clip: Clip, start: int, num_frames: int) -> tuple[Tensor, Tensor]:
        """Read waveform `(num_frames * 240,)` and pitch `(num_frames,)` from mel frame `start` on, zeros at the end."""
        waveform = self.store(clip).waveform(clip.id, start, num_frames)
        f0 = self.store(clip).f0(clip.id, start, num_frames)
        missing = num_frames - len(f0)
        pad = torch.nn.functional.pad
        return pad(waveform, (0, missing * SPEECH_HOP)), pad(f0, (0, missing))

    def crops(
        self, num_crops: int, num_frames: int, gain_db: tuple[float, float], rng: np.random.Generator
    ) -> CodecBatch:
        """Draw stretches of clips, long clips more often, at random loudness."""
        weights = np.array([clip.corpus.repeat for clip in self.clips]) * self.num_frames
        chosen = rng.choice(len(self.clips), num_crops, p=weights / weights.sum())
        rows, pitches = [], []
        for index in chosen:
            start = int(rng.integers(0, max(1, self.num_frames[index] - num_frames + 1)))
            waveform, f0 = self.crop(self.clips[index], start, num_frames)
            gain = min(10 ** (rng.uniform(*gain_db) / 20), 1 / max(float(waveform.abs().max()), 1e-3))
            rows.append(waveform * gain)
            pitches.append(f0)
        waveform = torch.stack(rows)
        return CodecBatch(
            waveform, speech_mel(waveform),
            torch.from_numpy(np.minimum(self.num_frames[chosen], num_frames)), torch.stack(pitches),
            top_hz=torch.tensor([top_hz(self.clips[index]) for index in chosen]),
        )  # fmt: skip

    def whole(self, clip: Clip) -> CodecBatch:
        """Read one clip from end to end."""
        waveform, f0 = self.store(clip).waveform(clip.id)[None], self.store(clip).f0(clip.id)[None]
        return CodecBatch(
            waveform, speech_mel(waveform), torch.tensor([f0.shape[1]]), f0, top_hz=torch.tensor([top_hz(clip)]),
            listening_mel=raw_log_mel(listening(waveform[0]))[None],
        )  # fmt: skip


def store_name(clip: Clip) -> str:
    """Name the store that holds a clip."""
    corpus = clip.corpus.path.removesuffix("/manifest.jsonl").replace("/", "_")
    return f"{corpus}_{clip.corpus.split}_speed{clip.speed:g}"
