"""What calls of a Dynamo graph look like, as replays want it told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.config import Dim
from piecewise_core.graph.lying import dense_strides
from piecewise_core.graph.sizes import expression, number
from piecewise_core.graph.structure import Structure, TensorLeaf
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat.fakes import FakeTensor

__all__ = ["DoorCalls", "Uncapturable", "calls_of"]


class Uncapturable(Exception):
    """Why no call of a graph can be captured. Never reaches a user."""


class DoorCalls:
    """In place of a binder: Dynamo has bound, checked and guarded the calls.

    Entries are called with ``args`` of the call's tensors and the held ones.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.bind: Callable[..., Any] = lambda *args: args  # nothing was bound as a copy
        self.raw: Callable[..., tuple[torch.Tensor, ...]] = lambda tensors, held: (*tensors, *held)


def calls_of(traced: Traced, dims: Sequence[Dim]) -> DoorCalls:
    """Read off the inputs that are not held. Raises Uncapturable."""
    leaves = []
    nodes = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    for node, source in zip(nodes, traced.inputs, strict=True):
        value: Any = node.meta.get("example_value")
        if source.size is not None:
            continue
        name = str(node.name)
        if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
            raise Uncapturable(f"input {name} is no plain tensor")
        if value.is_conj() or value.is_neg():
            raise Uncapturable(f"input {name} has a conjugate or negative bit")
        if source.tensor is not None:
            leaves.append(_leaf(name, source.tensor, value, traced, dims))
    return DoorCalls(Structure(inspect.Signature(), {}, tuple(leaves), tuple(dims)))


def _leaf(
    name: str, index: int, value: torch.Tensor, traced: Traced, dims: Sequence[Dim]
) -> TensorLeaf:
    named = {}
    for axis, size in enumerate(value.shape):
        found = sympy.sympify(expression(size))
        place = traced.symbols.get(found)
        if place is not None:
            named[axis] = dims[place]
        elif not found.is_number:
            raise Uncapturable(f"input {name} has the computed size {found}")
    sizes = tuple(number(size) for size in value.shape)
    strides = tuple(number(step) for step in value.stride())
    order = tuple(sorted(range(len(sizes)), key=lambda axis: (-strides[axis], axis)))
    dense = dense_strides(sizes, order)
    gaps = any(n != 1 and a != b for n, a, b in zip(sizes, strides, dense, strict=True))
    own = _strides(name, value, traced) if gaps else None
    return TensorLeaf(name, index, value.dtype, value.device, sizes, named, order, gaps, own)


def _strides(name: str, value: torch.Tensor, traced: Traced) -> Any:
    """Computes the strides of an input that has memory between its elements, or repeats them."""
    steps = [sympy.sympify(expression(step)) for step in value.stride()]
    if any(not step.free_symbols <= traced.symbols.keys() for step in steps):
        raise Uncapturable(f"input {name} has strides that its sizes do not tell")

    def strides(sizes: Sizes) -> tuple[int, ...]:
        at = {symbol: sizes[place] for symbol, place in traced.symbols.items()}
        return tuple(int(step.xreplace(at)) for step in steps)

    return strides
