"""Prosody: how a clip is said, measured and put into words that compare it with the speaker's other clips.

The features are the report's (section 5.2): F0, speech rate, pauses, spectral centroid, level, MFCC variance, and
harmonics-to-noise ratio. Its bins are not public: ours cut each feature at fixed quantiles of the speaker's own clips,
or of everybody's where a speaker has too few, because a low voice's high pitch is a high voice's low one. All
measures are Praat's (`pip install praat-parselmouth`, GPL-3, used to make data only).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ, read_audio
from tristep.text import speakable, spoken_words, without_cues

BINS: dict[str, tuple[str, ...]] = {
    "pitch_hz": ("very low", "low", "medium", "high", "very high"),
    "pitch_spread": ("flat", "even", "natural", "lively", "very lively"),
    "letters_per_s": ("very slow", "slow", "moderate", "fast", "very fast"),
    "pause_share": ("hardly any pauses", "few pauses", "some pauses", "many pauses", "a lot of pauses"),
    "longest_pause_s": ("very short pauses", "short pauses", "medium pauses", "long pauses", "very long pauses"),
    "centroid_hz": ("very dark", "dark", "balanced", "bright", "very bright"),
    "level_db": ("very quiet", "quiet", "normal", "loud", "very loud"),
    "mfcc_variance": ("very uniform", "uniform", "usual", "varied", "very varied"),
    "hnr_db": ("very breathy", "breathy", "usual", "clear", "very clear"),
}
"""Names of each feature's bins, from the least to the most."""
QUANTILES = (0.1, 0.3, 0.7, 0.9)
"""Where the bins are cut."""
MIN_CLIPS = 20
"""Speakers with fewer clips are compared with everybody."""
EVERYBODY = "*"
MIN_DURATION_S = 0.3
"""Shorter clips have no prosody to speak of."""
PITCH_RANGE_HZ = (65.0, 500.0)
MIN_HNR_DB = 3.0
"""Below it nobody voices: the pitch that is found in a whisper is chance."""
SILENCE_DB = 30.0
"""A frame is silent if it is so far below the clip's loud frames."""
MIN_PAUSE_S = 0.15
"""Shorter silences are closures of stops."""


@dataclass(frozen=True)
class Prosody:
    """What is measured of a clip; a feature that the clip does not have (pitch of a whisper) is nan."""

    pitch_hz: float
    """Median F0 of the voiced frames."""
    pitch_spread: float
    """Standard deviation of F0, semitones."""
    letters_per_s: float
    """Letters of the spoken words in a second, pauses not counted: a speech rate that needs no syllables."""
    pause_share: float
    """Share of the time between the first and the last sound that is pauses."""
    longest_pause_s: float
    centroid_hz: float
    """Centre of gravity of the spectrum, power-weighted."""
    level_db: float
    """RMS level without pauses, dB below full scale."""
    mfcc_variance: float
    """Variance of the first 12 MFCCs in time, their mean: how much the articulation moves."""
    hnr_db: float
    """Harmonics-to-noise ratio of the voiced frames."""


