"""Fake inputs for one piece over one box of sizes: what a compiler is given in place of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.graph.memory import storages
from piecewise_core.graph.sizes import new_size, valued
from piecewise_core.graph.split import Piece
from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import FakeTensorMode, TracingContext, tracing

__all__ = ["Fakes", "Job", "Layout", "copied", "make_job"]


@dataclass(frozen=True)
class Job:
    """One piece made ready for one compilation.

    ``graph``: a copy that the compiler may change. ``inputs``: one fake tensor, SymInt or int
    per placeholder, the first ``sizes`` of them the sizes. ``mode``: their fake mode, whose
    ShapeEnv holds the ranges. ``box``: over ``dims``, the places of the piece's own dims.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[Any, ...]
    mode: FakeTensorMode
    box: Box
    dims: tuple[int, ...]
    sizes: int

    def context(self) -> Any:
        """The tracing context that compilers look the fake mode up in."""
        return tracing(TracingContext(self.mode))


def make_job(piece: Piece, symbols: dict[sympy.Symbol, int], box: Box) -> Job:
    """Make fake inputs for ``piece`` with its dims ranging over ``box``.

    ``box``: one Range per dim in ``piece.dims``. A Range of one size becomes a plain int. The
    inputs share memory as the traced ones do.
    """
    if piece.graph is None:
        raise ValueError("a splitting piece is not compiled")
    graph = copied(piece.graph)
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    with dynamo.oblivious_sizes():
        values = {
            place: new_size(env, place, span.start, span.end, _hint(span))
            for place, span in zip(piece.dims, box.ranges, strict=True)
        }
        by_symbol = {s: values[place] for s, place in symbols.items() if place in values}
        fakes = Fakes(mode)
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        # A dim that the piece does not depend on is passed all the same; any number will do.
        count = len(placeholders) - len(piece.inputs)
        inputs: list[Any] = [values.get(place, 2) for place in range(count)]
        inputs += [_value(node, fakes, by_symbol) for node in piece.inputs]
    for node, value in zip(placeholders, inputs, strict=True):
        node.meta = {"example_value": value}
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "get_attr"):
            node.meta = {k: v for k, v in node.meta.items() if k == "stack_trace"}
    return Job(graph, tuple(inputs), mode, box, piece.dims, count)


def copied(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of the graph over the same attributes."""
    graph = torch.fx.Graph()
    environment: dict[torch.fx.Node, torch.fx.Node] = {}
    output = graph.graph_copy(module.graph, environment)
    graph.output(output)
    return torch.fx.GraphModule(module, graph)


def _hint(span: Range) -> int:
    """An ordinary size of ``span``."""
    low, high = span.start, span.end
    ordinary = 2 if high < 4 else (low + high) // 2 if high < 1 << 20 else low + 8
    return span.nearest(ordinary)


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory. ``memory``: what stands for that, equal where it is shared."""

    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    dtype: torch.dtype
    device: torch.device
    memory: int


class Fakes:
    """Makes fake tensors, which share memory where their layouts do."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._bases: dict[int, torch.Tensor] = {}

    def tensor(self, layout: Layout) -> torch.Tensor:
        """A fake tensor of ``layout``; the first of its memory begins it."""
        size, stride = layout.size, layout.stride
        with self._mode, torch.inference_mode(False), torch.no_grad():
            base = self._bases.get(layout.memory)
            if base is None:
                made = torch.empty_strided(size, stride, dtype=layout.dtype, device=layout.device)
                self._bases[layout.memory] = made
                return made
            if base.dtype != layout.dtype:
                base = base.view(layout.dtype)
            return base.as_strided(size, stride, layout.offset)


def _value(node: torch.fx.Node, fakes: Fakes, sizes: dict[sympy.Symbol, Any]) -> Any:
    """An input like the traced one, over other symbols."""
    traced = node.meta.get("example_value")
    if not isinstance(traced, torch.Tensor):
        return traced
    (memory,) = storages(node)
    return fakes.tensor(
        Layout(
            tuple(valued(s, sizes) for s in traced.shape),
            tuple(valued(s, sizes) for s in traced.stride()),
            valued(traced.storage_offset(), sizes),
            traced.dtype,
            traced.device,
            memory,
        )
    )
