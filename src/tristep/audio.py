"""Waveforms: read, write, resample, log-mel; every rate and hop is named here.

Whatever comes in (a path, bytes, an open file; WAV, FLAC, OGG, MP3, M4A, WebM, the sound track of a video)
goes out as one float32 channel in [-1, 1] at the asked rate. soundfile decodes what it can, PyAV the rest.
A header is a promise and never sizes an allocation: sound is decoded block by block under a cap on its
duration, so that a small file which unfolds into days of silence is refused and not unfolded.

The front end is Whisper's log-mel spectrogram for clips of any length: unlike the original, nothing is padded
or cut to 30 s. `step_audio_log_mel` is the same with Step-Audio 2's tail, and `LogMelStream` computes the
same frames from chunks.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LISTEN_HZ = 16_000
"""Sample rate of everything the model hears, Hz."""
SPEAK_HZ = 24_000
"""Sample rate of everything the model says, Hz."""
N_FFT = 400
"""Samples under one STFT window: 25 ms at `LISTEN_HZ`."""
HOP_LENGTH = 160
"""Samples from one mel frame to the next: 100 frames a second at `LISTEN_HZ`."""
SPEECH_N_FFT = 1024
"""Samples under one STFT window of the speaking mel: 43 ms at `SPEAK_HZ`."""
SPEECH_HOP = 240
"""Samples from one speaking mel frame to the next: 100 frames a second at `SPEAK_HZ`."""
SPEECH_MELS = 80
"""Bands of the speaking mel."""
SPEECH_TOP_HZ = 8_000
"""Highest frequency of the speaking mel, Hz."""
SPEECH_FLOOR = 1e-5
"""Least mel power of the speaking mel, whose logarithm is taken."""
MEL_TAIL_S = 0.5
"""Seconds of silence that a clip needs at its end before it is encoded."""
STEP_AUDIO_TAIL = 479
"""Zeros that Step-Audio 2 appends to a waveform before its STFT."""
MAX_READ_S = 2 * 3600.0
"""Longest sound that `read_audio` holds in memory, seconds; `stream_audio` has no need to hold it."""
MAX_STREAM_S = 24 * 3600.0
"""Longest sound that `stream_audio` decodes unless told otherwise, seconds."""
MAX_CHANNELS = 16
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
MAX_PEAK = 16.0
"""Largest sample taken for a loud recording; above it the samples are no waveform in [-1, 1]."""
MAX_PIPE_BYTES = 1 << 29
"""Bytes kept of a source that can't seek: decoding needs to."""

_EDGE = N_FFT // 2
_BLOCK = 1 << 17
_LONGEST_NAME = 200
_PLACEHOLDER_BYTES = 0x7FFF0000
_UNKNOWN_FRAMES = 1 << 62
"""libsndfile's count of samples where a header gives none, as in a FLAC written to a pipe."""
_READABLE = "expected WAV, FLAC, OGG, MP3, M4A, WebM or another common audio file"
_UNFINISHED = "check that the recorder or the upload finished"
_CONTAINERS = "aac,ac3,aiff,amr,ape,asf,au,avi,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tak,tta,wav,wv"
"""What PyAV may open: no playlists or scripts, which could name other files and hosts."""

Samples = NDArray[np.float32]
Source = str | Path | bytes | BinaryIO


class AudioError(ValueError):
    """A sound that can't be read or written, told in one sentence on one line."""


class TooLongError(AudioError):
    """A sound that lasts longer than it may."""


@dataclass(frozen=True)
class _Decoder:
    """An opened sound: what its header promises, and its blocks as they are decoded."""

    sample_rate: int
    num_channels: int
    duration_s: float | None
    """What the header promises, None where it says nothing exact."""
    blocks: Iterator[Samples]
    """Blocks of shape `(S, num_channels)`."""


def read_audio(source: Source, sample_rate: int = LISTEN_HZ, *, max_duration_s: float | None = None) -> Tensor:
    """Read a whole sound as one channel.

    Channels are mixed down by their mean. Lossy files without a table of contents (MP3, OGG) that end early
    are read as far as they go; a file that breaks its own promise of a length is refused.

    Args:
        source: A path, the bytes of a file, or a file open for reading bytes.
        sample_rate: Rate of the waveform that is returned, Hz.
        max_duration_s: Longest sound accepted, seconds; `MAX_READ_S` when None.

    Returns:
        The waveform, float32 in [-1, 1], shape `(S,)`.

    Raises:
        AudioError: If there is no sound to be had from the source, for whatever reason.
    """
    limit_s = MAX_READ_S if max_duration_s is None else max_duration_s
    return torch.from_numpy(np.concatenate(list(_resampled_blocks(source, sample_rate, limit_s))))


