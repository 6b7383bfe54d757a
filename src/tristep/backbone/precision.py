"""What a model computes in: on a CPU, the decoder's projections in four or eight bits a weight, bfloat16 between them.

Writing one token reads every weight once, so on a CPU its time is the time to read them. Only weights are rounded: to
eight bits with one scale a row (the vector-wise scheme of Dettmers et al. 2022, without its split of outliers), or to
four with a step and a middle for every 32 along a row, as the frozen text model ships (`packing.py`). The kernels are
torch's own, and a row of their results does not depend on the rows beside it: what is decoded in a batch, or verified
as a draft, is what is decoded alone.

Of the scores of all tokens only the best matter, and those are computed again: there the hidden state is rounded too,
where the processor multiplies eight-bit numbers, in half the time for one row and a fifth for several. In the blocks
that would cost a transcript 0.02 nats a token. The ear does it too, with rows of two bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tristep.backbone.audio_encoder import EncoderBlock
from tristep.backbone.model import Backbone, TokenTable
from tristep.backbone.packing import GROUP
from tristep.backbone.transformer import fuse_layers

Precision = Literal["fp32", "bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MANY_TOKENS = 24
"""From so many tokens a sequence on, a bfloat16 product with unpacked weights is used: a prompt is read faster so.

How many sequences there are does not matter, so that none is computed in another way because of its neighbours."""

NUM_RESCORED = 8
"""Tokens whose scores are computed again, in float32."""
TINY = torch.tensor(1e-8)
"""Added to the largest of a row, which may be zero."""
ONE_BYTE, TWO_BYTES = torch.tensor(128.5), torch.tensor(128 * 256 + 128.5)
"""What stands for zero, and rounds, among numbers of one byte and of two (of which each byte has 128 for zero)."""


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
        hidden = hidden.bfloat16()
        if hidden.dim() == 3 and hidden.shape[1] >= MANY_TOKENS:
            out = F.linear(hidden, self.weight.bfloat16()) * self.scale
        else:
            out = self.product(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def product(self, rows: Tensor) -> Tensor:
        """Multiply a few rows, `(N, I)` -> `(N, O)`."""
        return torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)


class Int4Linear(Int8Linear):
    """A projection that writes tokens with weights of four bits; where it reads many, they have eight."""

    packed: Tensor
    """Two weights a byte, laid out for the processor."""
    levels: Tensor
    """Step and middle of every group, bfloat16, shape `(I / 32, O, 2)`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        codes, levels = levels_of(weight)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("levels", levels)

    def product(self, rows: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.levels)


