"""Weights in few bits: how each tensor of a checkpoint is stored, and what it reads back as.

`int8` is one symmetric scale per row. `int4` is llama.cpp's Q4_1 with cheaper overhead: groups of 32 along
the input have a step and a lowest level of their own, kept as 8-bit integers under one bf16 scale each per
row, 4.5 bits a weight in all (plus 32 bits a row). A group's codes always span 0..15, so its range says which
step and lowest level it had: weights that come from Q4_1 find their codes again, and packing what was packed
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Packing = Literal["exact", "fp32", "bf16", "int8", "int4"]
"""`exact` keeps a tensor in the dtype that it has."""
Rules = Packing | Mapping[str, Packing]
"""One packing for all, or name patterns (`decoder.*`) in order of precedence; what matches none is `bf16`."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "int4": ("codes", "step", "low", "step_scale", "low_scale"),
    "int8": ("codes", "scale"),
    "bf16": ("weight",),
    "fp32": ("weight",),
    "exact": ("weight",),
}
"""What a tensor's storage is made of."""
GROUP = 32
"""Weights that share a scale and a minimum in `int4`."""
NUM_CODES = 16
SPANS = (0.95, 0.9, 0.85, 0.8)
"""Parts of a group's range that are tried as the range of its levels."""

SHIPPED: Mapping[str, Packing] = {
    "*.down": "int8",
    "*.up": "int8",
    "decoder.*": "int4",
    "embedding.weight": "int4",
    "audio_encoder.blocks.*": "int4",
    "audio_encoder.*": "int8",
    "adaptor.*": "int8",
    "draft_heads.*": "int8",
}
"""What `weights/nano` uses: low-rank updates in int8, the frozen text model in int4."""


def packing_of(name: str, tensor: Tensor, rules: Rules) -> Packing:
    """Say how a tensor is stored: by the first rule that matches, as far as its shape allows.

    Integers are kept, vectors (norms, biases) never become integers, `int4` needs rows of whole groups.
    """
    matching = (packing for pattern, packing in patterns(rules).items() if fnmatchcase(name, pattern))
    packing: Packing = next(matching, "bf16")
    if packing not in get_args(Packing):
        raise ValueError(f"{name} cannot be stored as {packing!r}: choose {', '.join(get_args(Packing))}")
    if not tensor.is_floating_point():
        return "exact"
    if tensor.ndim < 2 and packing in ("int8", "int4"):
        return "fp32"
    if packing == "int4" and math.prod(tensor.shape[1:]) % GROUP:
        return "int8"
    return packing


def patterns(rules: Rules) -> Mapping[str, Packing]:
    """Write a single packing as the rule that it is."""
    return {"*": rules} if isinstance(rules, str) else rules


def pack(tensor: Tensor, packing: Packing) -> dict[str, Tensor]:
    """Store a tensor as one or more parts, each with one row per row of the tensor."""
    if packing == "exact":
        return {"weight": tensor}
    if packing in ("fp32", "bf16"):
        return {"weight": tensor.to(torch.float32 if packing == "fp32" else torch.bfloat16)}
    rows = tensor.float().flatten(1)  # (R, C)
    return pack_int8(rows) if packing == "int8" else pack_int4(rows)


def unpack(parts: Mapping[str, Tensor], packing: Packing) -> Tensor:
    """Read a tensor back, as float32 unless `exact`; integer packings come back as rows, shape `(R, C)`."""
    if packing == "int8":
        return parts["codes"].float() * parts["scale"].float()
    if packing == "int4":
        return unpack_int4(parts)
    return parts["weight"] if packing == "exact" else parts["weight"].float()


def rounded(tensor: Tensor, packing: Packing) -> Tensor:
    """Return the tensor as storage would give it back, in its own dtype."""
    return unpack(pack(tensor, packing), packing).view(tensor.shape).to(tensor.dtype)


