"""Between: a policy that has learnt from rewards is brought back a part of the way to where it began.

    python -m tristep.training.between runs/realtime/model runs/rlhf_realtime/model --share 0.6 --out runs/between/model

Along the straight line between the two most of what was learnt comes before most of what was lost (Rame et al. 2024,
WARP), so a part of the way is often better than the whole. What modes share has to be the same. The same goes for two
files of a codec part's weights, `flow.safetensors` of a run and of the one that it went on from.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def blended(start: Mapping[str, Tensor], learnt: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights a share of the way; a block that only `learnt` has is nothing at the start (`scale` 0).

    Raises:
        ValueError: If `learnt` lacks something, or something has another shape.
    """
    if lost := [name for name in start if name not in learnt or learnt[name].shape != start[name].shape]:
        raise ValueError(f"{lost[0]} is missing or has another shape: give a part's weights, and those it went on from")
    out = {}
    for name, last in learnt.items():
        first = start.get(name, torch.zeros_like(last) if name.endswith(".scale") else last)
        out[name] = torch.lerp(first.float(), last.float(), share).to(last.dtype)
    return out


def main() -> None:
    """Bring together what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=existing, help="the model, or part of a codec, that a run began with")
    parser.add_argument("learnt", type=existing, help="what it left")
    parser.add_argument("--share", type=float, required=True, help="of the way; 0 is the start")
    parser.add_argument("--out", type=Path, required=True, help="what to write")
    options = parser.parse_args()
    if options.start.is_file():
        save_file(blended(load_file(options.start), load_file(options.learnt), options.share), options.out)
        return
    (start, tokenizer), (learnt, _) = load_backbone(options.start), load_backbone(options.learnt)
    bring_between(start, learnt, options.share)
    save_backbone(start, tokenizer, options.out, LEARNT_IN_FULL)


if __name__ == "__main__":
    main()
