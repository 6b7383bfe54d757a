"""The picture of a run: losses, learning rates and gradient norm over the steps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = dict[str, Any]

PANELS = ("reward/", "rollout/")
"""Prefixes of what has panels of its own: what rollouts earned, and what they were like."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
NOT_LOSSES = {"step", "kind", "grad_norm", "seconds", "targets_per_s", "num_targets", "num_skipped"}


def draw_metrics(lines: list[Line], path: Path, title: str = "") -> None:
    """Draw the lines of a run's metrics to a PNG file.

    Training losses are drawn faintly with their running mean on top, evaluations as dots. A measure that is
    evaluated but not trained on, such as an error rate, has a panel of its own, and so have rewards and rollouts.
    """
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    losses = _names(train)
    others = [name for name in _names(evaluations) if name not in losses]
    panels = [[name for name in _all_names(train) if name.startswith(prefix)] for prefix in PANELS]
    num_rows = 3 if any(panels) else 2
    figure = Figure(figsize=(11, 3.75 * num_rows), dpi=120, layout="constrained")
    axes = figure.subplots(num_rows, 2).flat
    _draw_losses(axes[0], losses, train, evaluations)
    _draw_evaluations(axes[1], others, evaluations)
    _draw_rates(axes[2], train)
    _draw_norm(axes[3], train)
    for panel, names, title in zip(list(axes)[4:], panels, ("rewards", "rollouts"), strict=False):
        _draw_rollouts(panel, names, train, title)
    figure.suptitle(title)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)


def running_mean(values: list[float], weight: float = 0.7) -> list[float]:
    """Smooth a curve by an exponential mean that is not pulled towards zero at its start."""
    total = mass = 0.0
    smooth = []
    for value in values:
        total, mass = weight * total + (1 - weight) * value, weight * mass + 1 - weight
        smooth.append(total / mass)
    return smooth


def _names(lines: list[Line]) -> list[str]:
    return [name for name in _all_names(lines) if name not in NOT_LOSSES and not name.startswith(("lr/", *PANELS))]


def _all_names(lines: list[Line]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _curve(lines: list[Line], name: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw_losses(axes: Axes, names: Iterable[str], train: list[Line], evaluations: list[Line]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        steps, values = _curve(train, name)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, running_mean(values), color=colour, linewidth=1.8, label=name)
        steps, values = _curve(evaluations, name)
        if steps:
            axes.plot(steps, values, "o--", color=colour, markersize=5, linewidth=1, label=f"{name}, evaluated")
    _finish(axes, "losses")


def _draw_evaluations(axes: Axes, names: Iterable[str], evaluations: list[Line]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        steps, values = _curve(evaluations, name)
        axes.plot(steps, values, "o-", color=colour, markersize=5, linewidth=1.5, label=name)
        if steps:
            axes.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), (4, 4), textcoords="offset points", fontsize=8)
    _finish(axes, "evaluation")


def _draw_rates(axes: Axes, train: list[Line]) -> None:
    names = dict.fromkeys(key for line in train for key in line if key.startswith("lr/"))
    for name, colour in zip(names, COLOURS, strict=False):
        axes.plot(*_curve(train, name), color=colour, linewidth=1.8, label=name.removeprefix("lr/"))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    _finish(axes, "learning rate")


def _draw_rollouts(axes: Axes, names: Iterable[str], train: list[Line], title: str) -> None:
    """Draw curves of different units, each as a share of its largest value, which the legend gives."""
    for name, colour in zip(names, COLOURS, strict=False):
        steps, values = _curve(train, name)
        most = max(map(abs, values), default=0.0) or 1.0
        label = f"{name.partition('/')[2]} (1 = {most:.3g})"
        axes.plot(steps, running_mean([value / most for value in values]), color=colour, linewidth=1.8, label=label)
    _finish(axes, title)


def _draw_norm(axes: Axes, train: list[Line]) -> None:
    steps, values = _curve(train, "grad_norm")
    axes.plot(steps, values, color=COLOURS[0], alpha=0.25, linewidth=1)
    axes.plot(steps, running_mean(values), color=COLOURS[0], linewidth=1.8)
    if values and min(values) > 0:
        axes.set_yscale("log")
    _finish(axes, "norm of the gradient, before clipping")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    elif not axes.lines:
        axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", transform=axes.transAxes, color="#888888")
