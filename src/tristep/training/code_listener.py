"""Teaching the code listener: codes are sounded in the voices that ship, and what is heard of them is learnt.

    python -m tristep.training.code_listener utterances/*.jsonl --phone-reader phone_reader.safetensors --out listener

The utterances are those of the TTS mode (`python -m tristep.corpus.utterances`); every thirtieth is held out. The phone
reader comes from `python -m tristep.corpus.phones`. What is heard depends on the flow decoder, so a new one wants a new
listener. In learning, what follows is hidden at a random place, for in speaking it is not written yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from tristep.arguments import existing
from tristep.backbone.checkpoints import find_weights, load_encoder
from tristep.codec.code_listener import CodeListener
from tristep.codec.codec import LISTENER, Codec
from tristep.codec.ear import PhoneReader, listening_mel
from tristep.codec.flow import NO_CODE
from tristep.codec.tokenizer import encode_frames
from tristep.codec.voice import Voice, list_voices, read_voice

HELD_OUT = 30
"""Every so many utterances, one is held out."""
BATCH, MOST_CODES, STEPS, PEAK_LR = 24, 100, 3000, 2e-3
CUT_SHARE = 0.6
"""Of the stretches, whose end is hidden."""
NUM_UNSURE = 6
"""Frames at the beginning of a stretch from the middle, whose context is missing."""


@dataclass(frozen=True)
class Heard:
    """Codes, and what is heard when they sound."""

    codes: Tensor
    """Shape `(T,)`."""
    probs: Tensor
    """Of each phone in each frame of 20 ms, shape `(stride * T, P)`."""


class Sounder:
    """Sounds codes and listens to them."""

    def __init__(self, codec: Codec, reader: PhoneReader) -> None:
        self.codec, self.reader = codec, reader

    @torch.inference_mode()
    def hear(self, codes: Sequence[int], voice: Voice, seed: int) -> Heard:
        """Say codes in a voice, and listen."""
        wanted = torch.tensor(codes)
        stream = self.codec.flow.stream(self.codec.manner(voice), seed)
        mel = torch.cat([stream.push(wanted), stream.finish()], dim=1)  # (M, F)
        frames = encode_frames(listening_mel(mel), self.codec.encoder)
        return Heard(wanted, self.reader(frames.float()[None])[0].softmax(dim=-1))


def read_codes(paths: Sequence[Path], most: int | None, seed: int) -> list[list[int]]:
    """Read the codes of the utterances that are learnt from, in a random order, at most so many.

    Raises:
        ValueError: If there are none.
    """
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    found = [row["codes"] for row in rows if row["codes"] and row.get("split", "train") == "train"]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))} hold no codes of split 'train': give the TTS mode's utterances")
    return [found[place] for place in np.random.default_rng(seed).permutation(len(found))[:most]]


def stretch(heard: Heard, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a stretch: codes `(MOST_CODES,)`, what is heard, and in which frames that is known.

    Its end is often hidden, and what is heard there is not asked for.
    """
    first = int(rng.integers(max(1, len(heard.codes) - MOST_CODES + 1)))
    num = len(heard.codes[first : first + MOST_CODES])
    if rng.random() < CUT_SHARE:
        num = int(rng.integers(1, num + 1))
    codes = F.pad(heard.codes[first : first + num], (0, MOST_CODES - num), value=NO_CODE)
    stride = len(heard.probs) // len(heard.codes)
    probs = heard.probs[stride * first : stride * (first + num)]
    places = torch.arange(stride * MOST_CODES)
    known = (places < len(probs)) & (places >= (NUM_UNSURE if first else 0))
    return codes, F.pad(probs, (0, 0, 0, len(places) - len(probs))), known


def learn(listener: CodeListener, heard: Sequence[Heard], num_steps: int, seed: int = 0) -> None:
    """Teach a listener what is heard of codes."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(listener.train().parameters(), PEAK_LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, num_steps, pct_start=0.1)
    for _ in track(range(num_steps), description="learning to foretell"):
        drawn = [stretch(heard[int(rng.integers(len(heard)))], rng) for _ in range(BATCH)]
        codes, probs, known = (torch.stack(column) for column in zip(*drawn, strict=True))
        loss = -(probs * listener(codes)).sum(dim=-1)[known].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    listener.eval()


@torch.inference_mode()
def agreement(listener: CodeListener, heard: Sequence[Heard]) -> float:
    """Return the share of frames whose likeliest phone is foretold."""
    right = [listener(one.codes[None])[0].argmax(dim=-1) == one.probs.argmax(dim=-1) for one in heard]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Sound utterances, listen to them, and write the listener."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("utterances", type=existing, nargs="+", help="JSON lines of words and codes")
    parser.add_argument("--phone-reader", type=existing, required=True, help="phone_reader.safetensors")
    parser.add_argument("--model", default="nano", help="weights with codec and voices (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {LISTENER}")
    parser.add_argument("--most", type=int, default=2400, help="utterances to sound (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of learning (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = find_weights(asked.model)
    codec = Codec.load(folder / "codec", load_encoder(folder))
    voices = [read_voice(folder / "voices", name) for name in list_voices(folder / "voices")]
    sounder, rng = Sounder(codec, PhoneReader.load(asked.phone_reader)), np.random.default_rng(asked.seed)
    heard = [
        sounder.hear(codes, voices[rng.integers(len(voices))], number)
        for number, codes in enumerate(
            track(read_codes(asked.utterances, asked.most, asked.seed), description="hearing")
        )
    ]
    torch.manual_seed(asked.seed)
    listener, held_out = CodeListener(codec.config.tokenizer), heard[::HELD_OUT]
    learn(listener, [one for number, one in enumerate(heard) if number % HELD_OUT], asked.steps)
    asked.out.mkdir(parents=True, exist_ok=True)
    listener.save(asked.out / LISTENER)
    share = agreement(listener, held_out)
    print(
        f"{len(heard):,} utterances; of {len(held_out)} unseen ones {share:.1%} of the frames are foretold: {asked.out}"
    )


if __name__ == "__main__":
    main()
