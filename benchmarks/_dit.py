"""A small diffusion transformer in the manner of DiT (Peebles and Xie, 2023), for benchmarks.

It takes patches, not pixels: a server cuts the latent into patches and pastes them together
outside, so the only size that varies with the resolution is the number of patches.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["PATCH", "Dit"]

PATCH = 16
"""Channels of one patch: 2 x 2 of a latent with 4."""


class Block(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.condition = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, patches, width]. ``condition``: [batch, width]."""
        given = self.condition(functional.silu(condition)).unsqueeze(1).chunk(6, -1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = given
        inner = self.norm(x) * (1 + scale) + shift
        heads = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(inner).chunk(3, -1))
        query, key, value = (t.transpose(1, 2) for t in heads)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + gate * self.proj(seen.transpose(1, 2).flatten(2))
        inner = self.norm(x) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.down(functional.gelu(self.up(inner), approximate="tanh"))


class Dit(nn.Module):
    """DiT-S by default: 12 blocks of width 384."""

    def __init__(self, layers: int = 12, width: int = 384, heads: int = 6) -> None:
        super().__init__()
        self.into = nn.Linear(PATCH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, PATCH)

    def forward(
        self, patches: torch.Tensor, place: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """``patches``: [batch, count, PATCH]. ``place``: [count, width]. Returns the noise."""
        x = self.into(patches) + place
        for block in self.blocks:
            x = block(x, condition)
        return self.out(self.norm(x))
