"""Models with parts that do not depend on each other, at sizes where kernels are small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MODELS", "inputs"]


def _seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention over all rows of [rows, width]."""
    both = (t.unflatten(-1, (heads, -1)).transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    found = functional.scaled_dot_product_attention(*both)
    return found[0].transpose(0, 1).flatten(1)


class Block(nn.Module):
    """One of a transformer: attention, then an MLP, or ``beside`` each other as in GPT-J."""

    def __init__(self, width: int, heads: int, *, beside: bool) -> None:
        super().__init__()
        self.heads, self.beside = heads, beside
        self.first = nn.LayerNorm(width)
        self.second = None if beside else nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, width]."""
        y = self.first(x)
        x = x + self.out(_seen(*self.qkv(y).chunk(3, -1), self.heads))
        y = y if self.second is None else self.second(x)
        return x + self.down(functional.gelu(self.up(y)))


class Towers(nn.Module):
    """Two towers, and a product of both."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        made = (
            nn.Sequential(*(Block(width, heads, beside=False) for _ in range(layers)))
            for _ in range(2)
        )
        self.one, self.other = made

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``x``, ``y``: [rows, width] each."""
        return self.one(x) * self.other(y)


class GptJ(nn.Module):
    """Blocks with attention beside the MLP."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads, beside=True) for _ in range(layers)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``x``, ``y``: [rows, width] each."""
        return self.blocks(x + y)


class Stream(nn.Module):
    """One side of an MMDiT block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition, self.qkv = nn.Linear(width, 6 * width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class MmDit(nn.Module):
    """Image and text with weights of their own that meet in attention, as in Flux."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.image = nn.ModuleList(Stream(width) for _ in range(layers))
        self.text = nn.ModuleList(Stream(width) for _ in range(layers))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``x``, ``y``: image and text, [rows, width] each."""
        condition = functional.silu(y.mean(0, keepdim=True))
        rows = y.shape[0]
        for image, text in zip(self.image, self.text, strict=True):
            a, b = image.condition(condition).chunk(6, -1), text.condition(condition).chunk(6, -1)
            of_x = image.qkv(image.norm(x) * (1 + a[0]) + a[1]).chunk(3, -1)
            of_y = text.qkv(text.norm(y) * (1 + b[0]) + b[1]).chunk(3, -1)
            both = [torch.cat(pair) for pair in zip(of_y, of_x, strict=True)]
            seen = _seen(*both, self.heads)
            x, y = x + a[2] * image.out(seen[rows:]), y + b[2] * text.out(seen[:rows])
            up = functional.gelu(image.up(image.norm(x) * (1 + a[3]) + a[4]), approximate="tanh")
            x = x + a[5] * image.down(up)
            up = functional.gelu(text.up(text.norm(y) * (1 + b[3]) + b[4]), approximate="tanh")
            y = y + b[5] * text.down(up)
        return torch.cat([x, y])


MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "towers": Towers,
    "mm-dit": MmDit,
    "gpt-j": GptJ,
}
"""``make(layers, width, heads)``, by name."""


def inputs(rows: int, width: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What every model here is called with."""
    return tuple(torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
