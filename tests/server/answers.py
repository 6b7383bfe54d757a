"""What a `Worker` is tested with: answers that are quick to load, and misbehave when told to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tristep.server.worker import Answer, Check, Line


def load() -> Answer:
    return answer


def load_nothing() -> Answer:
    raise ValueError("there are no weights 'gone'")


def die() -> Answer:
    os._exit(1)


def answer(job: tuple[str, Any], check_in: Line) -> Iterator[Any]:
    verb, given = job
    if verb == "count":
        yield from range(given)
    elif verb == "refuse":
        raise ValueError(given)
    elif verb == "fail":
        raise KeyError(given)
    elif verb == "die":
        yield "soon"
        os._exit(1)
    elif verb == "count for ever":
        yield from count_until_left(given, check_in)
    elif verb == "echo":
        yield from echo(given, check_in)


def echo(path: Path, line: Line) -> Iterator[Any]:
    """Say again what is said, until nobody listens; then write to a file that it is so."""
    try:
        while True:
            yield from line.told(wait_s=60)
    finally:
        path.write_text("left")


def count_until_left(path: Path, check_in: Check) -> Iterator[int]:
    """Count until nobody listens, and write to a file that it is so."""
    number = 0
    try:
        while True:
            check_in()
            yield number
            number += 1
    finally:
        path.write_text("left")