def measure(waveform: Tensor, sample_rate: int, text: str = "") -> Prosody:
    """Measure the prosody of a clip.

    Args:
        waveform: Samples in [-1, 1], shape `(S,)`.
        sample_rate: Hz.
        text: What is said; without it there is no speech rate. Numbers are read aloud first.

    Raises:
        ValueError: If the clip is too short to have any prosody, or silent.
    """
    import parselmouth

    duration_s = len(waveform) / sample_rate
    if duration_s < MIN_DURATION_S or not bool(waveform.any()):
        raise ValueError(f"a clip of {duration_s:.2f} s, or silence: expected at least {MIN_DURATION_S} s of speech")
    sound = parselmouth.Sound(waveform.double().numpy(), sampling_frequency=sample_rate)
    lowest, highest = PITCH_RANGE_HZ
    pitch = sound.to_pitch_ac(time_step=0.01, pitch_floor=lowest, pitch_ceiling=highest).selected_array["frequency"]
    voiced = pitch[pitch > 0]
    hnr = sound.to_harmonicity_cc(time_step=0.01, minimum_pitch=lowest).values
    hnr_db = _or_nan(np.mean, hnr[hnr > -200])
    voiced = voiced[: len(voiced) if hnr_db >= MIN_HNR_DB else 0]
    mfcc = sound.to_mfcc(number_of_coefficients=12).to_array()[1:]
    spans = pauses(waveform, sample_rate)
    loud = _without(waveform, sample_rate, spans)
    speaking_s = len(loud) / sample_rate
    spoken_s = speaking_s + sum(end - start for start, end in spans)
    return Prosody(
        pitch_hz=_or_nan(np.median, voiced),
        pitch_spread=_or_nan(np.std, 12 * np.log2(voiced / lowest)),
        letters_per_s=num_letters(text) / speaking_s if text else float("nan"),
        pause_share=1 - speaking_s / spoken_s,
        longest_pause_s=max((end - start for start, end in spans), default=0.0),
        centroid_hz=sound.to_spectrum().get_centre_of_gravity(2.0),
        level_db=10 * float(loud.double().square().mean().clamp(min=1e-12).log10()),
        mfcc_variance=float(np.var(mfcc, axis=1).mean()),
        hnr_db=hnr_db,
    )


def num_letters(text: str) -> int:
    """Count the letters of what is spoken."""
    words = spoken_words(without_cues(speakable(text)))
    return sum(map(len, words)) if words is not None else sum(map(str.isalpha, without_cues(text)))


def pauses(waveform: Tensor, sample_rate: int) -> list[tuple[float, float]]:
    """Find the silences between the first and the last sound, as `(start_s, end_s)`."""
    silent, hop = _silent_frames(waveform, sample_rate)
    sounding = np.flatnonzero(~silent)
    starts, ends = sounding[:-1] + 1, sounding[1:]  # a gap is empty where two sounding frames are neighbours
    return [
        (float(start * hop / sample_rate), float(end * hop / sample_rate))
        for start, end in zip(starts, ends, strict=True)
        if (end - start) * hop >= MIN_PAUSE_S * sample_rate
    ]


def _silent_frames(waveform: Tensor, sample_rate: int) -> tuple[NDArray[np.bool_], int]:
    """Say of each 10 ms whether its 20 ms are silent; and the samples from one to the next."""
    hop = sample_rate // 100
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop).square().mean(dim=1)  # (F,)
    power = torch.cat([frames[:1], (frames[1:] + frames[:-1]) / 2])
    level = 10 * power.clamp(min=1e-10).log10().numpy()
    return level < np.percentile(level, 95) - SILENCE_DB, hop


def _without(waveform: Tensor, sample_rate: int, spans: list[tuple[float, float]]) -> Tensor:
    """Cut out the pauses, and the silence before the first and after the last sound."""
    silent, hop = _silent_frames(waveform, sample_rate)
    sounding = np.flatnonzero(~silent)
    edges = [int(sounding[0]) * hop, *(round(t * sample_rate) for span in spans for t in span)]
    edges.append((int(sounding[-1]) + 1) * hop)
    return torch.cat([waveform[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)])


def _or_nan(statistic: Any, values: NDArray[Any]) -> float:
    return float(statistic(values)) if len(values) else float("nan")


@dataclass(frozen=True)
class Bins:
    """Where each speaker's features are cut into bins."""

    edges: Mapping[str, Mapping[str, tuple[float, ...]]]
    """Per speaker, `EVERYBODY` included, and feature: four rising values."""

    def names(self, prosody: Prosody, speaker: str) -> dict[str, str]:
        """Name the bin of each feature that the clip has, compared with the speaker's own clips."""
        edges = self.edges.get(speaker, self.edges[EVERYBODY])
        return {
            feature: BINS[feature][int(np.searchsorted(edges[feature], value))]
            for feature, value in asdict(prosody).items()
            if feature in edges and not np.isnan(value)
        }