def levels_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights `(O, I)` to 16 levels a group; return codes, int32, and step and middle, `(I / 32, O, 2)`."""
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)  # (O, I / 32, 1)
    step = ((high - low) / 15).clamp(min=1e-8).bfloat16()
    middle = (low + 8 * step.float()).bfloat16()  # what the code 8 stands for
    codes = ((groups - middle.float()) / step.float()).round_().add_(8).clamp_(0, 15)
    return codes.view(weight.shape).int(), torch.cat([step, middle], dim=2).transpose(0, 1).contiguous()


def four_bits(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """Return a projection with weights of four bits, or of eight if the kernel does not take its shape."""
    fits = len(weight) % 16 == 0 and weight.shape[1] % GROUP == 0
    return (Int4Linear if fits else Int8Linear)(weight, bias)


def multiplies_int8() -> bool:
    """Return whether this processor sums products of eight-bit numbers without overflow (VNNI)."""
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_vnni") or has.get("avx_vnni"))


class RoundedLinear(nn.Module):
    """A projection `(..., I) -> (..., O)` of int8 weights that rounds its rows too, each by its own scale.

    Sums of whole numbers are exact: a row of the result does not depend on those beside it, nor on how many there are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, num_bytes: int = 2) -> None:
        """Round weights.

        Args:
            weight: Shape `(O, I)`.
            bias: Shape `(O,)`.
            num_bytes: How many of them a number of the rows is rounded to: one or two.
        """
        super().__init__()
        weight, scale = rounded(weight)
        self.scale = scale / (127 if num_bytes == 1 else 32_512)
        self.bias = None if bias is None else bias.detach().float()
        self.zeros = torch.zeros(len(weight), dtype=torch.long)
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.num_bytes = num_bytes

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        most = torch.add(TINY, rows.abs().amax(dim=1, keepdim=True))  # (N, 1)
        if self.num_bytes == 1:
            out = self.products(torch.addcdiv(ONE_BYTE, rows, most, value=127).to(torch.uint8))
        else:
            whole = torch.addcdiv(TWO_BYTES, rows, most, value=32_512).to(torch.uint16)
            low, high = self.products(split_bytes(whole)).view(2, len(rows), -1).unbind()
            out = torch.add(low, high, alpha=256)
        out = out * most if self.bias is None else torch.addcmul(self.bias, out, most)
        return out.to(hidden.dtype).view(*hidden.shape[:-1], -1)

    def products(self, whole: Tensor) -> Tensor:
        """Multiply rows of bytes, of which 128 stands for zero, `(N, I)` -> `(N, O)`."""
        num_added = few_sizes(len(whole)) - len(whole)
        padded = F.pad(whole, (0, 0, 0, num_added)) if num_added else whole
        sums = torch.ops.onednn.qlinear_pointwise.default(
            padded, 1.0, 128, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return sums[: len(whole)] if num_added else sums


def split_bytes(whole: Tensor) -> Tensor:
    """Lay the low bytes of rows of two-byte numbers `(N, I)`, then the high ones, below one another, `(2 N, I)`."""
    return whole.view(torch.uint8).view(*whole.shape, 2).permute(2, 0, 1).reshape(-1, whole.shape[1])


def few_sizes(num: int) -> int:
    """Round up to eight sizes an octave: oneDNN keeps a kernel for every number of rows."""
    step = 1 << max(num.bit_length() - 4, 0)
    return -(-num // step) * step


Kind = Callable[..., nn.Module]
"""Builds a projection from its weight and bias."""


def for_rows(num_bytes: int) -> Kind:
    """Return the projection that rounds rows to so many bytes, or the one that rounds none if the processor can't."""
    return partial(RoundedLinear, num_bytes=num_bytes) if multiplies_int8() else Int8Linear


class Int8Table(TokenTable):
    """A token table whose logits come from int8 rows; looking tokens up reads bfloat16 ones."""

    def __init__(self, table: TokenTable) -> None:
        nn.Module.__init__(self)
        self.weight, self.grown = (nn.Parameter(rows.bfloat16(), False) for rows in (table.weight, table.grown))
        self.project_old, self.project_grown = for_rows(1)(table.weight), Int8Linear(table.grown)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token: `(..., D)` -> `(..., V)` in float32, the best ones by their bfloat16 rows.

        The kernel's scores have eight bits, and the best two of them would often be equal.
        """
        coarse = torch.cat([self.project_old(hidden.float()).float(), self.grown_logits(hidden)], dim=-1)
        best = coarse.topk(NUM_RESCORED, dim=-1).indices  # (..., N)
        exact = (self(best).float() * hidden.float()[..., None, :]).sum(dim=-1)
        return coarse.scatter(-1, best, exact)

    def grown_logits(self, hidden: Tensor) -> Tensor:
        return self.project_grown(hidden.float()).float()


def compute_in_few_bits(backbone: Backbone, kind: Kind) -> None:
    """Replace the projections of a backbone's decoder and its tables, in place and for good; the ear stays as it is."""
    for part in filter(None, (backbone.decoder, backbone.draft_heads)):
        part.bfloat16()
        replace_projections(part, kind)
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
        replace_projections(part, for_rows(2))


def replace_projections(module: nn.Module, kind: Kind) -> None:
    """Replace every projection inside a module by one of a kind that is built from its weight and bias."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, kind(child.weight, child.bias))


def compute_in(backbone: Backbone, precision: Precision | None = None, *, hears: bool = False) -> None:
    """Settle what a backbone computes in from now on.

    Args:
        backbone: The model, its low-rank updates merged.
        precision: int8 on a processor and bf16 on a GPU if not given. In int4 a token takes a third less time, and
            words are two or three points more often wrong, written or said (`docs/log.md`).
        hears: Whether its ear is used, and computes in int8 where the decoder computes in int8 or int4; else it stays
            as it is.

    Raises:
        ValueError: If there is no such precision, or the device can't compute in it.
    """
    on_cpu = backbone.embedding.weight.device.type == "cpu"
    precision = precision or ("int8" if on_cpu else "bf16")
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}: give {', '.join(PRECISIONS)}")
    if precision in ("int8", "int4") and not on_cpu:
        raise ValueError(f"{precision} is computed on a processor only: give bf16 or fp32 on a GPU")
    for part in filter(None, (backbone.decoder, backbone.draft_heads)):
        fuse_layers(part)
    if precision in ("int8", "int4"):
        compute_in_few_bits(backbone, four_bits if precision == "int4" else Int8Linear)
        if hears:
            hear_in_int8(backbone)
    for part in filter(None, (backbone.decoder, backbone.embedding, backbone.head, backbone.draft_heads)):
        part.to(torch.float32 if precision == "fp32" else torch.bfloat16)
