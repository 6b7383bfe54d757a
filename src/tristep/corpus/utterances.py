"""Utterances: clips with transcripts become words and codes, ready to teach the TTS mode.

Each clip is tokenized by the codec, and its transcript is aligned to the sound by the letters that the backbone's own
adaptor hears (CTC, Viterbi), so that every word knows the code before which it is written. A clip whose letters
don't fit its transcript is dropped: the alignment is the cross-check (report section 5.2, step 7). Where the clip's
phones are known as well, its codes are moved to say them (`tristep.codec.saying`).

Each utterance also gets a few instructions that would have led to it. Its pace is its own, against the other clips of
its corpus. Pitch and volume are no part of the codes, the decoder of the codec gives them, so any can be asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.audio import LISTEN_HZ, padded_mel, read_audio
from tristep.backbone.checkpoints import load_backbone
from tristep.backbone.model import Backbone
from tristep.codec.saying import PhoneCells
from tristep.codec.tokenizer import SpeechTokenizer
from tristep.corpus.annotate import instruction
from tristep.modes.tts.data import first_codes
from tristep.objectives.alignment import ctc_align, spoken_when
from tristep.phones import FRAME_S, frame_phones
from tristep.text import speakable, spell_letters, written_words

MIN_LOGPROB = -0.6
"""Mean log-probability per letter frame under which a clip and its transcript don't belong together."""
MAX_DURATION_S = 25.0
NUM_INSTRUCTIONS = 4
STYLES = {
    **{("pace", 1): "slow", ("pace", 2): "slow", ("pace", 4): "fast", ("pace", 5): "fast"},
    **{("pitch", 1): "low", ("pitch", 2): "low", ("pitch", 4): "high", ("pitch", 5): "high"},
    **{("volume", 1): "whisper", ("volume", 2): "quiet", ("volume", 4): "loud", ("volume", 5): "loud"},
}
"""The style of `annotate.PHRASES` that asks for a degree of a feature."""


@dataclass(frozen=True)
class Aligned:
    """Where the words of a transcript start."""

    words: tuple[str, ...]
    starts_s: tuple[float, ...]
    logprob: float
    """Mean log-probability per frame: near zero where sound and text agree."""


def align_words(words: Sequence[str], logprobs: Tensor, letter_rate_hz: float) -> Aligned | None:
    """Find when each word starts, given log-probabilities over letters `(N, len(LETTERS) + 1)`; None if it can't be.

    Raises:
        ValueError: If the letters do not fit the frames.
    """
    text = " ".join(words)
    letters = spell_letters(text)
    if not letters:
        return None
    spans = ctc_align(logprobs, torch.tensor(letters))
    starts = tuple(word.start_s for word in spoken_when(spans, text, letter_rate_hz))
    return Aligned(tuple(words), starts, spans.logprob)


class UtteranceBuilder:
    """Turns clips into rows of words and codes with one backbone and one speech tokenizer."""

    def __init__(self, backbone: Backbone, tokenizer: SpeechTokenizer, cells: PhoneCells | None = None) -> None:
        self.backbone, self.tokenizer, self.cells = backbone.eval(), tokenizer.eval(), cells

    @torch.inference_mode()
    def letter_logprobs(self, waveform: Tensor) -> Tensor:
        """Hear letters in a waveform `(S,)` at 16 kHz: log-probabilities at 25 Hz, `(N, len(LETTERS) + 1)`."""
        mel = padded_mel(waveform, self.backbone.config.encoder.num_mels)[None]
        adapted = self.backbone.adapt(*self.backbone.encode_audio(mel, torch.tensor([mel.shape[-1]])))
        if adapted.letter_logits is None or adapted.num_letter_frames is None:
            raise ValueError("aligning words needs an adaptor that spells letters: use a backbone of kind = 'ctc'")
        return adapted.letter_logits[0, : int(adapted.num_letter_frames)].float().log_softmax(dim=-1)

    def build(self, waveform: Tensor, text: str, phones: Sequence[tuple[str, float]] = ()) -> dict[str, Any] | None:
        """Align and tokenize one clip; None if sound and transcript don't belong together.

        Args:
            waveform: Shape `(S,)` at 16 kHz.
            text: Its transcript.
            phones: Symbols of `PHONES` and when each ends, in seconds, if they are known: the codes then say them.
        """
        words = written_words(speakable(text))
        with torch.autocast("cpu", torch.bfloat16):
            logprobs = self.letter_logprobs(waveform)
            codes = self.tokenizer.encode(waveform, self.backbone.encode_audio)
        if self.cells is not None:
            codes = self.cells.say(codes, frame_phones(phones, round(len(waveform) / LISTEN_HZ / FRAME_S)))
        try:
            aligned = align_words(words, logprobs, letter_rate_hz=25.0) if words else None
        except ValueError:  # more letters than the sound has room for
            return None
        if aligned is None or aligned.logprob < MIN_LOGPROB:
            return None
        firsts = first_codes(aligned.starts_s, self.tokenizer.code_rate_hz, len(codes))
        row = {"words": list(zip(aligned.words, firsts, strict=True)), "codes": codes.tolist()}
        return {**row, "logprob": round(aligned.logprob, 3)}


