"""The curves of a run that learns from rewards, as one small picture for a page: rewards, divergence, lengths, alarms.

    python -m tristep.training.curves recipes/nano/5_rlhf_realtime.toml runs/rlhf_realtime --out docs/rlhf_realtime.svg

Divergence is drawn below the alarm's limit, and lengths between the limits of theirs, as the recipe sets them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tristep.arguments import existing
from tristep.objectives.rewards import Limits
from tristep.training.metrics import read_metrics
from tristep.training.plots import COLOURS, running_mean
from tristep.training.policies import RewardedRecipe
from tristep.training.stages import load_recipe

Line = Mapping[str, Any]
SIZE_IN = (10.5, 2.9)


def draw_curves(lines: Sequence[Line], limits: Limits, updates: int, path: Path) -> None:
    """Draw a run as SVG.

    Args:
        lines: Its metrics.
        limits: Of its alarms.
        updates: Steps of a round.
        path: The file to write.
    """
    train = [line for line in lines if line["kind"] == "train"]
    figure = Figure(figsize=SIZE_IN, layout="constrained")
    rewards, divergence, lengths = figure.subplots(1, 3)
    names = [name for name in dict.fromkeys(key for line in train for key in line) if name.startswith("reward/")]
    for name, colour in zip(names, COLOURS, strict=False):
        reward = name.removeprefix("reward/")
        draw(rewards, train, name, colour, reward)
        held_out = [line for line in lines if line["kind"] == "eval" and reward in line]
        rewards.plot([line["step"] for line in held_out], [line[reward] for line in held_out], "o", color=colour)
    draw(divergence, train, "rollout/kl", COLOURS[0], "")
    draw(lengths, train, "rollout/num_tokens", COLOURS[0], "")
    divergence.axhline(limits.max_kl, color=COLOURS[1], linestyle=":")
    for limit in length_limits(train[::updates], limits):
        lengths.axhline(limit, color=COLOURS[1], linestyle=":")
    for axes, title in ((rewards, "rewards; held out: dots"), (divergence, "divergence, nats a token"),
                        (lengths, "tokens of an answer")):  # fmt: skip
        finish(axes, title, [line["step"] for line in lines if line["kind"] == "alarm"])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tristep"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw(axes: Axes, train: Sequence[Line], name: str, colour: str, label: str) -> None:
    """Draw what was measured of each round faintly, and its running mean."""
    points = [(line["step"], line[name]) for line in train if line.get(name) is not None]
    if points:
        steps, values = (list(part) for part in zip(*points, strict=True))
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, running_mean(values, 0.85), color=colour, linewidth=1.8, label=label)


def length_limits(rounds: Sequence[Line], limits: Limits) -> list[float]:
    """Return how short and how long answers may become: against those of the first rounds, as the alarm counts."""
    lengths = [line["rollout/num_tokens"] for line in rounds[: limits.window] if "rollout/num_tokens" in line]
    if not lengths:
        return []
    start = sum(lengths) / len(lengths)
    return [start / limits.max_length_ratio, start * limits.max_length_ratio]


def finish(axes: Axes, title: str, alarms: Sequence[int]) -> None:
    """Name a panel, and mark where an alarm stopped the run."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for step in alarms:
        axes.axvline(step, color=COLOURS[1])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=existing, help="what the run was asked to do")
    parser.add_argument("run", type=existing, help="its folder")
    parser.add_argument("--out", type=Path, required=True, help="the SVG to write")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    if not isinstance(recipe, RewardedRecipe):
        parser.error(f"{options.recipe} has no table [rl]: its run learns nothing from rewards")
    draw_curves(read_metrics(options.run / "metrics.jsonl"), recipe.alarms, recipe.rl.updates, options.out)


if __name__ == "__main__":
    main()