def stream_audio(
    source: Source,
    chunk_s: float = 30.0,
    sample_rate: int = LISTEN_HZ,
    *,
    max_duration_s: float = MAX_STREAM_S,
) -> Iterator[Tensor]:
    """Read a sound chunk by chunk in bounded memory, however long it is.

    The chunks joined are exactly what `read_audio` returns: the resampler keeps its state between them.

    Args:
        source: A path, the bytes of a file, or a file open for reading bytes.
        chunk_s: Duration of a chunk, seconds.
        sample_rate: Rate of the chunks, Hz.
        max_duration_s: Longest sound accepted, seconds.

    Yields:
        Waveforms of shape `(S,)`: `chunk_s` seconds each, the last one what is left.

    Raises:
        AudioError: As `read_audio`, when the iteration comes to the fault.
    """
    chunk_size = round(chunk_s * sample_rate)
    if chunk_size < 1:
        raise ValueError(f"chunk_s is {chunk_s!r}: expected at least one sample; pass a second or more")
    held: list[Samples] = []
    for block in _resampled_blocks(source, sample_rate, max_duration_s):
        held.append(block)
        if sum(map(len, held)) >= chunk_size:
            joined = np.concatenate(held)
            end = len(joined) - len(joined) % chunk_size
            for start in range(0, end, chunk_size):
                yield torch.from_numpy(joined[start : start + chunk_size])
            held = [joined[end:]]
    tail = np.concatenate(held)
    if len(tail):
        yield torch.from_numpy(tail)


def write_audio(path: str | Path, waveform: Tensor, sample_rate: int, comment: str = "") -> None:
    """Write a waveform; the name's ending chooses the format (.wav 16 bit, .flac, .ogg, .opus, .mp3).

    Args:
        path: Where to write.
        waveform: Samples in [-1, 1], shape `(S,)`; what lies outside is clipped.
        sample_rate: Its rate, Hz.
        comment: What the file's tags say, where it has room for that.

    Raises:
        AudioError: If the waveform isn't one finite channel, or the file can't be written.
    """
    if waveform.dim() != 1 or not torch.isfinite(waveform).all():
        raise AudioError(
            f"the waveform for {_name(path)} has shape {tuple(waveform.shape)}: expected finite samples of "
            "shape (S,); mix it down to one channel and remove NaN and infinity"
        )
    samples = waveform.detach().to("cpu", torch.float32).clamp(-1, 1).numpy()
    kind = {"format": "OGG", "subtype": "OPUS"} if Path(path).suffix.lower() == ".opus" else {}
    try:
        with soundfile.SoundFile(str(path), "w", sample_rate, 1, **kind) as file:
            with suppress(soundfile.LibsndfileError):
                file.comment = comment
            for start in range(0, len(samples), _BLOCK):  # libsndfile's Vorbis crashes on a minute at once
                file.write(samples[start : start + _BLOCK])
    except (soundfile.LibsndfileError, TypeError, ValueError, OSError) as error:
        raise AudioError(
            f"{_name(path)} can't be written at {sample_rate} Hz ({_reason(error)}): expected a .wav, .flac, "
            ".ogg, .opus or .mp3 in a folder that exists; choose another path or rate"
        ) from error


def _resampled_blocks(source: Source, sample_rate: int, limit_s: float) -> Iterator[Samples]:
    """Yield mono blocks at `sample_rate`; all failures of the file and its decoder are AudioErrors."""
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise AudioError(
            f"reading at {sample_rate!r} Hz: expected {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz; pass sample_rate={LISTEN_HZ}"
        )
    name = _name(source)
    try:
        with _opened(source, name) as file:
            decoder = _decoder(file, name)
            _check_header(decoder, name, limit_s)
            resampler = soxr.ResampleStream(decoder.sample_rate, sample_rate, 1, dtype="float32", quality="HQ")
            for block in _mono_blocks(decoder, name, limit_s):
                yield np.clip(resampler.resample_chunk(block), -1, 1)
            yield np.clip(resampler.resample_chunk(np.zeros(0, np.float32), last=True), -1, 1)
    except (OSError, soundfile.LibsndfileError, av.FFmpegError) as error:
        raise AudioError(
            f"{name} can't be read ({_reason(error)}): {_READABLE}; check the path, or make a new copy of it"
        ) from error