def pack_in_place(module: nn.Module, rules: Rules) -> None:
    """Round every floating-point parameter of a live module to what storage would give back.

    So that what is trained on top (low-rank updates, the adaptor) is trained on top of what ships.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(rounded(parameter, packing_of(name, parameter, rules)))


def num_bytes(module: nn.Module, rules: Rules) -> int:
    """Count the bytes that the parameters of a module take in storage."""
    named = ((parameter.detach(), packing_of(name, parameter, rules)) for name, parameter in module.named_parameters())
    return sum(part.nbytes for parameter, packing in named for part in pack(parameter, packing).values())


def pack_int8(rows: Tensor) -> dict[str, Tensor]:
    """Round rows `(R, C)` to -127..127 under one bf16 scale each."""
    scale = (rows.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16)
    codes = (rows / positive(scale.float())).round().clamp(-127, 127)
    return {"codes": codes.to(torch.int8), "scale": scale}


def pack_int4(rows: Tensor) -> dict[str, Tensor]:
    """Round rows `(R, C)` to 16 evenly spaced levels in each group of 32."""
    groups = rows.view(len(rows), -1, GROUP)  # (R, C / 32, 32)
    codes, step, low = best_levels(groups)
    step_scale, low_scale = step.amax(dim=1, keepdim=True), low.abs().amax(dim=1, keepdim=True)  # (R, 1)
    return {
        "codes": codes[..., : GROUP // 2].flatten(1) | codes[..., GROUP // 2 :].flatten(1) << 4,  # (R, C / 2)
        "step": (step / positive(step_scale) * 255).round().to(torch.uint8),
        "low": (low / positive(low_scale) * 127).round().to(torch.int8),
        "step_scale": (step_scale / 255).to(torch.bfloat16),
        "low_scale": (low_scale / 127).to(torch.bfloat16),
    }


def best_levels(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the levels of each group: codes `(R, N, 32)`, step and lowest level `(R, N)`.

    The full range is tried first, and is exact for what was packed before; if it is not, narrower ranges that
    clip the outermost weights are tried too, and the least squared error wins.
    """
    best = fitted_levels(groups, 1.0)
    if bool((best[3] <= 1e-6 * groups.square().sum(dim=2)).all()):
        return best[:3]
    for span in SPANS:
        candidate = fitted_levels(groups, span)
        better = candidate[3] < best[3]
        codes = torch.where(better[..., None], candidate[0], best[0])
        step, low, error = (torch.where(better, new, old) for new, old in zip(candidate[1:], best[1:], strict=True))
        best = codes, step, low, error
    return best[:3]


def fitted_levels(groups: Tensor, span: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Code each group over `span` of its range, then fit step and lowest level by least squares.

    The outermost weights always take codes 0 and 15, whatever the span: packing is repeatable for it.
    """
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)  # (R, N, 1)
    step = positive((high - low) * span / (NUM_CODES - 1))
    codes = ((groups - (low + high) / 2) / step + (NUM_CODES - 1) / 2).round().clamp(0, NUM_CODES - 1)
    code_mean, mean = codes.mean(dim=2, keepdim=True), groups.mean(dim=2, keepdim=True)
    spread = codes - code_mean
    step = (spread * (groups - mean)).sum(dim=2, keepdim=True) / positive(spread.square().sum(dim=2, keepdim=True))
    low = mean - step * code_mean
    error = (groups - low - step * codes).square().sum(dim=2)
    return codes.to(torch.uint8), step.squeeze(2), low.squeeze(2), error


def unpack_int4(parts: Mapping[str, Tensor]) -> Tensor:
    """Undo `pack_int4`: shape `(R, C)`. In place where it can be, as loading spends its time here."""
    packed = parts["codes"].view(len(parts["codes"]), -1, GROUP // 2)  # (R, C / 32, 16)
    groups = torch.empty(*packed.shape[:2], GROUP, device=packed.device)
    groups[..., : GROUP // 2] = packed & 15
    groups[..., GROUP // 2 :] = packed >> 4
    step = parts["step"].float() * parts["step_scale"].float()
    low = parts["low"].float() * parts["low_scale"].float()
    return groups.mul_(step[..., None]).add_(low[..., None]).flatten(1)


def positive(scale: Tensor) -> Tensor:
    """Replace zeros, of rows or groups that are constant, so that they can be divided by."""
    return torch.where(scale > 0, scale, 1.0)
