"""Decoder blocks: rotary positions, grouped queries, dense or mixture of experts, and the cache of keys and values.

Llama and Qwen2 in one layout: RMS norm before each half, rotary embedding on queries and keys (Su et al. 2021, in
the half-rotation form of the published weights), SwiGLU. The adaptor uses the same blocks without the causal mask.

Shape suffixes in this file: B batch, T query positions, S key positions, D model width, H heads, G key/value heads,
E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tristep.config import DecoderConfig

KEY_BLOCK = 32
"""Cached keys are attended in blocks of so many, masked beyond a row's own: bfloat16 sums on a CPU would otherwise come
out in another order, and so a little different, wherever a longer row is in the batch."""
FEW_TOKENS = 24
"""Up to here a row's cached tokens are a draft to verify, not a prompt to read."""


def whole_blocks(num_positions: int) -> int:
    """Round up to whole blocks of keys."""
    return -(-num_positions // KEY_BLOCK) * KEY_BLOCK


@dataclass
class KVCache:
    """Keys and values of every layer, one row per sequence.

    A row is valid up to its length, and what lies beyond is never attended: a rejected draft is rolled back by
    making `lengths` smaller, without copying anything.
    """

    keys: Tensor
    """Shape `(L, B, G, S, E)`."""
    values: Tensor
    lengths: Tensor
    """Valid positions per row, shape `(B,)`."""

    @classmethod
    def empty(cls, config: DecoderConfig, batch_size: int, num_positions: int, like: Tensor) -> KVCache:
        """Reserve room for `num_positions` tokens in each of `batch_size` rows, of the dtype and device of `like`."""
        room = whole_blocks(num_positions)
        shape = (config.num_layers, batch_size, config.num_kv_heads, room, config.width_of_head)
        lengths = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        return cls(like.new_zeros(shape), like.new_zeros(shape), lengths)

    def view(self, first: int, last: int) -> KVCache:
        """Return the rows from `first` up to `last`, in the same memory."""
        return KVCache(self.keys[:, first:last], self.values[:, first:last], self.lengths[first:last])

    def move(self, source: int, target: int) -> None:
        """Copy what the row `source` holds to the row `target`."""
        end = int(self.lengths[source])
        for table in (self.keys, self.values):
            table[:, target, :, :end] = table[:, source, :, :end]
        self.lengths[target] = self.lengths[source]

    def write(
        self, layer: int, positions: Tensor, keys: Tensor, values: Tensor, num_positions: int
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values `(B, G, T, E)` at `positions` `(B, T)`; return the layer's first `num_positions`."""
        kept_keys, kept_values = self.keys[layer], self.values[layer]
        if len(positions) == 1:  # the same in a fifth of the time
            kept_keys.index_copy_(2, positions[0], keys)
            kept_values.index_copy_(2, positions[0], values)
        else:
            rows = torch.arange(len(positions), device=positions.device)[:, None]
            kept_keys[rows, :, positions] = keys.transpose(1, 2)
            kept_values[rows, :, positions] = values.transpose(1, 2)
        return kept_keys[:, :, :num_positions], kept_values[:, :, :num_positions]


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), computed in float32."""

    twice: Tensor | None
    """The weight two times, once it is fused."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.register_buffer("twice", None, persistent=False)

    def fuse(self) -> None:
        """Norm what is in bfloat16 by one kernel from now on, for inference.

        A vector and its negative side by side have mean 0 and the vector's mean square as their variance, so that the
        layer norm of the two, for which torch has a kernel, begins with the root-mean-square norm of the one.
        """
        self.twice = torch.cat([self.weight.detach(), self.weight.detach()])

    def forward(self, hidden: Tensor) -> Tensor:
        if self.twice is not None and hidden.dtype == torch.bfloat16:
            pair = torch.cat([hidden, -hidden], dim=-1)  # (..., 2 D)
            normed = torch.layer_norm(pair, self.twice.shape, self.twice, None, self.eps)
            return normed[..., : len(self.weight)].contiguous()
        return F.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps).to(hidden.dtype)


