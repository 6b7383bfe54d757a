"""What a run says while it trains: a progress bar for people, JSON lines for programs.

`metrics.jsonl` has one line per report, `{"step", "kind": "train" | "eval", ...}`, and each step once: a
resumed run drops the lines after the step it resumes from.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Line = dict[str, Any]


def read_metrics(path: Path, last_step: int | None = None) -> list[Line]:
    """Read the lines up to a step; a line that a killed process left half written is dropped."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if last_step is None or line["step"] <= last_step:
            lines.append(line)
    return lines


def truncate_metrics(path: Path, last_step: int) -> None:
    """Drop the lines after a step, in one stroke."""
    lines = read_metrics(path, last_step)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(partial, path)


def append_metrics(path: Path, line: Line) -> None:
    """Add a line; a value that is not finite is written as null, which JSON can hold."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with path.open("a") as file:
        file.write(json.dumps(finite) + "\n")


class ProgressBar:
    """Loss, learning rate, speed and remaining time on stderr: a bar, or plain lines in a file."""

    def __init__(self, steps: int, done: int, shown: bool = True) -> None:
        """Begin at the step a run resumes from.

        Args:
            steps: The step at which the run ends.
            done: Steps taken already.
            shown: False in the processes that have nothing to say.
        """
        self.console = Console(stderr=True, quiet=not shown, soft_wrap=True, highlight=False)
        self.live = shown and self.console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.live)
        self.bar: TaskID = self.progress.add_task("training", total=steps, completed=done, status="")
        self.steps = steps

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def advance(self, step: int) -> None:
        """Show that a step is done."""
        self.progress.update(self.bar, completed=step)

    def report(self, line: Line, seconds_left: float) -> None:
        """Show the losses of a line of metrics."""
        rates = "/".join(f"{value:.1e}" for key, value in line.items() if key.startswith("lr/"))
        status = f"loss {line.get('loss', math.nan):.4f}  lr {rates}  {line['targets_per_s']:.0f} targets/s"
        self.progress.update(self.bar, status=status)
        if not self.live:
            minutes = f"{seconds_left / 60:.1f} min left"
            self.console.print(f"step {line['step']}/{self.steps}  {status}  {minutes}")

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(sentence, markup=False)
