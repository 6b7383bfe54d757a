"""On what a benchmark was run: the last line under each table.

Not a benchmark: the others share it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence


def machine(packages: Sequence[str]) -> str:
    """Say which machine and which versions of packages it was, how busy, and when."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load, now = os.getloadavg()[0], time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return (
        f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load:.1f}; "
        f"Python {platform.python_version()}, {versions}; {now} UTC"
    )


def version(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