def _mono_blocks(decoder: _Decoder, name: str, limit_s: float) -> Iterator[Samples]:
    """Mix the channels down and hold the sound to its promises: finite, not empty, whole, not endless."""
    num_samples = 0
    for block in decoder.blocks:
        peak = float(np.abs(block).max(initial=0.0))
        if not peak <= MAX_PEAK:  # also true when a sample is NaN
            raise AudioError(
                f"{name} has a sample of {peak:g} after {num_samples / decoder.sample_rate:.1f} s: expected "
                "finite samples in [-1, 1]; export it again as 16-bit PCM"
            )
        num_samples += len(block)
        if num_samples > limit_s * decoder.sample_rate:
            raise TooLongError(f"{name} goes on after {limit_s:g} s: expected at most that; cut it into shorter files")
        yield block.mean(axis=1, dtype=np.float32)
    _check_whole(num_samples / decoder.sample_rate, decoder.duration_s, name)


def _check_header(decoder: _Decoder, name: str, limit_s: float) -> None:
    if not 1 <= decoder.num_channels <= MAX_CHANNELS:
        raise AudioError(f"{name} has {decoder.num_channels} channels: expected 1 to {MAX_CHANNELS}; mix it down first")
    if not MIN_RATE_HZ <= decoder.sample_rate <= MAX_RATE_HZ:
        raise AudioError(
            f"{name} has a sample rate of {decoder.sample_rate} Hz: expected {MIN_RATE_HZ} to {MAX_RATE_HZ} "
            "Hz; resample it or repair its header"
        )
    if decoder.duration_s is not None and decoder.duration_s > limit_s:
        raise TooLongError(
            f"{name} promises {decoder.duration_s:.1f} s of sound: expected at most {limit_s:g} s; "
            "cut it into shorter files"
        )


def _check_whole(duration_s: float, promised_s: float | None, name: str) -> None:
    if duration_s == 0:
        raise AudioError(f"{name} holds no samples: expected a recording; {_UNFINISHED}")
    if promised_s is not None and duration_s < 0.99 * promised_s - 0.1:
        raise AudioError(
            f"{name} ends after {duration_s:.2f} s: expected the {promised_s:.2f} s that its header "
            "promises; copy it again, or save what is there under a new header"
        )


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"audio given as {len(source)} bytes"
    name = str(source if isinstance(source, str | Path) else getattr(source, "name", f"a {type(source).__name__}"))
    name = name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"
    return name if name.strip() and name.isprintable() else repr(name)


@contextmanager
def _opened(source: Source, name: str) -> Iterator[BinaryIO]:
    """Give the source as a file that can seek."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif not hasattr(source, "read") and not isinstance(source, str | Path):
        raise AudioError(f"{name} is no source of sound: expected a path, bytes or an open file; pass one of them")
    elif not isinstance(source, str | Path):
        if source.closed:
            raise AudioError(f"{name} is closed: expected a file open for reading bytes; read it before closing")
        yield source if source.seekable() else _held(source, name)
    elif Path(source).exists() and not Path(source).is_file():
        raise AudioError(f"{name} is a folder or a device: expected an audio file; name one that lies in it")
    elif "\0" in str(source):
        raise AudioError(f"{name} is no path: expected one without null characters; pass bytes as bytes")
    else:
        with open(source, "rb") as file:
            yield file


def _held(pipe: BinaryIO, name: str) -> BinaryIO:
    data = pipe.read(MAX_PIPE_BYTES + 1)
    if len(data) > MAX_PIPE_BYTES:
        raise AudioError(
            f"{name} can't seek and holds more than {MAX_PIPE_BYTES} bytes: expected less from a pipe; "
            "save it to a file"
        )
    return io.BytesIO(data)


def _decoder(file: BinaryIO, name: str) -> _Decoder:
    start = file.tell()
    if not isinstance(head := file.read(1), bytes):
        raise AudioError(f"{name} is open for reading text: expected bytes; open it with mode 'rb'")
    if not head:
        raise AudioError(f"{name} is empty: {_READABLE}; {_UNFINISHED}")
    file.seek(start)
    try:
        sound = soundfile.SoundFile(file)
        if sound.frames < _UNKNOWN_FRAMES:
            return _soundfile_decoder(sound)
        sound.close()  # libsndfile can't read a FLAC of unknown length to its end
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name in .raw
        pass
    file.seek(start)
    try:
        return _av_decoder(file, name)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(
            f"{name} is not audio that can be decoded ({_reason(error)}): {_READABLE}; check that it plays elsewhere"
        ) from error


def _soundfile_decoder(sound: Any) -> _Decoder:
    def blocks() -> Iterator[Samples]:
        with sound:
            while len(block := sound.read(_BLOCK // max(1, sound.channels), dtype="float32", always_2d=True)):
                yield block

    return _Decoder(sound.samplerate, sound.channels, _promised_s(sound), blocks())


def _promised_s(sound: Any) -> float | None:
    """Read the promised duration; libsndfile cuts a WAV header's promise to the file and logs that."""
    if sound.samplerate <= 0:
        return None
    promised_s = float(sound.frames / sound.samplerate)
    shortened = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if shortened and int(shortened[2]) and int(shortened[1]) < _PLACEHOLDER_BYTES:
        promised_s *= int(shortened[1]) / int(shortened[2])
    return promised_s