def paces(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Place each clip among all by its letters a second: degrees 1 to 5, the middle two fifths being 3."""
    rates = [len(row["text"]) / row["duration"] for row in rows]
    edges = np.quantile(rates, [0.1, 0.3, 0.7, 0.9])
    return (1 + np.searchsorted(edges, rates)).tolist()


def asked_for(pace: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw an instruction that this utterance obeys: its pace where that is unlike others, any pitch, any volume."""
    styles = [STYLES["pace", pace]] if pace != 3 and rng.random() < 0.7 else []
    manner = {"pace": pace}
    for feature in ("pitch", "volume"):
        degree = int(rng.integers(1, 6)) if rng.random() < 0.4 else 3
        manner[feature] = degree
        styles += [STYLES[feature, degree]] if degree != 3 else []
    return {"text": instruction(styles or ["neutral"], rng), "manner": manner}


def with_instructions(rows: Sequence[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one corpus with their manner, and with instructions that fit it."""
    rng = np.random.default_rng(seed)
    for row, pace in zip(rows, paces(rows), strict=True):
        drawn = [asked_for(pace, rng) for _ in range(NUM_INSTRUCTIONS)]
        yield {**row, "manner": {"pace": pace}, "instructions": drawn}


def build_rows(rows: Sequence[dict[str, Any]], folder: Path, builder: UtteranceBuilder) -> Iterator[dict[str, Any]]:
    """Yield each clip's row with `words` and `codes` added, passing over what does not align."""
    for row in track(rows, description="aligning and tokenizing"):
        if row["duration"] > MAX_DURATION_S:
            continue
        built = builder.build(read_audio(folder / row["audio"], LISTEN_HZ), row["text"], row.get("phones", ()))
        if built is not None:
            yield {**row, "audio": str((folder / row["audio"]).resolve()), **built}


def main() -> None:
    """Write `utterances.jsonl` for a manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=existing)
    parser.add_argument("--backbone", default="nano", help="weights by name, or a folder")
    parser.add_argument("--codec", type=existing, required=True, help="a folder with a trained speech tokenizer")
    parser.add_argument(
        "--phone-cells",
        type=existing,
        help="what the tokenizer's codes say, the phone_cells.safetensors of its run: the codes of clips whose phones "
        "are in the manifest (`python -m tristep.corpus.phones`) are moved to say them",
    )
    parser.add_argument("--out", type=Path, required=True, help="the utterances.jsonl to write")
    parser.add_argument("--max-clips", type=int, help="stop after so many clips")
    parser.add_argument("--seed", type=int, default=0, help="of the instructions")
    options = parser.parse_args()
    from tristep.codec.codec import load_tokenizer

    tokenizer = load_tokenizer(options.codec)
    cells = PhoneCells.load(options.phone_cells, tokenizer.config) if options.phone_cells else None
    builder = UtteranceBuilder(load_backbone(options.backbone, mode="asr")[0], tokenizer, cells)
    rows = [json.loads(line) for line in options.manifest.read_text(encoding="utf-8").splitlines()]
    built = list(build_rows(rows[: options.max_clips], options.manifest.parent, builder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as out:
        for row in with_instructions(built, options.seed):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(built)} of {len(rows[: options.max_clips])} clips aligned, written to {options.out}")


if __name__ == "__main__":
    main()
