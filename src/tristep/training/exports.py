"""What a run has learnt, small enough to be carried home: shards of a given size and a report, and back again.

    python -m tristep.training.exports runs/speak --out carried --shard-mb 15
    python -m tristep.training.exports carried --recipe recipes/gpu/2_speak.toml --into runs/speak

Only what trained is in an export, in bfloat16. At home, where the recipe's start is, it becomes the run's model again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tristep.arguments import existing
from tristep.backbone.checkpoints import check_shards, read_json, read_piece, save_part, sha256
from tristep.backbone.packing import Rules
from tristep.training import codec, stages
from tristep.training.checkpoints import save_trained
from tristep.training.learnt import learnt
from tristep.training.metrics import read_metrics

REPORT = "report.json"
METRICS = "metrics.jsonl"


def export(run: Path, out: Path, shard_mb: float = 15.0, packing: Rules = "bf16") -> dict[str, Any]:
    """Write what a run has learnt: `learnt-N.safetensors`, `metrics.jsonl` and `report.json`.

    Args:
        run: The run's folder.
        out: Where to; what an earlier export left there is replaced.
        shard_mb: Largest size of a shard, in millions of bytes.
        packing: How the weights are rounded.

    Returns:
        The report: the step, every held-out measure before and after, the machine, and what the shards are.
    """
    trained = run / "trained.safetensors"
    if not trained.is_file():
        raise ValueError(f"{run} holds no trained.safetensors: name the folder of a run that has saved")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # A shard's header takes a little of its room.
    entries = save_part(load_file(trained), out, "learnt", packing, round(shard_mb * 0.98e6))
    lines = read_metrics(run / METRICS)
    file: Any = safe_open(trained, "pt")
    report = {
        "step": int(file.metadata()["step"]),
        "measures": {name: {"first": first, "last": last} for name, (first, last) in learnt(lines).items()},
        "seconds": max((line["seconds"] for line in lines if "seconds" in line), default=0.0),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "torch": torch.__version__,
        "tensors": entries,
        "shards": {path.name: sha256(path) for path in sorted(out.glob("*.safetensors"))},
    }
    shutil.copy(run / METRICS, out / METRICS)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    return report


def bring_home(exported: Path, recipe_path: Path, run: Path, data_root: Path) -> None:
    """Make a run's folder of what was exported: its weights to use and, beside its recipe's start, its model.

    Raises:
        ValueError: If a shard is missing or damaged, or the recipe is another.
    """
    report = read_json(exported / REPORT)
    check_shards(exported, report["shards"])
    run.mkdir(parents=True, exist_ok=True)
    save_trained(read_export(report["tensors"], exported), report["step"], run / "trained.safetensors")
    shutil.copy(exported / METRICS, run / METRICS)
    if codec.part_of(recipe_path):
        codec.save_codec(codec.load_codec_recipe(recipe_path), run)
    else:
        stages.save_trained(stages.load_recipe(recipe_path), data_root, run)


def read_export(entries: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an export, in float32 but for whole numbers."""
    files = {shard: safe_open(folder / shard, "pt") for entry in entries.values() for shard in entry["shards"]}
    tensors = {}
    for name, entry in entries.items():
        pieces = [read_piece(files[shard], name, number, entry) for number, shard in enumerate(entry["shards"])]
        tensors[name] = (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).reshape(entry["shape"])
    return tensors


def main() -> None:
    """Export a run, or bring an export home."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=existing, help="the folder of a run, or of an export")
    parser.add_argument("--out", type=Path, help="export the run to this folder")
    parser.add_argument("--shard-mb", type=float, default=15.0, help="largest size of a shard, in millions of bytes")
    parser.add_argument("--into", type=Path, help="make this run's folder of the export")
    parser.add_argument("--recipe", type=existing, help="the recipe of the run that was exported")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that the recipe's corpora lie in")
    options = parser.parse_args()
    if options.out:
        export(options.folder, options.out, options.shard_mb)
    elif options.into and options.recipe:
        bring_home(options.folder, options.recipe, options.into, options.data)
    else:
        parser.error("give --out to export a run, or --recipe and --into to bring an export home")


if __name__ == "__main__":
    main()