def _av_decoder(file: BinaryIO, name: str) -> _Decoder:
    container = av.open(file, metadata_errors="ignore", options={"format_whitelist": _CONTAINERS})
    stream = next(iter(container.streams.audio), None)
    if stream is None or stream.codec_context is None:
        container.close()
        raise AudioError(f"{name} has no sound track in a known encoding: {_READABLE}; check that it plays elsewhere")
    duration_s = None
    if "mov" in container.format.name and stream.duration and stream.time_base:  # others only estimate it
        duration_s = float(stream.duration * stream.time_base)
    return _Decoder(stream.rate or 0, stream.channels, duration_s, _av_blocks(container, stream, name))


def _av_blocks(container: Any, stream: Any, name: str) -> Iterator[Samples]:
    shape = (stream.rate, stream.channels)  # as checked; the decoder changes the stream's own
    to_packed = av.AudioResampler(format="flt")  # PyAV reads beyond memory in planes after the eighth
    held: list[Samples] = []
    with container:
        try:
            for frame in container.decode(stream):
                if (frame.sample_rate, frame.layout.nb_channels) != shape:
                    raise ValueError("its rate or its number of channels changes on the way")
                for part in to_packed.resample(frame):
                    samples = part.to_ndarray().astype(np.float32, copy=False)  # (1, S * channels)
                    held.append(samples.reshape(-1, shape[1]))
                if sum(map(len, held)) >= _BLOCK:
                    yield np.concatenate(held)
                    held = []
        except (ValueError, av.FFmpegError) as error:
            raise AudioError(
                f"{name} can't be decoded to its end ({_reason(error)}): expected one undamaged sound track; "
                "make a new copy of it, or convert it to WAV"
            ) from error
    if held:
        yield np.concatenate(held)


def _reason(error: Exception) -> str:
    """Say what a library or the system had against a file, without its addresses and full stops."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".:") or "its data is damaged"


@lru_cache(maxsize=8)
def mel_filters(num_mels: int, sample_rate: int = LISTEN_HZ, n_fft: int = N_FFT, top_hz: float | None = None) -> Tensor:
    """Build Slaney's mel filter bank.

    Triangles that overlap by half on a scale linear up to 1 kHz and logarithmic above, each of unit area:
    the bank of librosa's `filters.mel`, on which Whisper and Step-Audio 2 were trained.

    Args:
        num_mels: Mel bands.
        sample_rate: Rate of the waveform, Hz.
        n_fft: Samples under one STFT window.
        top_hz: Where the last band ends, Hz; half the sample rate if not given.

    Returns:
        Weights of shape `(num_mels, n_fft // 2 + 1)`. The tensor is shared: don't write to it.
    """
    end_hz = sample_rate / 2 if top_hz is None else top_hz
    edges = mel_edges(num_mels, end_hz)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    width = edges.diff()[:, None]  # (M + 1, 1)
    rising = (bins - edges[:-2, None]) / width[:-1]  # (M, n_fft // 2 + 1)
    falling = (edges[2:, None] - bins) / width[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).float()


def mel_edges(num_mels: int, end_hz: float) -> Tensor:
    """Return where Slaney's bands begin, peak and end, Hz, shape `(num_mels + 2,)` in double precision."""
    top = 15 + math.log(end_hz / 1000) / (math.log(6.4) / 27)  # mels where the last band ends
    mels = torch.linspace(0, top, num_mels + 2, dtype=torch.float64)
    return torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * math.log(6.4) / 27))


