"""Phones: when each sound of a clip is said, to 20 ms.

    python -m tristep.corpus.phones kathleen_en/manifest.jsonl --taught-by piper/manifest.jsonl --out phones

A teacher voice knows how long it holds each phone (`tristep.corpus.synthesize --phone-times`). A few local layers on
the frozen audio encoder learn that in a minute or two, and hear phones in any other voice well enough to place those
that a transcript must have; they learn again from what they have placed, twice, the teacher's clips among it: what it
means to say and what is heard differ by a frame or two. Every manifest comes back with a `phones` field: symbols of
`tristep.phones.PHONES`, and when each ends; and the layers beside them, for they also teach the codec (`codec.ear`).

The phones of a text come from espeak-ng: `pip install phonemizer-fork espeakng-loader`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ, raw_log_mel, read_audio
from tristep.backbone.audio_encoder import AudioEncoder
from tristep.backbone.checkpoints import load_encoder
from tristep.codec.ear import PhoneReader
from tristep.codec.tokenizer import encode_frames
from tristep.phones import FRAME_S, PHONES, SILENCE, UNLABELLED, frame_phones

MIN_LOGPROB = -1.2
"""Mean log-probability per frame under which a clip and its transcript don't belong together."""
CROP_FRAMES, CROPS, PEAK_LR = 150, 24, 2e-3
SAME = {"ᵻ": "ɪ", "ɐ": "ə", "r": "ɹ", "ʔ": "t"}  # noqa: RUF001
"""Symbols of espeak that are heard as others."""
STRESS, LENGTH = "ˈˌ", "ː\u0329"  # noqa: RUF001
"""Marks of espeak that are no sounds of their own."""
MIN_SILENCE_S = 0.07
READER = "phone_reader.safetensors"
"""What has learnt to hear phones, which also teaches the codec's flow decoder."""


@dataclass(frozen=True)
class Clip:
    """One clip: a row of a manifest and what the frozen encoder hears in it."""

    row: dict[str, Any]
    frames: Tensor
    """Shape `(N, De)`, 50 Hz, float16."""
    labels: Tensor
    """Indices into `PHONES`, or `UNLABELLED`, shape `(N,)`."""


def symbols_of(ipa: str) -> str:
    """Reduce the IPA of one word to symbols of `PHONES`."""
    symbols = (SAME.get(symbol, symbol) for symbol in ipa if symbol not in STRESS + LENGTH)
    return "".join(symbol for symbol in symbols if symbol in PHONES and symbol != SILENCE)