@torch.no_grad()
def draw_normal(weight: Tensor, std: float) -> None:
    """Draw weights, but none that have no memory: there torch would import its compiler, a second, to do nothing."""
    if not weight.is_meta:
        weight.normal_(std=std)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `(B, 1, T, E)` of the rotation at each position; the first half's sines are negative."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None, :, None].float() * theta**-exponents  # (B, 1, T, E / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys `(B, H, T, E)` to their positions."""
    return (heads * cos + heads.roll(heads.shape[-1] // 2, dims=-1) * sin).to(heads.dtype)


class Attention(nn.Module):
    """Grouped-query attention: `num_heads` queries share `num_kv_heads` keys and values."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        E = self.head_dim = config.width_of_head
        self.q_proj = nn.Linear(config.dim, config.num_heads * E, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, config.num_kv_heads * E, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, config.num_kv_heads * E, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * E, config.dim, bias=False)
        self.qkv_proj: nn.Module | None = None

    def fuse(self) -> None:
        """Project in one call from now on, for inference: every row of the result is what it was."""
        self.qkv_proj = stacked(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj

    def heads(self, hidden: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Project `(B, T, D)` to queries `(B, H, T, E)`, keys and values `(B, G, T, E)`, and rotate the first two."""
        if self.qkv_proj is None:
            projected = torch.cat([self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)], dim=-1)
        else:
            projected = self.qkv_proj(hidden)
        heads = projected.view(*hidden.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, H + 2 G, T, E)
        turned = rotate(heads[:, : -self.num_kv_heads], context.cos, context.sin)
        return turned[:, : self.num_heads], turned[:, self.num_heads :], heads[:, -self.num_kv_heads :]

    def forward(self, hidden: Tensor, context: Context, layer: int) -> Tensor:
        q_BHTE, k_BGSE, v_BGSE = self.heads(hidden, context)
        if context.kv_cache is not None:
            num_positions = context.mask.shape[3]
            k_BGSE, v_BGSE = context.kv_cache.write(layer, context.positions, k_BGSE, v_BGSE, num_positions)
            out_BHTE = attend_cached(q_BHTE, k_BGSE, v_BGSE, context.penalty)
        else:
            out_BHTE = attend(q_BHTE, k_BGSE, v_BGSE, context.mask)
        return self.o_proj(out_BHTE.transpose(1, 2).flatten(2))  # (B, T, D)


def stacked(*projections: nn.Linear) -> nn.Linear:
    """Join projections of the same input into one, whose output is theirs one after the other."""
    weight = torch.cat([projection.weight.detach() for projection in projections])
    biases = [weight.new_zeros(p.out_features) if p.bias is None else p.bias.detach() for p in projections]
    is_biased = any(projection.bias is not None for projection in projections)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=is_biased, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if is_biased:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def fuse_layers(module: nn.Module) -> None:
    """Let every layer inside `module` compute in fewer calls, in place and for good."""
    for part in list(module.modules()):
        if isinstance(part, Attention | SwiGLU | RMSNorm):
            part.fuse()


def attend(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, mask: Tensor) -> Tensor:
    """Let queries attend to the keys that they share, `(B, H, T, E)`, by the kernel that is fastest there."""
    shares = q_BHTE.shape[1] // k_BGSE.shape[1]
    if shares > 1 and torch.is_grad_enabled():
        # In training, repeated keys take half the time of enable_gqa's slow path on a CPU.
        k_BGSE, v_BGSE = k_BGSE.repeat_interleave(shares, dim=1), v_BGSE.repeat_interleave(shares, dim=1)
        shares = 1
    if q_BHTE.requires_grad and q_BHTE.dtype == torch.bfloat16 and q_BHTE.device.type == "cpu":
        return plain_attention(q_BHTE, k_BGSE, v_BGSE, mask)
    return F.scaled_dot_product_attention(q_BHTE, k_BGSE, v_BGSE, attn_mask=mask, enable_gqa=shares > 1)


def attend_cached(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, penalty: Tensor) -> Tensor:
    """Let queries attend to cached keys, `(B, H, T, E)`.

    On a CPU a draft is verified one query at a time, so that a token of it attends bit for bit as it does when it is
    written alone.
    """
    B, _, T, _ = q_BHTE.shape
    if q_BHTE.device.type != "cpu" or T >= FEW_TOKENS or (T > 1 and q_BHTE.dtype != torch.bfloat16):
        return attend(q_BHTE, k_BGSE, v_BGSE, penalty)
    if B == 1 or T == 1:
        return attend_apart(q_BHTE, k_BGSE, v_BGSE, penalty)
    rows = zip(*(torch.split(tensor, 1) for tensor in (q_BHTE, k_BGSE, v_BGSE, penalty)), strict=True)
    return torch.cat([attend_apart(*row) for row in rows])


def attend_apart(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, penalty: Tensor) -> Tensor:
    """Attend with one query at a time, in one call: `T` queries of one row, or one query in each of `B` rows.

    The kernel takes rows and heads apart, each as if it were alone. So the queries of a row go as rows with the same
    keys; and heads that share keys go as queries of one head, in a fifth of the time.
    """
    B, H, T, E = q_BHTE.shape
    G = k_BGSE.shape[1]
    queries = q_BHTE.transpose(1, 2).reshape(B * T, G, H // G, E)
    k_NGSE, v_NGSE = (shared.expand(B * T, -1, -1, -1) for shared in (k_BGSE, v_BGSE))
    penalties = penalty.transpose(1, 2).flatten(0, 1)[:, None]  # (B T, 1, 1, S)
    out = F.scaled_dot_product_attention(queries, k_NGSE, v_NGSE, attn_mask=penalties)
    return out.reshape(B, T, H, E).transpose(1, 2)


def plain_attention(q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, mask: Tensor) -> Tensor:
    """Attend as the formula says, all weights in memory: a CPU trains in bfloat16 in a quarter of its kernel's time."""
    bias = torch.zeros_like(mask, dtype=q_BHTE.dtype).masked_fill(~mask, -torch.inf)
    scores_BHTS = (q_BHTE * q_BHTE.shape[-1] ** -0.5) @ k_BHSE.mT + bias
    return scores_BHTS.softmax(dim=-1) @ v_BHSE


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)
        self.gate_up_proj: nn.Module | None = None

    def fuse(self) -> None:
        """Project in two calls instead of three from now on, for inference."""
        self.gate_up_proj = stacked(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        else:
            gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class MixtureOfExperts(nn.Module):
    """Each token visits its top-k experts, weighted by the router's renormalised probabilities.

    The report's foundation starts from a textual mixture-of-experts model (section 2.1) and does not give its
    routing; this is the common softmax top-k with the auxiliary load loss of Switch Transformer (Fedus et al.
    2021, equation 4): `num_experts * sum_i fraction_i * probability_i`, 1 when the load is even.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_active = config.num_active_experts
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)
        width = config.expert_dim or config.ffn_dim
        self.experts = nn.ModuleList(SwiGLU(config.dim, width) for _ in range(config.num_experts))
        self.load_loss: Tensor | None = None
        """Auxiliary loss of the last forward pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])  # (N, D)
        probs = self.router(flat).float().softmax(dim=-1)  # (N, experts)
        weights, chosen = probs.topk(self.num_active, dim=-1)  # (N, k)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(flat.dtype)
        self.load_loss = load_loss(probs, chosen)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows, ranks = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, ranks, None])
        return out.view_as(hidden)