def transposition(semitones: float) -> Tensor:
    """Build what moves a speaking mel up or down: its bands take what lies as many semitones below them.

    All of the spectrum moves, harmonics and formants alike, as if the speaker were smaller or larger; time does not.

    Args:
        semitones: Upwards.

    Returns:
        Weights of shape `(M, M)`, of which each row interpolates between two bands: `weights @ mel`.
    """
    peaks = mel_edges(SPEECH_MELS, SPEECH_TOP_HZ)[1:-1]
    wanted = (peaks * 2 ** (-semitones / 12)).clamp(peaks[0], peaks[-1])
    above = torch.searchsorted(peaks, wanted).clamp(1, SPEECH_MELS - 1)
    share = (wanted - peaks[above - 1]) / (peaks[above] - peaks[above - 1])
    bands = torch.arange(SPEECH_MELS)
    weights = torch.zeros(SPEECH_MELS, SPEECH_MELS, dtype=torch.float64)
    weights[bands, above - 1], weights[bands, above] = 1 - share, share
    return weights.float()


def speech_mel(waveform: Tensor) -> Tensor:
    """Compute the log-mel spectrogram that the codec speaks in: 80 bands up to 8 kHz, 100 frames a second.

    Frame `f` is centred on sample `f * SPEECH_HOP`; beyond both ends the waveform is mirrored. A clip too
    short to be mirrored (21 ms) is continued by silence first.

    Args:
        waveform: Samples at `SPEAK_HZ`, shape `(B, S)`.

    Returns:
        Natural logarithms of mel powers, shape `(B, SPEECH_MELS, F)` with `F = S // SPEECH_HOP`.
    """
    if waveform.dim() != 2:
        raise ValueError(f"a waveform of shape {tuple(waveform.shape)}: expected (B, S); add the batch dimension")
    num_frames = waveform.shape[1] // SPEECH_HOP
    edge = SPEECH_N_FFT // 2
    padded = F.pad(waveform, (0, max(0, edge + 1 - waveform.shape[1])))
    padded = F.pad(padded, (edge, edge), mode="reflect")
    window = torch.hann_window(SPEECH_N_FFT, device=waveform.device)
    spectrum = torch.stft(padded, SPEECH_N_FFT, SPEECH_HOP, window=window, center=False, return_complex=True)
    power = spectrum[..., :num_frames].abs() ** 2  # (B, SPEECH_N_FFT // 2 + 1, F)
    return speech_log_mel(power)


def speech_log_mel(power: Tensor) -> Tensor:
    """Turn STFT powers at `SPEAK_HZ`, shape `(B, SPEECH_N_FFT // 2 + 1, F)`, into the speaking mel `(B, M, F)`."""
    filters = mel_filters(SPEECH_MELS, SPEAK_HZ, SPEECH_N_FFT, SPEECH_TOP_HZ).to(power.device)
    return (filters @ power).clamp(min=SPEECH_FLOOR).log()


def log_mel(waveform: Tensor, num_mels: int = 80) -> Tensor:
    """Compute Whisper's log-mel spectrogram of a clip of any length.

    Args:
        waveform: Samples at `LISTEN_HZ`, shape `(S,)` or `(B, S)`.
        num_mels: Mel bands, 80 or 128 in published models.

    Returns:
        The spectrogram, shape `(M, F)` or `(B, M, F)` with `F = S // HOP_LENGTH`; each clip is scaled by its
        own loudest band.
    """
    return normalise(raw_log_mel(waveform, num_mels))


def step_audio_log_mel(waveform: Tensor, num_mels: int = 128) -> Tensor:
    """Compute Step-Audio 2's front end: Whisper's log-mel of the waveform with 479 zeros at its end.

    Args:
        waveform: Samples at `LISTEN_HZ`, shape `(S,)` or `(B, S)`.
        num_mels: Mel bands.

    Returns:
        The spectrogram, shape `(M, F)` or `(B, M, F)` with `F = (S + 479) // HOP_LENGTH`.
    """
    return log_mel(F.pad(waveform, (0, STEP_AUDIO_TAIL)), num_mels)


