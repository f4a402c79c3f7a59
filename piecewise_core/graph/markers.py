"""Stand-ins for values while a frame's own code runs once, so that its result shows their origin.

The code that Dynamo generates takes the call's arguments apart and puts the result together. Run
around these, it shows where each part of the result comes from: sizes read off an argument
included, which would otherwise look like plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.graph.sizes import hint

__all__ = [
    *("CountMarker", "CountUsed", "FloatMarker", "SizeMarker", "ViewMarker"),
    *("argument", "result"),
]


class SizeMarker(int):
    """An int or bool that stands for ``text``, source over a rebuild function's parameters.

    ``place``: of the graph output that it is, or None for a size of an argument.
    """

    text: str
    place: int | None

    @classmethod
    def of(cls, value: int, text: str, place: int | None = None) -> SizeMarker:
        """A marker that counts as ``value``."""
        made = cls(value)
        made.text, made.place = text, place
        return made


class CountMarker(int):
    """A number in an object of the call, which is another one at the next."""


class CountUsed(Exception):
    """Such a number goes further than to questions and to other such numbers."""


class FloatMarker(float):
    """A float that stands for the ``place``-th graph output."""

    place: int


class ViewMarker(torch.Tensor):
    """A tensor that stands for ``text``, an argument or an attribute of it (``x.T``), source over
    a rebuild function's parameters. Its sizes are markers where they may vary.
    """

    text: str
    _pw_shape: torch.Size

    @classmethod
    def of(cls, value: torch.Tensor, text: str, dims: Iterable[int]) -> Any:
        """A marker like ``value`` whose sizes in ``dims`` are not constants."""
        sizes: list[int] = list(value.shape)
        for dim in dims:
            sizes[dim] = SizeMarker.of(sizes[dim], f"{text}.shape[{dim}]")
        made: Any = value.as_subclass(cls)
        made.text, made._pw_shape = text, torch.Size(sizes)
        return made

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self._pw_shape

    def size(self, dim: int | None = None) -> Any:
        return self._pw_shape if dim is None else self._pw_shape[dim]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name[:1] == "_" or not isinstance(found, torch.Tensor):
            return found
        plain = found.as_subclass(torch.Tensor)
        return ViewMarker.of(plain, f"{self.text}.{name}", range(plain.dim()))


class _Result(torch.Tensor):
    """A graph output. Dynamo passes symbolic floats out of a graph as tensors."""

    _pw_place: int

    def item(self) -> Any:
        made = FloatMarker(0.5)
        made.place = self._pw_place
        return made


def argument(example: torch.Tensor, index: int, dims: Iterable[int]) -> torch.Tensor:
    """A stand-in for flat tensor ``index``, whose sizes in ``dims`` are not constants."""
    made: torch.Tensor = ViewMarker.of(example, f"t[{index}]", dims)
    return made


def result(example: Any, place: int) -> Any:
    """A stand-in for graph output ``place``, whose traced value is ``example``."""
    if isinstance(example, torch.Tensor):
        made: Any = torch.empty(0).as_subclass(_Result)
        made._pw_place = place
        return made
    known = hint(example)  # None where data decides
    return SizeMarker.of(0 if known is None else int(known), f"o[{place}]", place)
