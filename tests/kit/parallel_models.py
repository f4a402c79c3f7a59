"""Models with parts that do not depend on each other: two towers, MMDiT, GPT-J."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["MODELS", "Drawing", "Noting", "Sides", "Usual", "inputs"]


class Attention(nn.Module):
    """Over all rows. ``x``: [rows, width]."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y[0].transpose(0, 1).flatten(1))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(functional.gelu(self.up(x)))


class Usual(nn.Module):
    """Attention, then an MLP: one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width), Mlp(width)

    def forward(self, x):
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class GptJ(nn.Module):
    """Attention beside an MLP, as in GPT-J."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(width), Attention(width), Mlp(width)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y) + self.mlp(y)


class Towers(nn.Module):
    """Two towers and a head over both."""

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        self.one, self.other = (
            nn.Sequential(*(Usual(width) for _ in range(layers))) for _ in range(2)
        )
        self.head = nn.Linear(2 * width, width)

    def forward(self, x):
        return self.head(torch.cat([self.one(x), self.other(x * 0.5)], -1))


class Stream(nn.Module):
    """One of the streams of an MMDiT block: what it does by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition, self.qkv = nn.Linear(width, 6 * width), nn.Linear(width, 3 * width)
        self.out, self.mlp = nn.Linear(width, width), Mlp(width)

    def begin(self, x, condition):
        given = self.condition(functional.silu(condition)).chunk(6, -1)
        return given, self.qkv(self.norm(x) * (1 + given[0]) + given[1])

    def end(self, x, seen, given):
        x = x + given[2] * self.out(seen)
        return x + given[5] * self.mlp(self.norm(x) * (1 + given[3]) + given[4])


class MmDit(nn.Module):
    """Image and text, each with weights of its own, that meet in attention, as in Flux."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.image, self.text = heads, Stream(width), Stream(width)

    def forward(self, image, text, condition):
        of_image, a = self.image.begin(image, condition)
        of_text, b = self.text.begin(text, condition)
        pairs = zip(b.chunk(3, -1), a.chunk(3, -1), strict=True)
        both = (torch.cat(pair).unflatten(-1, (self.heads, -1)) for pair in pairs)
        seen = functional.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in both))
        seen = seen[0].transpose(0, 1).flatten(1)
        rows = text.shape[0]
        image = self.image.end(image, seen[rows:], of_image)
        return image, self.text.end(text, seen[:rows], of_text)


class Blocks(nn.Module):
    """Blocks one after the other, and all that they pass on."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, y, z):
        for block in self.blocks:
            x, y = block(x, y, z)
        return x, y


class Crossing(nn.Module):
    """What the second lane of one fork makes, the first lane of the next one uses up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Mlp(width), Mlp(width)
        self.c, self.d, self.e = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        light, heavy = self.c(x), self.a(x)
        met = heavy.t() @ light / 32
        return self.b(light @ met).cos() + self.e(torch.sin(self.d(heavy @ met)))


class Sides(nn.Module):
    """Two MLPs side by side, row by row: calls may be padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = Mlp(width), Mlp(width)

    def forward(self, x):
        return self.one(x) * self.other(x)


class Drawing(GptJ):
    """Draws random numbers in front of its parts."""

    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Noting(GptJ):
    """Writes to a buffer between its parts."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("seen", torch.zeros(width))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        y = super().forward(x)
        self.seen.add_(y.mean(0))
        self.place.add_(1)
        return y + self.seen


class Long(nn.Module):
    """Many blocks, whose memory is used again and again."""

    def __init__(self, width: int, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(GptJ(width) for _ in range(blocks)), Towers(width, 2))

    def forward(self, x):
        return self.blocks(x)


MODELS: dict[str, Any] = {
    "towers": Towers,
    "gpt-j": lambda width: nn.Sequential(GptJ(width), GptJ(width)),
    "mm-dit": lambda width: Blocks(MmDit(width), MmDit(width)),
    "crossing": Crossing,
    "long": Long,
}
"""``make(width)``, by name: those in which there are forks."""


def inputs(name: str, rows: int, width: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """What the model of that name is called with, at ``rows``: random numbers."""
    shapes = [(rows, width)] if name != "mm-dit" else [(rows, width), (rows, width), (1, width)]
    return tuple(torch.randn(*shape, device=device) for shape in shapes)
