"""Styles imposed on speech: the same voice slower, higher, louder, with pauses or in a whisper, all labels known.

Pace is the teacher's own. Pitch is moved by overlap-add in Praat, which leaves the formants where they are. Loud and
quiet speech differ in level and in spectral tilt, as vocal effort does. A whisper is made as the glottis makes it:
the voice source is replaced by noise behind the same vocal tract, here the smoothed spectral envelope. What no filter
gives is an actor's change of articulation, so these labels teach the direction of a style and not all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

DIMENSIONS: tuple[tuple[str, ...], ...] = (("slow", "fast"), ("low", "high"), ("quiet", "loud", "whisper"), ("pauses",))
"""Styles that exclude one another stand together."""
INLINE = ("slow", "fast", "low", "high", "quiet", "loud", "whisper")
"""What a cue may change in the middle of a text; it may also ask for a long pause."""
NEUTRAL_DB = -25.0
"""RMS level of neutral speech, dB below full scale: loud speech needs the room above."""
WHISPER_N_FFT, WHISPER_LIFTER_S = 1024, 0.0022
"""STFT size, and the quefrency up to which its envelope is kept: below one period of a 450 Hz voice."""
MIN_PIECE_WORDS = 3
TURNS_OF_PHRASE = (
    "and", "but", "or", "that", "which", "who", "when", "where", "because", "with", "for", "from", "to", "in", "on",
    "at", "of", "by", "as", "if", "than",
)  # fmt: skip
"""Words before which a long phrase may be broken."""


@dataclass(frozen=True)
class Delivery:
    """How a stretch of text is to be said, in numbers."""

    speed: float = 1.0
    semitones: float = 0.0
    """Pitch against the voice's own."""
    gain_db: float = 0.0
    """Level against neutral speech."""
    tilt_db: float = 0.0
    """Change of the spectrum per octave above 500 Hz, dB."""
    whisper: bool = False
    pause_s: float = 0.0
    """Silence after each phrase, beyond the natural gap."""


def draw_styles(rng: np.random.Generator) -> list[str]:
    """Draw no style, one, or two that go together."""
    count = int(rng.choice([0, 1, 2], p=[0.3, 0.5, 0.2]))
    chosen = [str(rng.choice(DIMENSIONS[dimension])) for dimension in rng.permutation(len(DIMENSIONS))[:count]]
    return [style for style in chosen if not ("whisper" in chosen and style in ("low", "high"))]


def deliver(style: str, rng: np.random.Generator, base: Delivery | None = None) -> Delivery:
    """Draw the numbers of a style, on top of another delivery."""
    base = base or Delivery()
    if style in ("slow", "fast"):
        return replace(base, speed=float(rng.uniform(0.62, 0.78) if style == "slow" else rng.uniform(1.28, 1.5)))
    if style in ("low", "high"):
        return replace(base, semitones=float(rng.uniform(-4.5, -3) if style == "low" else rng.uniform(3, 5)))
    if style in ("quiet", "loud"):
        gain_db = float(rng.uniform(-12, -8) if style == "quiet" else rng.uniform(6, 8))
        return replace(base, gain_db=gain_db, tilt_db=-1.5 if style == "quiet" else 1.5, whisper=False)
    if style == "whisper":
        return replace(base, gain_db=float(rng.uniform(-13, -9)), tilt_db=0.0, whisper=True, semitones=0.0)
    return replace(base, pause_s=float(rng.uniform(0.6, 1.1)))


def pieces(text: str, max_words: int | None = None) -> list[str]:
    """Part a text behind its punctuation, and long phrases before a turn of phrase; joined by spaces they are the text.

    Args:
        text: What is said.
        max_words: Phrases longer than this are broken where they can be; None leaves them whole.
    """
    parts = re.split(r"(?<=[,;:.!?])\s+(?=\w)", " ".join(text.split()))
    merged = [parts[0]]
    for part in parts[1:]:
        if min(len(part.split()), len(merged[-1].split())) < MIN_PIECE_WORDS:
            merged[-1] += " " + part
        else:
            merged.append(part)
    return [piece for part in merged for piece in _broken(part, max_words)]


def _broken(phrase: str, max_words: int | None) -> list[str]:
    words = phrase.split()
    if max_words is None or len(words) <= max(max_words, 2 * MIN_PIECE_WORDS - 1):
        return [phrase]
    places = range(MIN_PIECE_WORDS, len(words) - MIN_PIECE_WORDS + 1)
    turns = [place for place in places if words[place].lower() in TURNS_OF_PHRASE] or list(places)
    place = min(turns, key=lambda place: abs(place - len(words) / 2))
    halves = " ".join(words[:place]), " ".join(words[place:])
    return [piece for half in halves for piece in _broken(half, max_words)]