def load_loss(probs: Tensor, chosen: Tensor) -> Tensor:
    """Return the auxiliary load loss of router probabilities `(N, experts)` and chosen experts `(N, k)`."""
    num_experts = probs.shape[-1]
    visits = F.one_hot(chosen, num_experts).sum(dim=1).float()  # (N, experts)
    return num_experts * (visits.mean(dim=0) / chosen.shape[-1] * probs.mean(dim=0)).sum()


@dataclass
class Context:
    """What every block of one forward pass shares."""

    positions: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    """True may be attended, shape `(B, 1, T, S)`."""
    kv_cache: KVCache | None = None

    @cached_property
    def penalty(self) -> Tensor:
        """The mask as what is added to scores, 0 or minus infinity: one for all layers, as each would make its own."""
        zeros = torch.zeros_like(self.mask, dtype=self.kv_cache.keys.dtype if self.kv_cache else torch.float32)
        return zeros.masked_fill(~self.mask, -torch.inf)


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = MixtureOfExperts(config) if config.num_experts else SwiGLU(config.dim, config.ffn_dim)

    def forward(self, hidden: Tensor, context: Context, layer: int) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), context, layer)
        return hidden + self.ffn(self.ffn_norm(hidden))


class Decoder(nn.Module):
    """A stack of blocks and its final norm: embeddings in, hidden states out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.recompute = False
        """Trade time for memory in training: blocks forget what they computed inside and compute it again."""

    def context(self, positions: Tensor, mask: Tensor, kv_cache: KVCache | None = None) -> Context:
        """Prepare what the blocks share for queries at `positions` `(B, T)`."""
        cos, sin = rotary(positions, self.config.width_of_head, self.config.rope_theta)
        return Context(positions, cos, sin, mask, kv_cache)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Run embeddings `(B, T, D)` through all blocks; the result is normed, ready for the output head."""
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, context, layer, use_reentrant=False)
            else:
                hidden = block(hidden, context, layer)
        return self.norm(hidden)


def causal_mask(segments: Tensor, trunk: Tensor | None = None) -> Tensor:
    """Let each position see itself and what came before it in its own segment: `(B, T)` -> `(B, 1, T, T)`.

    Packed sequences carry different segment numbers, and so never see one another; what is in the `trunk`, `(B, T)`,
    all that comes after it sees.
    """
    T = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    if trunk is not None:
        same = same | trunk[:, None, :]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (same & causal)[:, None]


def positions_in(segments: Tensor) -> Tensor:
    """Count each packed sequence from 0: `(B, T)` -> `(B, T)`."""
    steps = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return steps - (steps * starts).cummax(dim=1).values


def cached_mask(positions: Tensor) -> Tensor:
    """Let queries at `positions` `(B, T)` see every cached key up to their own position: `(B, 1, T, S)`."""
    keys = torch.arange(whole_blocks(int(positions.max()) + 1), device=positions.device)
    return (keys <= positions[:, :, None])[:, None]
