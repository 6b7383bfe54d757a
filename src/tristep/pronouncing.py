"""How English words are said: letters in, phones out, by a small network and the words that it gets wrong.

A few hours of speech teach a voice how phones sound, and not how tens of thousands of words are spelt; a table of words
without sound teaches that in minutes (`python -m tristep.corpus.pronunciations`). The network looks at each letter
among its neighbours and writes phones by CTC (Graves et al. 2006), two chances for each letter. Words of the table that
it gets wrong stand beside it, so every word of the table is right, and any other word is a guess.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tristep.phones import PHONES, SILENCE

SPELLING = "abcdefghijklmnopqrstuvwxyz'"
"""What words are spelt in."""
CHANCES = 2
"""Phones that a letter can stand for."""
WIDTH, NUM_LAYERS, KERNEL_SIZE = 256, 6, 5
BLANK = PHONES.index(SILENCE)
"""CTC's blank: within a word nobody is silent."""
WEIGHTS, EXCEPTIONS = "pronouncing.safetensors", "pronouncing.json"


class Pronouncer(nn.Module):
    """Letters -> phones."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(SPELLING) + 1, WIDTH, padding_idx=len(SPELLING))
        self.convs = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=WIDTH) for _ in range(NUM_LAYERS)
        )
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(NUM_LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(NUM_LAYERS + 1))
        self.dropout = nn.Dropout(0.1)
        self.writer = nn.Linear(WIDTH, CHANCES * len(PHONES))
        self.exceptions: dict[str, str] = {}
        """Words that the network gets wrong, and how they are said."""

    def forward(self, letters: Tensor) -> Tensor:
        """Return logits `(B, CHANCES * L, P)` over `PHONES` for padded letters `(B, L)`."""
        inside = (letters != len(SPELLING))[..., None]
        hidden = self.letters(letters)
        for conv, gate, norm in zip(self.convs, self.gates, self.norms, strict=False):
            hidden = hidden + self.dropout(F.glu(gate(conv((norm(hidden) * inside).mT).mT)))
        logits: Tensor = self.writer(self.norms[-1](hidden)).unflatten(2, (CHANCES, -1)).flatten(1, 2)
        return logits

    @torch.inference_mode()
    def guess(self, words: list[str]) -> list[str]:
        """Pronounce words by the network alone; every word has a letter of `SPELLING`."""
        letters, num_letters = spelling(words)
        best = self(letters).argmax(dim=-1)
        rows = (
            row[: CHANCES * int(num)].unique_consecutive().tolist() for row, num in zip(best, num_letters, strict=True)
        )
        return ["".join(PHONES[phone] for phone in row if phone != BLANK) for row in rows]

    def pronounce(self, word: str) -> str:
        """Return the phones of a word, as it is written or spoken; empty if it has no letter."""
        spelt = "".join(letter for letter in word.lower().replace("\u2019", "'") if letter in SPELLING).strip("'")
        if not spelt:
            return ""
        return self.exceptions.get(spelt) or self.guess([spelt])[0]

    def save(self, folder: Path) -> None:
        """Write the network in bfloat16, and its exceptions."""
        save_file({name: tensor.bfloat16() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        text = json.dumps(dict(sorted(self.exceptions.items())), ensure_ascii=False, indent=0)
        (folder / EXCEPTIONS).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Pronouncer:
        """Read what `save` wrote."""
        pronouncer = cls()
        weights = load_file(folder / WEIGHTS)
        pronouncer.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        pronouncer.exceptions = json.loads((folder / EXCEPTIONS).read_text(encoding="utf-8"))
        return pronouncer.eval().requires_grad_(False)


def spelling(words: list[str]) -> tuple[Tensor, Tensor]:
    """Spell words for the network: padded letters `(B, L)` and how many each word has `(B,)`."""
    rows = [torch.tensor([SPELLING.index(letter) for letter in word]) for word in words]
    letters = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=len(SPELLING))
    return letters, torch.tensor([len(row) for row in rows])


@cache
def english() -> Pronouncer:
    """Load the pronouncer that comes with the package."""
    with as_file(files("tristep") / "pronunciations") as folder:
        return Pronouncer.load(folder)
