"""A model's own words: clips get the transcripts that it writes itself.

    python -m tristep.corpus.own_words data/clips/manifest.jsonl --model runs/sft/model --out data/own/manifest.jsonl

Draft heads guess what the backbone will write and not what was said, so they learn best from its own greedy output,
errors included. Clips that it takes for silence, or that it does not finish, are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from rich.progress import track

from tristep.arguments import existing
from tristep.audio import read_audio
from tristep.engine.engine import Engine
from tristep.modes.asr.data import Style
from tristep.modes.asr.decoding import parse

BATCH_SIZE = 8


def rewrite(rows: list[dict[str, Any]], folder: Path, engine: Engine, style: Style) -> Iterator[dict[str, Any]]:
    """Yield the rows whose clip the model finishes, with what it writes as their text."""
    vocab, tokenizer = engine.backbone.vocab, engine.chat.tokenizer
    for start in track(range(0, len(rows), BATCH_SIZE), description="listening"):
        batch = rows[start : start + BATCH_SIZE]
        waveforms = [read_audio(folder / row["audio"]) for row in batch]
        for row, completion in zip(batch, engine.decode(waveforms, style=style), strict=True):
            text = parse(completion.tokens, vocab, tokenizer).text
            if text and completion.finish_reason == "stop":
                yield {**row, "text": text, "text_source": engine.backbone.config.name}


def main() -> None:
    """Write a manifest anew, with the model's own transcripts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--model", default="nano", help="a name or a folder")
    parser.add_argument("--style", choices=get_args(Style), default="spoken")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True, help="the manifest.jsonl to write")
    options = parser.parse_args()
    lines = options.manifest.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == options.split]
    rows.sort(key=lambda row: row["duration"])
    folder = options.manifest.parent.resolve()
    engine = Engine.load(options.model)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as out:
        for row in rewrite(rows, folder, engine, options.style):
            out.write(json.dumps({**row, "audio": str(folder / row["audio"])}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
