"""A server as its users start it, in a process of its own, and what that process and its children hold.

Not a benchmark: `soak.py`, `fuzz.py` and `overhead.py` share it. By default it serves the toy of the tests, whose
weights know nothing and take a second to load; all that a server does around a model is real.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tristep

TESTS = Path(__file__).parents[1] / "tests"
KEY = "a-key-that-opens"
BEARER = {"Authorization": f"Bearer {KEY}"}
MIB = 1 << 20
FAULTS = ("Traceback", " ERROR ", "process ended", "never retrieved")
"""What a line of the log holds that tells of a failure nobody foresaw."""


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    address: str
    process: subprocess.Popen[str]
    log: Path
    patience_s: float = 60.0
    """Longest time until anything is answered."""

    @property
    def socket_address(self) -> str:
        """Where its WebSockets are."""
        return self.address.replace("http", "ws", 1)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def faults(self) -> list[str]:
        """Return the lines of its log that tell of failures."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if any(fault in line for fault in FAULTS)]


@dataclass(frozen=True)
class Held:
    """What a server's processes hold together."""

    resident_mb: float
    """Memory that is theirs or shared between them."""
    private_mb: float
    """Memory that is theirs alone: no files, no libraries."""
    num_files: int
    num_threads: int
    num_processes: int


def toy() -> Any:
    """Return the module of the tests that writes a toy."""
    sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []
    return import_module("server.toys")


@contextmanager
def serving(model: str, *options: str) -> Iterator[Served]:
    """Serve a model, `toy` for that of the tests, on a free port until the context ends."""
    with tempfile.TemporaryDirectory(prefix="tristep-served-") as folder:
        if model == "toy":
            model = str(Path(folder) / "toy")
            toy().write_toy(Path(model))
        served = start(model, options, Path(folder) / "log.txt")
        try:
            yield served
        finally:
            stop(served.process)


def start(model: str, options: Sequence[str], log: Path) -> Served:
    """Start `tristep serve` and wait until it answers.

    Raises:
        RuntimeError: If it ends instead.
    """
    command = [sys.executable, "-m", "tristep", "serve", "--model", model, "--port", "0", "--api-key", KEY, *options]
    environment = os.environ | {"PYTHONPATH": str(Path(tristep.__file__).parents[1])}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    address = process.stdout.readline().strip().rpartition(" ")[2].removesuffix("/v1")
    if not address:
        raise RuntimeError(f"the server ended before it served: {log.read_text(encoding='utf-8').strip()[-500:]}")
    return Served(address, process, log)


def stop(process: subprocess.Popen[str]) -> None:
    """End a server as an operator does, and at once if that takes too long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def held(root: int) -> Held:
    """Add up what a process and all that it has started hold.

    Raises:
        FileNotFoundError: Where there is no Linux's /proc.
    """
    pids = tree(root)
    pages = [Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split() for pid in pids]
    page_mb = resource.getpagesize() / MIB
    return Held(
        resident_mb=page_mb * sum(int(fields[1]) for fields in pages),
        private_mb=page_mb * sum(int(fields[1]) - int(fields[2]) for fields in pages),
        num_files=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        num_threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        num_processes=len(pids),
    )


def tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    tasks = Path(f"/proc/{root}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text(encoding="ascii").split()]
    return [root, *(pid for child in children for pid in tree(child))]
