"""Random programs with what real models have besides: literals, layouts, conversions, random
numbers, conditionals, and operators with keywords, strings and nested results.
"""

from __future__ import annotations

from typing import Any

import torch
from random_programs import OPS, Builder, Value
from torch.library import Library, custom_op, register_fake


@custom_op("split_property::named", mutates_args=())
def _named(x: torch.Tensor, layer: str, *, v_scale: float = 1.0, t: int = 0) -> torch.Tensor:
    return (x.contiguous() * v_scale + len(layer) + t) % 5


@_named.register_fake
def _(x: torch.Tensor, layer: str, *, v_scale: float = 1.0, t: int = 0) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("split_property::one", mutates_args=())
def _one(x: torch.Tensor) -> list[torch.Tensor]:
    return [x.contiguous() + 1]


@_one.register_fake
def _(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format)]


@custom_op("split_property::turned", mutates_args=())
def _turned(x: torch.Tensor) -> torch.Tensor:
    """In another layout than its fake promises, as attention on a device may be."""
    return (x + 1).movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() > 1 else x + 1


@_turned.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


_NESTED = Library("split_property", "FRAGMENT")
_NESTED.define("nested(Tensor x) -> (Tensor, Tensor[])")
_NESTED.impl("nested", lambda x: (x.contiguous() + 1, [x * 2 % 5, x.contiguous() + 3]), "CPU")
register_fake("split_property::nested", lambda x: _faked(x), lib=_NESTED)


def _faked(x: torch.Tensor) -> Any:
    plain = torch.contiguous_format
    first, third = (torch.empty_like(x, memory_format=plain) for _ in range(2))
    return first, [torch.empty_like(x), third]


EXTRA = tuple(f"split_property::{n}" for n in ("named", "one", "turned", "nested"))


class Wider(Builder):
    """Draws the statements of ``Builder``, and these."""

    custom = EXTRA

    def statement(self) -> None:
        extras = [
            self.literal, self.listed, self.layout, self.conversion, self.random, self.cond,
            self.flag, self.named, self.lists, self.turned, self.nested,
        ]  # fmt: skip
        if self.chance():
            self.one(extras)()
        else:
            super().statement()

    def literal(self) -> None:
        if self.chance():
            self.put("torch.tensor([1.0, 2.0, 0.0, 3.0])", (self.const(4),))
        else:
            a = self.value()
            self.put(f"{a.name} + torch.tensor({self.one([1.0, 2.0])})", a.shape)

    def listed(self) -> None:
        a = self.value(lambda v: bool(self.static(v, 2)))
        if a is None:
            return
        dim = self.static(a, 2)[0]
        shape = (*a.shape[:dim], self.const(3), *a.shape[dim + 1 :])
        self.put(f"{a.name}[{':, ' * dim}[1, 0, 1]]", shape)

    def layout(self) -> None:
        a = self.value(lambda v: len(v.shape) > 1)
        if a is None:
            return
        text = self.one(
            ["{a}.transpose(0, 1).contiguous().transpose(0, 1)", "{a}.mT.clone().mT"]
        )  # fmt: skip
        # Whether contiguous() copies follows from sizes.
        self.put(text.format(a=a.name), a.shape, "clone" in text)

    def conversion(self) -> None:
        a = self.value()
        text = self.one(
            ["{a}.half().float()", "{a}.double().float()", "{a}.to(torch.int32).float()",
             "{a}.bool().float()", "({a} > 1).to({a}.dtype)", "{a}.bfloat16().to(torch.float32)"]
        )  # fmt: skip
        self.put(text.format(a=a.name), a.shape)

    def random(self) -> None:
        a = self.value()
        text = self.one(
            ["torch.randint(0, 5, {a}.shape).float()", "torch.bernoulli(torch.ones_like({a}) / 2)",
             "torch.rand_like({a}).round()", "torch.nn.functional.dropout({a}, 0.5, True)"]
        )  # fmt: skip
        self.put(text.format(a=a.name), a.shape)

    def cond(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is not None:
            branches = "lambda v: v * 2 % 5, lambda v: v + 1"
            self.put(f"torch.cond({a.name}.sum() > 3, {branches}, ({a.name}.clone(),))", a.shape)

    def flag(self) -> None:
        a = self.value()
        self.put(f"({a.name} + 1 if self.training else {a.name} - 1)", a.shape)

    def named(self) -> None:
        a = self.value()
        layer = self.one(["blocks.0.v_attn", "t[0]", "a'b\\n", "_k1", ""])
        extra = self.one(["", ", v_scale=2.0", ", t=3", ", v_scale=3.0, t=1"])
        self.put(f"{OPS}.named({a.name}, {layer!r}{extra})", a.shape)

    def lists(self) -> None:
        a = self.value()
        self.put(f"{OPS}.one({a.name})[0]", a.shape)

    def turned(self) -> None:
        a = self.value()
        # Its layout, and so whether contiguous() copies, is the device's business.
        self.put(f"{OPS}.turned({a.name})", a.shape, False)

    def nested(self) -> None:
        a = self.value()
        name = f"p{next(self.fresh)}"
        self.lines.append(f"{name} = {OPS}.nested({a.name})")
        for place in self.one([("[0]",), ("[1][1]",), ("[0]", "[1][0]"), ("[1][0]", "[1][1]")]):
            self.put(f"{name}{place}", a.shape, place != "[1][0]")


def is_random(source: str) -> bool:
    """Whether the program draws random numbers."""
    return any(f"torch.{name}" in source for name in ("rand", "bernoulli", "nn.functional.dropout"))


__all__ = ["EXTRA", "Value", "Wider", "is_random"]
