"""Transcribe an hour of sound, made by repeating recordings, and print time and memory as it goes.

    python benchmarks/long_audio.py --minutes 60

The sound is written to a temporary FLAC file and streamed; peak memory must not grow with its length.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import cycle
from pathlib import Path

import soundfile
import torch

import tristep
from tristep.audio import LISTEN_HZ, read_audio

RECORDINGS = Path(__file__).parents[1] / "tests" / "data"


def write_long_recording(sources: list[Path], path: Path, minutes: float) -> None:
    """Repeat recordings with a second of silence between them until `minutes` are full."""
    waveforms = [torch.cat([read_audio(source), torch.zeros(LISTEN_HZ)]) for source in sources]
    left = round(minutes * 60 * LISTEN_HZ)
    with soundfile.SoundFile(path, "w", LISTEN_HZ, 1) as file:
        for waveform in cycle(waveforms):
            if left <= 0:
                return
            file.write(waveform[:left].numpy())
            left -= len(waveform)


def peak_mb() -> float:
    """Return this process's peak resident memory in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print one table row per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 60], help="lengths, in growing order")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("sources", type=Path, nargs="*", default=sorted(RECORDINGS.glob("*.flac")))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = tristep.load(options.model)
    print(f"{options.model}, {options.threads} threads, torch {torch.__version__}, loaded: {peak_mb():.0f} MB")
    print("minutes  seconds  real-time factor  peak MB  segments  words  finish")
    for minutes in options.minutes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "long.flac"
            write_long_recording(options.sources, path, minutes)
            start = time.perf_counter()
            result = model.transcribe(path)
            seconds = time.perf_counter() - start
        words = len(result.text.split())
        print(
            f"{minutes:7.0f}  {seconds:7.1f}  {seconds / (60 * minutes):16.3f}  {peak_mb():7.0f}  "
            f"{len(result.segments):8d}  {words:5d}  {result.finish_reason}",
            flush=True,
        )


if __name__ == "__main__":
    main()