def restyle(waveform: Samples, sample_rate: int, delivery: Delivery, rng: np.random.Generator) -> Samples:
    """Give a reading the pitch, level, tilt or whisper of a delivery, and `NEUTRAL_DB` as its own level.

    Args:
        waveform: Samples of one voice, shape `(S,)`, already at the delivery's speed.
        sample_rate: Hz.
        delivery: What is asked for.
        rng: Draws a whisper's noise.
    """
    if delivery.semitones:
        waveform = shifted(waveform, sample_rate, delivery.semitones)
    if delivery.whisper:
        waveform = whispered(waveform, sample_rate, rng)
    if delivery.tilt_db:
        waveform = tilted(waveform, sample_rate, delivery.tilt_db)
    level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    gain = 10 ** ((NEUTRAL_DB + delivery.gain_db) / 20) / max(level, 1e-5)
    return np.asarray(waveform * min(gain, 0.99 / max(float(np.abs(waveform).max()), 1e-5)), np.float32)


def shifted(waveform: Samples, sample_rate: int, semitones: float) -> Samples:
    """Move the pitch and leave duration and formants, by Praat's overlap-add; a voiceless clip stays as it is."""
    import parselmouth
    from parselmouth.praat import call

    sound = parselmouth.Sound(waveform.astype(np.float64), sampling_frequency=sample_rate)
    manipulation = call(sound, "To Manipulation", 0.01, 65, 500)
    tier = call(manipulation, "Extract pitch tier")
    if not call(tier, "Get number of points"):
        return waveform
    call(tier, "Multiply frequencies", 0, sound.xmax, 2 ** (semitones / 12))
    call([tier, manipulation], "Replace pitch tier")
    return np.asarray(call(manipulation, "Get resynthesis (overlap-add)").values[0, : len(waveform)], np.float32)


def tilted(waveform: Samples, sample_rate: int, tilt_db: float) -> Samples:
    """Raise (or lower) the spectrum by `tilt_db` an octave from 500 Hz to 4 kHz."""
    octaves = np.log2(np.clip(np.fft.rfftfreq(len(waveform), 1 / sample_rate), 500, 4000) / 500)
    return np.asarray(np.fft.irfft(np.fft.rfft(waveform) * 10 ** (tilt_db * octaves / 20), len(waveform)), np.float32)


def whispered(waveform: Samples, sample_rate: int, rng: np.random.Generator) -> Samples:
    """Replace the voice source by noise: white noise shaped by the clip's own spectral envelope, frame by frame.

    The envelope is smooth up to `WHISPER_LIFTER_S` and runs along the tops of the harmonics (the true envelope of
    Roebel and Rodet 2005). Whispers have less below 500 Hz than voices, so it is lowered there by up to 20 dB.
    """
    n_fft, hop = WHISPER_N_FFT, WHISPER_N_FFT // 4
    window = np.hanning(n_fft + 1)[:-1]
    padded = np.pad(waveform, (n_fft, n_fft + hop))
    noise = rng.standard_normal(len(padded))
    whisper, weight = np.zeros(len(padded)), np.full(len(padded), 1e-3)
    frequencies = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    thinned = 10 ** (-np.clip(1 - frequencies / 500, 0, 1))
    for start in range(0, len(padded) - n_fft, hop):
        frame = slice(start, start + n_fft)
        spectrum = np.log(np.abs(np.fft.rfft(padded[frame] * window)) + 1e-5)
        envelope = np.exp(_true_envelope(spectrum, sample_rate)) * thinned
        source = np.fft.rfft(noise[frame] * window) / np.sqrt(n_fft)
        whisper[frame] += np.fft.irfft(source * envelope) * window
        weight[frame] += window**2
    return np.asarray((whisper / weight)[n_fft : n_fft + len(waveform)], np.float32)


def _true_envelope(log_spectrum: NDArray[np.float64], sample_rate: int, num_rounds: int = 6) -> NDArray[np.float64]:
    """Smooth a log spectrum by its cepstrum, then again with its valleys filled up to the curve, and so on."""
    size = 2 * (len(log_spectrum) - 1)
    kept = np.minimum(np.arange(size), size - np.arange(size)) <= WHISPER_LIFTER_S * sample_rate
    envelope = log_spectrum
    for _ in range(num_rounds):
        envelope = np.fft.rfft(np.fft.irfft(np.maximum(log_spectrum, envelope)) * kept).real
    return envelope


def trimmed(waveform: Samples, sample_rate: int, keep_s: float = 0.03) -> Samples:
    """Cut the silence from both ends, but for `keep_s`."""
    hop = sample_rate // 100
    frames = np.square(waveform[: len(waveform) // hop * hop].reshape(-1, hop)).mean(axis=1)  # (F,)
    sounding = np.flatnonzero(frames > 1e-4 * frames.max())  # 40 dB
    start, end = int(sounding[0]) * hop, (int(sounding[-1]) + 1) * hop
    keep = round(keep_s * sample_rate)
    return waveform[max(start - keep, 0) : end + keep]


def joined(readings: list[Samples], silences_s: list[float], sample_rate: int) -> Samples:
    """Put readings one after the other, with a silence after each but the last."""
    parts: list[Samples] = []
    for reading, silence_s in zip(readings, [*silences_s, 0.0], strict=True):
        parts += [reading, np.zeros(round(silence_s * sample_rate), np.float32)]
    return np.concatenate(parts)