def states_of(ipa: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Turn the IPA of a text into the phones that follow each other, with a silence that may be left out between words.

    Returns:
        Indices into `PHONES`, shape `(S,)`, and which of them may be left out.
    """
    spoken = SILENCE + "".join(symbols + SILENCE for word in ipa.split() if (symbols := symbols_of(word)))
    return np.array([PHONES.index(symbol) for symbol in spoken]), np.array([symbol == SILENCE for symbol in spoken])


def place_phones(
    logprobs: NDArray[np.float32], states: NDArray[np.int64], optional: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], float]:
    """Find the most probable way to say states one after the other, each for at least one frame (Viterbi).

    Args:
        logprobs: Log-probabilities of the phones, shape `(N, P)`.
        states: Indices into `PHONES`, shape `(S,)`.
        optional: States that may be left out, no two in a row, shape `(S,)`.

    Returns:
        The phone of every frame, shape `(N,)`, and the mean log-probability per frame; -inf if they do not fit.
    """
    num_frames, num_states = len(logprobs), len(states)
    emitted = logprobs[:, states]
    may_skip = np.zeros(num_states, bool)
    may_skip[2:] = optional[1:-1]
    best = np.full(num_states, -np.inf)
    best[: 1 + int(optional[0])] = emitted[0, : 1 + int(optional[0])]
    steps = np.zeros((num_frames, num_states), np.int8)
    for frame in range(1, num_frames):
        one = np.concatenate([[-np.inf], best[:-1]])
        two = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], best[:-2]])[:num_states], -np.inf)
        ways = np.stack([best, one, two])
        steps[frame] = ways.argmax(axis=0)
        best = ways.max(axis=0) + emitted[frame]
    ends_early = optional[-1] and num_states > 1 and best[-2] > best[-1]
    state = num_states - 1 - int(ends_early)
    score = float(best[state]) / num_frames
    path = np.zeros(num_frames, np.int64)
    for frame in range(num_frames - 1, -1, -1):
        path[frame] = states[state]
        state -= int(steps[frame, state])
    return path, score


def spans_of(labels: Sequence[int]) -> list[tuple[str, float]]:
    """Join equal frames to phones, each with its end in seconds."""
    ends = [index + 1 for index in range(len(labels)) if index + 1 == len(labels) or labels[index] != labels[index + 1]]
    return [(PHONES[labels[end - 1]], round(end * FRAME_S, 2)) for end in ends]


class Aligner:
    """Hears phones, and places those of a transcript."""

    def __init__(self, encoder: AudioEncoder, seed: int = 0) -> None:
        self.encoder, self.seed = encoder.eval(), seed
        self.reader = self._fresh()

    def _fresh(self) -> PhoneReader:
        torch.manual_seed(self.seed)
        return PhoneReader(self.encoder.config.dim).eval()

    @torch.inference_mode()
    def hear(self, row: dict[str, Any]) -> Clip:
        """Read and encode the clip of a manifest's row."""
        mel = raw_log_mel(read_audio(row["audio"], LISTEN_HZ), self.encoder.config.num_mels)
        frames = encode_frames(mel[:, : mel.shape[1] // 2 * 2], self.encoder)
        return Clip(row, frames.half(), frame_phones(row.get("phones", []), len(frames)))

    def learn(self, clips: Sequence[Clip], num_steps: int) -> None:
        """Learn anew from labelled clips."""
        self.reader = self._fresh().train()
        optimizer = torch.optim.AdamW(self.reader.parameters(), PEAK_LR, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, num_steps, pct_start=0.08)
        rng = np.random.default_rng(self.seed)
        shares = np.array([len(clip.labels) for clip in clips])
        for _ in track(range(num_steps), description="learning phones"):
            crops = [crop(clips[index], rng) for index in rng.choice(len(clips), CROPS, p=shares / shares.sum())]
            frames, labels = (torch.stack(tensors) for tensors in zip(*crops, strict=True))
            logits = self.reader(frames).transpose(1, 2)
            loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.reader.eval()

    @torch.inference_mode()
    def place(self, clip: Clip, ipa: str) -> tuple[Clip, float]:
        """Place the phones of a clip's transcript; return the labelled clip and how well they fit, per frame."""
        states, optional = states_of(ipa)
        logprobs = self.reader(clip.frames.float()[None])[0].log_softmax(dim=-1).numpy()
        path, score = place_phones(logprobs, states, optional)
        return Clip(clip.row, clip.frames, torch.from_numpy(path)), score

    def place_all(self, clips: Iterable[Clip], ipas: Iterable[str]) -> list[Clip]:
        """Place the phones of many clips; one that does not fit its transcript comes back without labels."""
        placed = (self.place(clip, ipa) for clip, ipa in zip(clips, ipas, strict=True))
        return [clip if score >= MIN_LOGPROB else unlabelled(clip) for clip, score in placed]


def unlabelled(clip: Clip) -> Clip:
    """Forget a clip's labels."""
    return Clip(clip.row, clip.frames, torch.full_like(clip.labels, UNLABELLED))


def crop(clip: Clip, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a stretch of a clip: frames `(CROP_FRAMES, De)` and labels, padded where it is shorter."""
    start = int(rng.integers(max(1, len(clip.labels) - CROP_FRAMES + 1)))
    frames = clip.frames[start : start + CROP_FRAMES].float()
    labels = clip.labels[start : start + CROP_FRAMES]
    missing = CROP_FRAMES - len(labels)
    return F.pad(frames, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=UNLABELLED)


def align(
    aligner: Aligner, timed: Sequence[Clip], clips: Sequence[Clip], ipas: Sequence[str], steps: int
) -> list[Clip]:
    """Teach an aligner by clips with known times, then let it place the phones of all clips, and learn from them.

    What is held out is placed and never learnt from.
    """
    aligner.learn(timed, steps)
    for _ in range(2):
        placed = aligner.place_all(clips, ipas)
        aligner.learn([clip for clip in placed if is_taught(clip) and (clip.labels != UNLABELLED).any()], steps)
    return aligner.place_all(clips, ipas)


def is_taught(clip: Clip) -> bool:
    """Tell whether a clip may be learnt from: it is not held out."""
    return bool(clip.row.get("split", "train") == "train")


def timed_phones(symbols: Sequence[str], ends_s: Sequence[float]) -> list[tuple[str, float]]:
    """Reduce what a teacher says one symbol of IPA after the other to phones, each with its end in seconds.

    Marks of stress belong to what follows, marks of length to what was before, and a space too short to be a pause to
    its two neighbours.
    """
    phones: list[tuple[str, float]] = []
    for symbol, end_s in zip(symbols, ends_s, strict=True):
        if symbol in set(LENGTH) and phones:
            phones[-1] = (phones[-1][0], end_s)
        elif symbol not in set(STRESS):
            phones.append((symbols_of(symbol) or SILENCE, end_s))
    return without_short_silences(phones)


def without_short_silences(phones: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Give silences under `MIN_SILENCE_S` to their neighbours, and join those that follow each other."""
    kept: list[tuple[str, float]] = []
    start_s = 0.0
    for symbol, end_s in phones:
        if symbol == SILENCE and kept and kept[-1][0] == SILENCE:
            kept[-1] = (SILENCE, end_s)
        elif symbol == SILENCE and kept and end_s - start_s < MIN_SILENCE_S:
            kept[-1] = (kept[-1][0], (start_s + end_s) / 2)
        else:
            kept.append((symbol, end_s))
        start_s = end_s
    return kept


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a manifest; its audio becomes absolute."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**row, "audio": str((path.parent / row["audio"]).resolve())} for row in rows]


def main() -> None:
    """Write manifests again with the phones of every clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=existing, nargs="+", help="clips with transcripts, each DIR/manifest.jsonl")
    parser.add_argument("--taught-by", type=existing, required=True, help="one more, whose rows have `phones` already")
    parser.add_argument("--encoder", default="nano", help="the weights whose frozen encoder hears")
    parser.add_argument("--max-taught", type=int, default=900, help="clips to learn from at first")
    parser.add_argument("--steps", type=int, default=400, help="steps of each of the three rounds of learning")
    parser.add_argument("--out", type=Path, required=True, help="folder for each DIR/manifest.jsonl")
    options = parser.parse_args()
    from tristep.corpus.synthesize import Phonemes

    teacher = options.taught_by.parent.name
    corpora = {path.parent.name: read_rows(path) for path in (options.taught_by, *options.manifests)}
    rows = [row for corpus in corpora.values() for row in corpus]
    phonemes, aligner = Phonemes(), Aligner(load_encoder(options.encoder))
    clips = [aligner.hear(row) for row in track(rows, description="hearing")]
    timed = [clip for clip in clips[: len(corpora[teacher])] if clip.row.get("phones") and is_taught(clip)]
    if not timed:
        parser.error(f"no row of {options.taught_by} has phones: make it by corpus.synthesize --phone-times")
    ipas = [phonemes(row["text"]) for row in rows]
    placed = align(aligner, timed[: options.max_taught], clips, ipas, options.steps)
    spans = {id(clip.row): spans_of(clip.labels.tolist()) for clip in placed if (clip.labels != UNLABELLED).all()}
    for name, corpus in corpora.items():
        (options.out / name).mkdir(parents=True, exist_ok=True)
        with (options.out / name / "manifest.jsonl").open("w", encoding="utf-8") as out:
            for row in corpus:
                out.write(json.dumps({**row, "phones": spans.get(id(row), [])}, ensure_ascii=False) + "\n")
    aligner.reader.save(options.out / READER)
    print(f"{len(spans)} of {len(rows)} clips fit their transcripts, written to {options.out}")


if __name__ == "__main__":
    main()
