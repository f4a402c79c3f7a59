"""The toy decoder that the static-graph figures are quoted for.

Host-bound on purpose: 32 layers of small matrix products around an attention operator that is a
single kernel. 193 parameters, 3 inputs.
"""

from __future__ import annotations

import torch

__all__ = ["OPS", "Decoder", "inputs"]

OPS = ("toy::attention",)
"""Where to cut."""


@torch.library.custom_op("toy::attention", mutates_args=("out",))
def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor
) -> None:
    """One kernel that stands for attention; writes ``out``."""
    torch.add(query, value, out=out)


@attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> None:
    return None


class Layer(torch.nn.Module):
    """Six parameters: two norms and four projections."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(hidden)
        self.norm_mlp = torch.nn.RMSNorm(hidden)
        self.qkv = torch.nn.Linear(hidden, 3 * hidden, bias=False)
        self.proj = torch.nn.Linear(hidden, hidden, bias=False)
        self.up = torch.nn.Linear(hidden, 2 * hidden, bias=False)
        self.down = torch.nn.Linear(2 * hidden, hidden, bias=False)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, hidden]. ``position``: [batch, 1]."""
        query, key, value = (self.qkv(self.norm(x)) + position).chunk(3, dim=-1)
        out = torch.empty_like(x)
        torch.ops.toy.attention(query, key, value, out)
        x = x + self.proj(out)
        return x + self.down(torch.nn.functional.silu(self.up(self.norm_mlp(x))))


class Decoder(torch.nn.Module):
    """``layers`` equal layers and a norm; 193 parameters with 32."""

    def __init__(self, layers: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(hidden) for _ in range(layers)])
        self.norm = torch.nn.RMSNorm(hidden)

    def forward(self, x: torch.Tensor, position: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``x``: [batch, hidden]. ``position``, ``mask``: [batch, 1]. Returns [batch, hidden]."""
        x = x * mask
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


def inputs(batch: int, hidden: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """One call's inputs."""
    x = torch.randn(batch, hidden, device=device, dtype=dtype)
    position = torch.randn(batch, 1, device=device, dtype=dtype)
    return x, position, torch.ones_like(position)
