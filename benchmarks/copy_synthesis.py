r"""Copy synthesis: what a trip through the codec costs, for clips that it has not seen.

    python benchmarks/copy_synthesis.py librispeech_mini_en/manifest.jsonl:dev+test \
        --speaker weights/nano/codec/speaker.safetensors

Each clip is compared with four copies: the codec's (codes and voice of the clip itself), the codec's in few flow steps,
the vocoder's (from the clip's own mel) and Griffin-Lim's (from the same mel, 60 rounds). Judges: faster-whisper, CAM++,
DistillMOS, PESQ and STOI. Needs `pip install faster-whisper distillmos pesq pystoi`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tristep.audio import SPEAK_HZ, SPEECH_HOP, SPEECH_MELS, SPEECH_N_FFT, SPEECH_TOP_HZ, mel_filters, speech_mel
from tristep.backbone.checkpoints import find_weights, load_backbone
from tristep.codec.codec import Codec, fill
from tristep.codec.speaker import SpeakerEncoder, similarity
from tristep.codec.vocoder import Vocoder
from tristep.codec.voice import MAX_CLIP_S, MIN_CLIP_S, voice_from_clip
from tristep.config import CodecConfig, load_toml
from tristep.evaluation import speech
from tristep.evaluation.suites import Clip, duration_s, read_clip, read_suite
from tristep.text import bootstrap_interval, normalise, word_errors

NUM_ROUNDS = 60
FEW_STEPS = 4
Copy = Callable[[Tensor, str], Tensor]


def griffin_lim(waveform: Tensor, text: str) -> Tensor:
    """Give the mel of a waveform `(S,)` phases that agree with one another (Griffin and Lim 1984)."""
    filters = mel_filters(SPEECH_MELS, SPEAK_HZ, SPEECH_N_FFT, SPEECH_TOP_HZ)
    power = torch.linalg.pinv(filters) @ speech_mel(waveform[None])[0].exp()
    magnitude, window = power.clamp(min=0).sqrt(), torch.hann_window(SPEECH_N_FFT)
    phases = torch.exp(2j * torch.pi * torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)))
    length = (magnitude.shape[1] - 1) * SPEECH_HOP
    for _ in range(NUM_ROUNDS):
        guess = torch.istft(magnitude * phases, SPEECH_N_FFT, SPEECH_HOP, window=window, length=length)
        phases = torch.stft(guess, SPEECH_N_FFT, SPEECH_HOP, window=window, return_complex=True)
        phases = phases / phases.abs().clamp(min=1e-8)
    return torch.istft(magnitude * phases, SPEECH_N_FFT, SPEECH_HOP, window=window, length=length)


def copies(folder: Path, speaker: SpeakerEncoder) -> dict[str, Copy]:
    """Name the ways of copying with a checkpoint: without the codec where it has no more than a vocoder."""
    vocoder = Vocoder(load_toml(folder / "codec" / "codec.toml", CodecConfig).vocoder).eval()
    fill(vocoder, folder / "codec" / "vocoder.safetensors")
    ways: dict[str, Copy] = {
        "original": lambda waveform, text: waveform,
        "vocoder": lambda waveform, text: vocoder(speech_mel(waveform[None]))[0],
        "Griffin-Lim": griffin_lim,
    }
    if (folder / "codec" / "tokenizer.safetensors").exists():
        ways |= codec_copies(Codec.load(folder / "codec", load_backbone(folder)[0].encode_audio), speaker)
    return ways


def codec_copies(codec: Codec, speaker: SpeakerEncoder) -> dict[str, Copy]:
    """Name the ways of copying by codes."""

    def through_codec(num_steps: int | None) -> Copy:
        def copy(waveform: Tensor, text: str) -> Tensor:
            voice = voice_from_clip(
                waveform[: round(MAX_CLIP_S * SPEAK_HZ)], text, name="copy", speaker=speaker, encode=codec.encode,
                pitch=lambda part: codec.vocoder.voiced_f0(speech_mel(part[None]))[0],
            )  # fmt: skip
            return codec.decode(codec.encode(waveform), voice, num_steps=num_steps)

        return copy

    return {"codec": through_codec(None), f"codec, {FEW_STEPS} steps": through_codec(FEW_STEPS)}


def judged(copy: Tensor, waveform: Tensor, text: str, judges: speech.Judges) -> dict[str, float]:
    """Judge one copy of a waveform `(S,)`."""
    assert judges.embed is not None
    assert judges.rate is not None
    errors = word_errors(normalise(text, "en"), normalise(judges.recognise(copy), "en"))
    length = min(len(copy), len(waveform))
    return {
        "errors": errors.num_errors, "words": errors.num_units, "MOS": judges.rate(copy),
        "similarity": similarity(judges.embed(copy), judges.embed(waveform)),
        "PESQ-wb": speech.pesq_wb(waveform[:length], copy[:length]),
        "STOI": speech.stoi(waveform[:length], copy[:length]),
    }  # fmt: skip


def row(name: str, results: list[dict[str, float]]) -> list[str]:
    """Sum up one way of copying."""
    errors, words = (np.array([result[key] for result in results]) for key in ("errors", "words"))
    low, high = bootstrap_interval(errors, words)
    means = (np.mean([result[key] for result in results]) for key in ("similarity", "MOS", "PESQ-wb", "STOI"))
    return [
        name,
        f"{errors.sum() / words.sum():.1%} ({low:.1%} - {high:.1%})",
        *(f"{mean:.3f}" for mean in means),
    ]


def clips_of(manifest: str, limit: int | None) -> list[Clip]:
    """Read the clips of `PATH[:SPLIT]` that are long enough to make a voice of."""
    path, _, split = manifest.partition(":")
    clips = read_suite(Path(path), None, split or "test")
    return [clip for clip in clips if duration_s(clip) >= MIN_CLIP_S][:limit]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", help="clips to copy: PATH[:SPLIT]")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--speaker", required=True, help="weights of CAM++")
    parser.add_argument("--recogniser", default="base", help="faster-whisper's model: a name or a folder")
    parser.add_argument("--distillmos", help="folder of that package, if not installed")
    parser.add_argument("--limit", type=int, help="copy only so many clips")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = copies(find_weights(options.model), SpeakerEncoder.load(options.speaker))
    judges = speech.load_judges(options.recogniser, options.speaker, options.distillmos, threads=options.threads)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    clips = clips_of(options.manifest, options.limit)
    for clip in track(clips, description="copying", console=Console(stderr=True)):
        waveform = read_clip(clip, SPEAK_HZ)
        for name, copy in ways.items():
            results[name].append(judged(copy(waveform, clip.text), waveform, clip.text, judges))
    table = Table("copy", "word errors", "similarity", "DistillMOS", "PESQ-wb", "STOI")
    for name, measured in results.items():
        table.add_row(*row(name, measured))
    Console(width=100).print(table)
    print(f"{options.manifest}, {len(clips)} clips; judges: {', '.join(judges.names)}; {options.threads} threads")


if __name__ == "__main__":
    main()
