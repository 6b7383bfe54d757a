"""Shipping: the models that runs left behind become one checkpoint, rounded as it ships, that serves several modes.

    python -m tristep.training.ship --asr runs/sft/model --tts runs/speak/model --out weights/mine
    python -m tristep.training.ship --tts runs/speak/model --into weights/nano

What the runs left frozen is stored once; each mode adds its low-rank updates, the rows that its vocabulary gained, and
its draft heads.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path

import torch

from tristep.arguments import existing
from tristep.backbone.checkpoints import (
    INDEX,
    is_own,
    load_backbone,
    read_json,
    save_backbone,
    save_mode,
    sha256,
    stored_tensors,
    write_text,
)
from tristep.backbone.low_rank import LowRankLinear
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED

MODES = ("asr", "tts", "realtime", "judge")


def without_own(backbone: Backbone) -> Backbone:
    """Return a copy whose projections have no low-rank updates, and that has no draft heads."""
    shared = deepcopy(backbone)
    shared.draft_heads = None
    shared.config = shared.config.model_copy(update={"num_draft_heads": 0})
    for parent in list(shared.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.base)
    return shared


def check_shared(shared: Backbone, backbone: Backbone, mode: str) -> None:
    """Refuse a model whose frozen decoder is not the one that the others share."""
    theirs = stored_tensors(backbone)
    for name, tensor in stored_tensors(shared).items():
        # The mode that does not listen keeps whatever adaptor it began with.
        unused = is_own(name) or (mode == "tts" and name.startswith("adaptor."))
        if not unused and not torch.equal(tensor, theirs[name]):
            raise ValueError(f"the {mode} model has another {name}: train all modes on the same frozen weights")


def ship(models: dict[str, Path], out: Path) -> None:
    """Join the models of several modes, the first of which gives what they share.

    Raises:
        ValueError: If they do not share their frozen weights.
    """
    loaded = {mode: load_backbone(folder) for mode, folder in models.items()}
    first, tokenizer = next(iter(loaded.values()))
    shared = without_own(first)
    for mode, (backbone, _) in loaded.items():
        check_shared(shared, backbone, mode)
    save_backbone(shared, tokenizer, out, SHIPPED, {mode: backbone for mode, (backbone, _) in loaded.items()})


def ship_into(models: dict[str, Path], folder: Path) -> None:
    """Put the models of some modes into a checkpoint, in the place of what it had for them; all else stays as it is.

    Raises:
        ValueError: If they do not share its frozen weights.
    """
    loaded = {mode: load_backbone(path)[0] for mode, path in models.items()}
    shared, index = load_backbone(folder)[0], read_json(folder / INDEX)
    for mode, backbone in loaded.items():
        check_shared(shared, backbone, mode)
    for mode, backbone in loaded.items():
        index["modes"][mode] = save_mode(backbone, folder, mode, SHIPPED)
    entries = [*index["tensors"].values(), *(e for own in index["modes"].values() for e in own["tensors"].values())]
    shards = sorted({shard for entry in entries for shard in entry["shards"]})
    index["shards"] = {shard: sha256(folder / shard) for shard in shards}
    write_text(folder / INDEX, json.dumps(index, indent=1))


def main() -> None:
    """Join what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode in MODES:
        parser.add_argument(f"--{mode}", type=existing, help=f"the model of the run that taught {mode}")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the checkpoint folder to write")
    where.add_argument("--into", type=existing, help="a checkpoint folder whose other modes stay as they are")
    options = parser.parse_args()
    models = {mode: folder for mode in MODES if (folder := getattr(options, mode))}
    if not models:
        parser.error(f"give at least one of {', '.join(f'--{mode}' for mode in MODES)}")
    if options.into:
        ship_into(models, options.into)
    else:
        ship(models, options.out)


if __name__ == "__main__":
    main()
