"""One audio-language backbone, three operational modes: recognition, synthesis, spoken dialogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tristep.engine.engine import Engine

__version__ = "0.1.0"


def load(name: str | Path = "nano", **settings: Any) -> Engine:
    """Load a model by the name it ships under, or from a folder of weights.

        tristep.load("nano").transcribe("hello.wav").text

    Args:
        name: A name such as `nano`, or a folder that `save_backbone` wrote.
        settings: `device` and `dtype`, as `Engine.load` takes them.
    """
    from tristep.engine.engine import Engine  # torch is only imported by who needs it

    return Engine.load(name, **settings)
