"""Eight bits a weight: the decoder's projections as int8 with one scale a row, computing in bfloat16.

Writing one token reads every weight once, so on a CPU its time is the time to read them, and int8 has a quarter of the
bytes of float32. Only weights are rounded, by rows (the vector-wise scheme of Dettmers et al. 2022, without its split
of outliers); what flows between the projections is bfloat16. The kernel is torch's own, and a row of its result does
not depend on the rows beside it: what is decoded in a batch, or verified as a draft, is what is decoded alone.

Of the scores of all tokens only the best matter, and those are computed again: there the hidden state is rounded too,
where the processor multiplies eight-bit numbers, in half the time for one row and a fifth for several. In the blocks
that would cost a transcript 0.02 nats a token. The ear does it too, with rows of two bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.backbone.audio_encoder import EncoderBlock
from tristep.backbone.model import Backbone, TokenTable
from tristep.backbone.transformer import fuse_layers

Precision = Literal["fp32", "bf16", "int8"]
MANY_TOKENS = 24
"""From so many tokens a sequence on, a bfloat16 product with unpacked weights is used: a prompt is read faster so.

How many sequences there are does not matter, so that none is computed in another way because of its neighbours."""

NUM_RESCORED = 8
"""Tokens whose scores are computed again, in float32."""
TINY, MIDDLE = torch.tensor(1e-8), torch.tensor(128.5)
"""The scale of a row of zeros, and what stands for zero, and rounds, among bytes."""


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights `(O, I)` to int8; return them and the scale of each row in float32, shape `(O,)`."""
    weight = weight.float()
    scale = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).clamp(min=1e-8) / 127
    return (weight / scale[:, None]).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A projection `(B, T, I) -> (B, T, O)`, or of rows `(B, I)`, that keeps int8 weights `(O, I)`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight, scale = rounded(weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.bfloat16())
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.dim() == 3 and hidden.shape[1] >= MANY_TOKENS:
            out = F.linear(hidden, self.weight.bfloat16()) * self.scale
        else:
            rows = hidden.reshape(-1, hidden.shape[-1])
            out = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)
            out = out.view(*hidden.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def multiplies_int8() -> bool:
    """Return whether this processor sums products of eight-bit numbers without overflow (VNNI)."""
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_vnni") or has.get("avx_vnni"))


class RoundedLinear(nn.Module):
    """A projection `(..., I) -> (..., O)` in float32 of int8 weights that rounds its rows too, each by its own scale.

    Sums of whole numbers are exact: a row of the result does not depend on those beside it, nor on how many there are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, num_bytes: int = 1) -> None:
        """Round weights.

        Args:
            weight: Shape `(O, I)`.
            bias: Shape `(O,)`.
            num_bytes: How many of them a number of the rows is rounded to: one, or two, for twice the time.
        """
        super().__init__()
        weight, self.scale = rounded(weight)
        self.bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        self.zeros = torch.zeros(len(weight), dtype=torch.long)
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.num_bytes = num_bytes

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        scale = torch.add(TINY, rows.abs().amax(dim=1, keepdim=True), alpha=1 / 127)  # (N, 1)
        whole = torch.addcdiv(MIDDLE, rows, scale).to(torch.uint8)
        sums = self.products(whole)
        if self.num_bytes == 2:
            rest = torch.addcdiv(128.0 - whole.float(), rows, scale)  # half a unit at most: 127 steps of 1 / 254
            sums = sums + self.products(torch.add(MIDDLE, rest, alpha=254).to(torch.uint8)) / 254
        return torch.addcmul(self.bias, sums, scale).view(*hidden.shape[:-1], -1)

    def products(self, whole: Tensor) -> Tensor:
        """Multiply rows of bytes, of which 128 stands for zero, `(N, I)` -> `(N, O)`."""
        padded = F.pad(whole, (0, 0, 0, few_sizes(len(whole)) - len(whole)))
        sums = torch.ops.onednn.qlinear_pointwise(
            padded, 1.0, 128, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums[: len(whole)]


def few_sizes(num: int) -> int:
    """Round up to eight sizes an octave: oneDNN keeps a kernel for every number of rows."""
    step = 1 << max(num.bit_length() - 4, 0)
    return -(-num // step) * step


class Int8Table(TokenTable):
    """A token table whose logits come from int8 rows; looking tokens up reads bfloat16 ones."""

    def __init__(self, table: TokenTable) -> None:
        nn.Module.__init__(self)
        self.weight, self.grown = (nn.Parameter(rows.bfloat16(), False) for rows in (table.weight, table.grown))
        kernel = RoundedLinear if multiplies_int8() else Int8Linear
        self.project_old, self.project_grown = kernel(table.weight), Int8Linear(table.grown)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token: `(..., D)` -> `(..., V)` in float32, the best ones by their bfloat16 rows.

        The kernel's scores have eight bits, and the best two of them would often be equal.
        """
        coarse = torch.cat([self.project_old(hidden).float(), self.project_grown(hidden).float()], dim=-1)
        best = coarse.topk(NUM_RESCORED, dim=-1).indices  # (..., N)
        exact = (self(best).float() * hidden.float()[..., None, :]).sum(dim=-1)
        return coarse.scatter(-1, best, exact)

    def grown_logits(self, hidden: Tensor) -> Tensor:
        return self.project_grown(hidden).float()


def compute_in_int8(backbone: Backbone) -> None:
    """Replace the projections of a backbone's decoder and its tables, in place and for good; the ear stays as it is."""
    for part in filter(None, (backbone.decoder, backbone.draft_heads)):
        part.bfloat16()
        replace_projections(part, Int8Linear)
    tied = backbone.head is backbone.embedding
    backbone.head = Int8Table(backbone.head)
    backbone.embedding = backbone.head if tied else backbone.embedding.bfloat16()


def hear_in_int8(backbone: Backbone) -> None:
    """Let a backbone's ear multiply eight-bit numbers, in place and for good, if this processor does.

    Its rows have two bytes: one would double the speed again, and may cost half a point of word errors
    (`docs/log.md`).
    """
    if not multiplies_int8():
        return
    for block in backbone.audio_encoder.blocks:
        assert isinstance(block, EncoderBlock)
        block.fuse()
    fuse_layers(backbone.adaptor)
    for part in (backbone.audio_encoder, backbone.adaptor):
        replace_projections(part, partial(RoundedLinear, num_bytes=2))


def replace_projections(module: nn.Module, kind: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Replace every projection inside a module by one of a kind that is built from its weight and bias."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child.weight, child.bias))


def compute_in(backbone: Backbone, precision: Precision | None = None, *, hears: bool = False) -> None:
    """Settle what a backbone computes in from now on.

    Args:
        backbone: The model, its low-rank updates merged.
        precision: int8 on a processor and bf16 on a GPU if not given.
        hears: Whether its ear is used, and computes in int8 where the decoder does; else it stays as it is.

    Raises:
        ValueError: If there is no such precision, or the device can't compute in it.
    """
    on_cpu = backbone.embedding.weight.device.type == "cpu"
    precision = precision or ("int8" if on_cpu else "bf16")
    if precision not in ("fp32", "bf16", "int8"):
        raise ValueError(f"there is no precision {precision!r}: give fp32, bf16 or int8")
    if precision == "int8" and not on_cpu:
        raise ValueError("int8 is computed on a processor only: give bf16 or fp32 on a GPU")
    for part in filter(None, (backbone.decoder, backbone.draft_heads)):
        fuse_layers(part)
    if precision == "int8":
        compute_in_int8(backbone)
        if hears:
            hear_in_int8(backbone)
    for part in filter(None, (backbone.decoder, backbone.embedding, backbone.head, backbone.draft_heads)):
        part.to(torch.float32 if precision == "fp32" else torch.bfloat16)
