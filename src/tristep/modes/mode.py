"""A mode is data construction x optimisation target x decoding constraint; here the three are joined.

The three files of a mode's folder satisfy the three protocols as they are: a mode holds two modules and a
function. The backbone has never heard of any of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tristep.backbone.model import Backbone
from tristep.chat import Turn
from tristep.modes.asr import data as asr_data
from tristep.modes.asr import decoding as asr_decoding
from tristep.modes.asr.data import Style
from tristep.modes.asr.objective import asr_losses
from tristep.vocab import TextTokenizer, Vocab


class DataConstruction(Protocol):
    """`data.py`: what the model is given."""

    def turns(self, num_slots: int, style: Style = ...) -> list[Turn]:
        """Build the turns that ask for an answer to a sound of `num_slots` audio embeddings."""


class Objective(Protocol):
    """`objective.py`: what is optimised."""

    def __call__(self, backbone: Backbone, batch: Any, /, *args: Any, **weights: Any) -> dict[str, Tensor]:
        """Return `loss`, `num_targets` and the parts that the training step logs."""


class Constraint(Protocol):
    """What may be written, as masks of shape `(V,)` where True keeps."""

    @property
    def vocab(self) -> Vocab:
        """The id space of the masks."""

    def opening(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed first."""

    def body(self, num_tokens: int) -> Tensor:
        """Return the tokens allowed after that."""


class Written(Protocol):
    """What a completion says."""

    @property
    def text(self) -> str:
        """The words."""

    @property
    def language(self) -> str | None:
        """Their language, None where nobody spoke."""


class Decoding(Protocol):
    """`decoding.py`: what may be written, when to stop, and how it reads."""

    def Constraint(self, vocab: Vocab, language: str | None = None) -> Constraint:  # noqa: N802
        """Build what may be written, in any language or in one."""

    def token_budget(self, duration_s: float) -> int:
        """Return the most tokens that may be written for a sound of `duration_s`."""

    def repetition_start(self, tokens: Sequence[int]) -> int | None:
        """Return how many tokens can be kept when the end is a loop, None if it is not."""

    def parse(self, tokens: Sequence[int], vocab: Vocab, tokenizer: TextTokenizer) -> Written:
        """Read what was written."""


@dataclass(frozen=True)
class Mode:
    """One of asr, tts, realtime."""

    name: str
    data: DataConstruction
    objective: Objective
    decoding: Decoding


ASR = Mode("asr", asr_data, asr_losses, asr_decoding)