def raw_log_mel(waveform: Tensor, num_mels: int = 80) -> Tensor:
    """Compute log10 mel powers, before the scaling that needs the whole clip.

    Frame `f` is centred on sample `f * HOP_LENGTH`; beyond both ends the waveform is mirrored. A clip too
    short to be mirrored (12.5 ms) is continued by silence first.

    Args:
        waveform: Samples at `LISTEN_HZ`, shape `(S,)` or `(B, S)`.
        num_mels: Mel bands.

    Returns:
        Shape `(M, F)` or `(B, M, F)` with `F = S // HOP_LENGTH`.
    """
    if waveform.dim() not in (1, 2):
        raise ValueError(f"a waveform of shape {tuple(waveform.shape)}: expected (S,) or (B, S); mix channels down")
    num_frames = waveform.shape[-1] // HOP_LENGTH
    rows = waveform if waveform.dim() == 2 else waveform[None]
    rows = F.pad(rows, (0, max(0, _EDGE + 1 - rows.shape[-1])))
    mel = _log_power(F.pad(rows, (_EDGE, _EDGE), mode="reflect"), num_mels)[..., :num_frames]
    return mel if waveform.dim() == 2 else mel[0]


def normalise(raw_log_mel: Tensor) -> Tensor:
    """Scale log10 mel powers as Whisper does: 8 decades below the loudest, around zero.

    Args:
        raw_log_mel: Shape `(M, F)` or `(B, M, F)`; each clip has its own maximum.

    Returns:
        The same shape.
    """
    if raw_log_mel.numel() == 0:
        return raw_log_mel
    loudest = raw_log_mel.amax(dim=(-2, -1), keepdim=True)
    return (torch.maximum(raw_log_mel, loudest - 8.0) + 4.0) / 4.0


def _log_power(waveform: Tensor, num_mels: int) -> Tensor:
    """Compute log10 mel powers of the windows that fit into `(B, S)`, unpadded."""
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
    power = spectrum.abs() ** 2  # (B, N_FFT // 2 + 1, F)
    return (mel_filters(num_mels).to(waveform.device) @ power).clamp(min=1e-10).log10()


class LogMelStream:
    """Computes `raw_log_mel` from chunks of any sizes, each frame as soon as its last sample is known.

    The first frames mirror the waveform's beginning and wait for `N_FFT // 2 + 1` samples; the last one
    mirrors its end and comes with `flush`, which also makes the stream ready for another clip.
    """

    def __init__(self, num_mels: int = 80) -> None:
        """Start at the beginning of a clip, with `num_mels` bands."""
        self.num_mels = num_mels
        self._held = torch.zeros(0)
        self._started = False

    def push(self, chunk: Tensor) -> Tensor:
        """Take the next samples, shape `(S,)`, and return the frames they complete, shape `(M, F)`."""
        self._held = torch.cat([self._held.to(chunk.device), chunk])
        if not self._started:
            if len(self._held) <= _EDGE:
                return self._frames(0)
            self._held = torch.cat([self._held[1 : _EDGE + 1].flip(0), self._held])
            self._started = True
        return self._frames(max(0, (len(self._held) - N_FFT) // HOP_LENGTH + 1))

    def flush(self) -> Tensor:
        """Return the frames that were waiting for the end, shape `(M, F)`."""
        if self._started:
            held = len(self._held)
            self._held = torch.cat([self._held, self._held[-_EDGE - 1 : -1].flip(0)])
            last = self._frames((held - _EDGE) // HOP_LENGTH)
        else:
            last = raw_log_mel(self._held, self.num_mels)
        self._held, self._started = torch.zeros(0), False
        return last

    def _frames(self, num_frames: int) -> Tensor:
        if num_frames == 0:
            return self._held.new_zeros(self.num_mels, 0)
        end = (num_frames - 1) * HOP_LENGTH + N_FFT
        mel = _log_power(self._held[None, :end], self.num_mels)[0]  # (M, F)
        self._held = self._held[num_frames * HOP_LENGTH :]
        return mel


def padded_mel(waveform: Tensor, num_mels: int) -> Tensor:
    """Return the log-mel `(M, F)` of a clip `(S,)` followed by the silence that the encoder needs."""
    return log_mel(F.pad(waveform, (0, round(MEL_TAIL_S * LISTEN_HZ))), num_mels)


def coloured_noise(num_samples: int, tilt: float, rng: np.random.Generator) -> Samples:
    """Draw noise of unit power, shape `(S,)`, that falls with frequency to the `tilt`: 0 white, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** (tilt / 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return np.asarray(noise / max(float(noise.std()), 1e-9), np.float32)