def fit_bins(measured: Iterable[tuple[str, Prosody]]) -> Bins:
    """Cut every feature at `QUANTILES` of each speaker's clips, and of all clips.

    Args:
        measured: The speaker of each clip and what was measured of it.

    Raises:
        ValueError: If there are no clips.
    """
    clips: dict[str, list[Prosody]] = {EVERYBODY: []}
    for speaker, prosody in measured:
        clips[EVERYBODY].append(prosody)
        clips.setdefault(speaker, []).append(prosody)
    if not clips[EVERYBODY]:
        raise ValueError("no clips were measured: bins are quantiles of at least one")
    kept = {speaker: rows for speaker, rows in clips.items() if speaker == EVERYBODY or len(rows) >= MIN_CLIPS}
    return Bins({speaker: _edges(rows) for speaker, rows in kept.items()})


def _edges(rows: list[Prosody]) -> dict[str, tuple[float, ...]]:
    columns = {feature: np.array([getattr(row, feature) for row in rows]) for feature in BINS}
    known = {feature: column[~np.isnan(column)] for feature, column in columns.items()}
    return {
        feature: tuple(round(float(edge), 4) for edge in np.quantile(column, QUANTILES))
        for feature, column in known.items()
        if len(column)
    }


def write_bins(bins: Bins, path: Path) -> None:
    """Write bins as JSON: speaker, feature, edges."""
    path.write_text(json.dumps(bins.edges, indent=1), encoding="utf-8")


def read_bins(path: Path) -> Bins:
    """Read what `write_bins` wrote.

    Raises:
        ValueError: If the file has no edges for everybody, or not four for a feature.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    edges = {name: {key: tuple(values) for key, values in features.items()} for name, features in table.items()}
    complete = all(len(values) == len(QUANTILES) for features in edges.values() for values in features.values())
    if EVERYBODY not in edges or not complete:
        raise ValueError(
            f"{path.name} needs {len(QUANTILES)} edges a feature, and a speaker {EVERYBODY!r}: write it with "
            "python -m tristep.corpus.prosody"
        )
    return Bins(edges)


def measure_rows(rows: Iterable[dict[str, Any]], folder: Path) -> Iterator[tuple[dict[str, Any], Prosody]]:
    """Measure the clips of a manifest; clips too short or silent are passed over."""
    for row in rows:
        waveform = read_audio(folder / row["audio"], LISTEN_HZ)
        if len(waveform) >= MIN_DURATION_S * LISTEN_HZ and bool(waveform.any()):
            yield row, measure(waveform, LISTEN_HZ, row["text"])


def main() -> None:
    """Measure a manifest's clips, fit bins to them (or take those of another corpus), and name each clip's bins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--out", type=Path, required=True, help="manifest.jsonl with `prosody` and `prosody_bins`")
    parser.add_argument("--bins", type=Path, required=True, help="JSON of bin edges: read if it exists, else written")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.manifest.read_text(encoding="utf-8").splitlines()]
    folder = options.manifest.parent.resolve()
    measured = list(measure_rows(track(rows, description="measuring"), folder))
    if options.bins.exists():
        bins = read_bins(options.bins)
    else:
        bins = fit_bins((row["speaker"], prosody) for row, prosody in measured)
        write_bins(bins, options.bins)
    with options.out.open("w", encoding="utf-8") as out:
        for row, prosody in measured:
            features = {name: round(value, 3) for name, value in asdict(prosody).items() if not np.isnan(value)}
            named = bins.names(prosody, row["speaker"])
            labelled = {**row, "audio": str(folder / row["audio"]), "prosody": features, "prosody_bins": named}
            out.write(json.dumps(labelled, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
