"""Between: a policy that has learnt from rewards is brought back a part of the way to where it began.

    python -m tristep.training.between runs/realtime/model runs/rlhf_realtime/model --share 0.6 --out runs/between/model

Along the straight line between the two most of what was learnt comes before most of what was lost (Rame et al. 2024,
WARP), so a part of the way is often better than the whole. What modes share has to be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tristep.arguments import existing
from tristep.backbone.checkpoints import is_own, load_backbone, save_backbone
from tristep.backbone.model import Backbone
from tristep.training.stages import LEARNT_IN_FULL


@torch.no_grad()
def bring_between(start: Backbone, learnt: Backbone, share: float) -> None:
    """Move what is a mode's own in `start` by a share of the way to `learnt`: low-rank updates, and rows it gained.

    Raises:
        ValueError: If they differ in anything else.
    """
    theirs = dict(learnt.named_parameters())
    for name, parameter in start.named_parameters():
        if name in theirs and is_own(name) and theirs[name].shape == parameter.shape:
            parameter.lerp_(theirs[name], share)
        elif name not in theirs or not torch.equal(parameter, theirs[name]):
            raise ValueError(f"{name} differs, and is nothing that a mode has of its own: give a run and its start")


def main() -> None:
    """Bring together what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=existing, help="the model that a run began with")
    parser.add_argument("learnt", type=existing, help="the model that it left")
    parser.add_argument("--share", type=float, required=True, help="of the way; 0 is the start")
    parser.add_argument("--out", type=Path, required=True, help="the model to write")
    options = parser.parse_args()
    (start, tokenizer), (learnt, _) = load_backbone(options.start), load_backbone(options.learnt)
    bring_between(start, learnt, options.share)
    save_backbone(start, tokenizer, options.out, LEARNT_IN_FULL)


if __name__ == "__main__":
    main()
