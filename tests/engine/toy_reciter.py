"""A toy backbone with codes, which says something else for every text."""

from __future__ import annotations

from functools import cache

import torch

from tristep.backbone.model import Backbone
from tristep.config import load_backbone_config


@cache
def toy() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(load_backbone_config("toy"))
    backbone.grow_vocabulary(32)
    torch.nn.init.normal_(backbone.embedding.grown, std=0.5)
    return backbone.eval()
