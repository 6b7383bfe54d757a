"""What the commands of several packages ask of their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def existing(name: str) -> Path:
    """Take a file or folder that is there, as `type=` of an argument.

    Raises:
        argparse.ArgumentTypeError: If it is not, which argparse tells with the argument's name.
    """
    path = Path(name)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {name!r} in {Path.cwd()}")
    return path
