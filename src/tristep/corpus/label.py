"""Pseudo-labels: clips without transcripts get those of a recogniser that already exists.

One recogniser and its own confidence, for now: a clip is kept if the recogniser heard speech, was sure of its words,
and did not loop. The teacher is faster-whisper (`pip install faster-whisper`), used to make data only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

MIN_LOGPROB = -0.5
"""Mean log-probability per token under which a transcript is dropped."""
MAX_COMPRESSION = 2.0
"""Compression ratio above which a transcript is taken for a loop."""


def label(rows: list[dict[str, Any]], folder: Path, model: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows whose clip the teacher heard clearly, with its transcript as their text."""
    for row in track(rows, description="labelling"):
        segments, _ = model.transcribe(str(folder / row["audio"]), language=row["language"], beam_size=5)
        segments = list(segments)
        sure = segments and all(s.avg_logprob > MIN_LOGPROB and s.compression_ratio < MAX_COMPRESSION for s in segments)
        if sure:
            text = " ".join(segment.text.strip() for segment in segments)
            logprob = min(segment.avg_logprob for segment in segments)
            yield {**row, "text": text, "text_source": "faster-whisper", "logprob": round(logprob, 3)}


def main() -> None:
    """Label the clips of a manifest that have no text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="base", help="a faster-whisper model: its name, or a CTranslate2 folder")
    parser.add_argument("--out", type=Path, required=True, help="the labelled manifest.jsonl")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--relabel", action="store_true", help="label clips that have a text too, to have it written out"
    )
    options = parser.parse_args()
    from faster_whisper import WhisperModel

    teacher = WhisperModel(options.model, device="cpu", compute_type="int8", cpu_threads=1)
    lines = options.manifest.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == options.split]
    rows = [row for row in rows if options.relabel or not row["text"]]
    folder = options.manifest.parent.resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as out:
        for row in label(rows, folder, teacher):
            out.write(json.dumps({**row, "audio": str(folder / row["audio"])}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
