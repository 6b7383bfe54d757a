"""Shipping: the models that runs left behind become one checkpoint, rounded as it ships, that serves several modes.

    python -m tristep.training.ship --asr runs/sft/model --tts runs/speak/model --out weights/nano

What the runs left frozen is stored once; each mode adds its low-rank updates and the rows that its vocabulary gained.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import torch

from tristep.backbone.checkpoints import is_own, load_backbone, save_backbone, stored_tensors
from tristep.backbone.low_rank import LowRankLinear
from tristep.backbone.model import Backbone
from tristep.backbone.packing import SHIPPED


def without_low_rank(backbone: Backbone) -> Backbone:
    """Return a copy whose projections have no low-rank updates."""
    shared = deepcopy(backbone)
    for parent in list(shared.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.base)
    return shared


def check_shared(shared: Backbone, backbone: Backbone, mode: str) -> None:
    """Refuse a model whose frozen decoder is not the one that the others share."""
    theirs = stored_tensors(backbone)
    for name, tensor in stored_tensors(shared).items():
        # A mode that does not listen keeps whatever adaptor it began with.
        if not is_own(name) and not name.startswith("adaptor.") and not torch.equal(tensor, theirs[name]):
            raise ValueError(f"the {mode} model has another {name}: train all modes on the same frozen weights")


def ship(models: dict[str, Path], out: Path) -> None:
    """Join the models of several modes, the first of which gives what they share.

    Raises:
        ValueError: If they do not share their frozen weights.
    """
    loaded = {mode: load_backbone(folder) for mode, folder in models.items()}
    first, tokenizer = next(iter(loaded.values()))
    shared = without_low_rank(first)
    for mode, (backbone, _) in loaded.items():
        check_shared(shared, backbone, mode)
    save_backbone(shared, tokenizer, out, SHIPPED, {mode: backbone for mode, (backbone, _) in loaded.items()})


def main() -> None:
    """Join what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode in ("asr", "tts"):
        parser.add_argument(f"--{mode}", type=Path, help=f"the model of the run that taught {mode}")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder to write")
    options = parser.parse_args()
    models = {mode: folder for mode, folder in (("asr", options.asr), ("tts", options.tts)) if folder}
    if not models:
        parser.error("give at least one of --asr and --tts")
    ship(models, options.out)


if __name__ == "__main__":
    main()
