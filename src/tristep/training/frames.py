"""Frames of the frozen encoder, computed once and kept on disk.

The encoder never learns, so its output is part of the data. Each corpus becomes one file of float16 frames and an
index; a killed run resumes where it stopped. Noise is mixed in here, before the encoder, seeded by the clip.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import soxr
import torch
from lhotse import MonoCut
from rich.progress import track
from torch import Tensor, nn

from tristep.audio import LISTEN_HZ, coloured_noise, padded_mel, read_audio
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.training.ahead import ahead


def weights_digest(model: nn.Module) -> str:
    """Name a frozen model by its weights, so that what it heard is never mistaken for another's."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def add_noise(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise of random colour at a signal-to-noise ratio between 5 and 30 dB."""
    ratio_db = rng.uniform(5, 30)
    noise = coloured_noise(len(waveform), float(rng.uniform(0, 2)), rng)
    level = float(waveform.std()) * 10 ** (-ratio_db / 20)
    return np.asarray(waveform + level * noise, np.float32)


def cut_waveform(cut: MonoCut, speed: float, noisy_share: float) -> Tensor:
    """Read a clip at 16 kHz, `(S,)`, with random gain, and noise on a share of the clips, seeded by the clip's id."""
    waveform = read_audio(cut.recording.sources[0].source).numpy()
    start = round(cut.start * LISTEN_HZ)
    waveform = waveform[start : start + round(cut.duration * LISTEN_HZ)]
    if speed != 1:
        waveform = soxr.resample(waveform, LISTEN_HZ * speed, LISTEN_HZ)
    if noisy_share > 0:
        rng = np.random.default_rng(zlib.crc32(f"{cut.id} {speed}".encode()))
        waveform = waveform * 10 ** (rng.uniform(-12, 3) / 20)
        if rng.random() < noisy_share:
            waveform = add_noise(waveform, rng)
    return torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))


class FrameStore:
    """Encoder frames of one corpus on disk, by clip id."""

    def __init__(self, folder: Path, dim: int) -> None:
        self.folder, self.dim = folder, dim
        folder.mkdir(parents=True, exist_ok=True)
        self.spans: dict[str, tuple[int, int]] = self._whole_spans()

    @property
    def _index(self) -> Path:
        return self.folder / "index.jsonl"

    @property
    def _data(self) -> Path:
        return self.folder / "frames.f16"

    def _whole_spans(self) -> dict[str, tuple[int, int]]:
        """Read the index up to the first line that is cut off, or whose frames are not all there."""
        spans: dict[str, tuple[int, int]] = {}
        num_stored = self._data.stat().st_size // (2 * self.dim) if self._data.exists() else 0
        for line in self._index.read_text().splitlines(keepends=True) if self._index.exists() else []:
            if not line.endswith("\n") or sum(json.loads(line)[1:]) > num_stored:
                break
            name, start, num = json.loads(line)
            spans[name] = (start, num)
        return spans

    def __getitem__(self, name: str) -> Tensor:
        start, num = self.spans[name]
        frames = np.memmap(self._data, np.float16, "r", start * self.dim * 2, (num, self.dim))
        return torch.from_numpy(np.array(frames))

    @torch.no_grad()
    def fill(
        self, cuts: Iterable[MonoCut], speed: float, encoder: AudioEncoder, noisy_share: float, batch_size: int = 8
    ) -> None:
        """Encode the clips that are not there yet; similar lengths share a batch."""
        by_id = {cut.id: cut for cut in cuts if cut.id not in self.spans}
        missing = sorted(by_id.values(), key=lambda cut: cut.duration)
        if not missing:
            return
        num_frames = sum(num for _, num in self.spans.values())
        with self._data.open("ab") as data, self._index.open("a") as index:
            # What a killed run left in only one of the two files goes.
            data.truncate(num_frames * self.dim * 2)
            index.truncate(sum(len(index_line(name, *span)) for name, span in self.spans.items()))
            batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
            num_threads = torch.get_num_threads()
            heard = partial(mels_of, speed=speed, noisy_share=noisy_share, num_mels=encoder.config.num_mels)
            mels = ahead(heard, batches, num_threads, 2 * num_threads)
            for batch in track(batches, description=f"encoding {self.folder.name}"):
                for cut, frames in zip(batch, encode_mels(next(mels), encoder), strict=True):
                    data.write(frames.half().numpy().tobytes())
                    data.flush()
                    index.write(index_line(cut.id, num_frames, len(frames)))
                    self.spans[cut.id] = (num_frames, len(frames))
                    num_frames += len(frames)
                index.flush()


def index_line(name: str, start: int, num_frames: int) -> str:
    """Write where the frames of a clip lie, in ASCII."""
    return json.dumps([name, start, num_frames]) + "\n"


def encode_batch(cuts: list[MonoCut], speed: float, encoder: AudioEncoder, noisy_share: float) -> list[Tensor]:
    """Encode clips of similar length together; each comes back as `(N, De)` on the CPU."""
    return encode_mels(mels_of(cuts, speed, noisy_share, encoder.config.num_mels), encoder)


def mels_of(cuts: list[MonoCut], speed: float, noisy_share: float, num_mels: int) -> list[Tensor]:
    """Read clips as the encoder wants to hear them: log-mels `(F, M)`."""
    return [padded_mel(cut_waveform(cut, speed, noisy_share), num_mels).T for cut in cuts]


def encode_mels(mels: list[Tensor], encoder: AudioEncoder) -> list[Tensor]:
    """Encode log-mels `(F, M)` together; each comes back as `(N, De)` on the CPU."""
    device = encoder.positions.device
    num_mel_frames = torch.tensor([len(mel) for mel in mels], device=device)
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2).to(device)
    with torch.autocast(device.type, torch.bfloat16):  # a relative error of 1 %, in half the time
        frames, num_frames = encoder(padded, num_mel_frames)
    return [frames[row, :num].float().cpu() for row, num in enumerate(num_frames.tolist())]
