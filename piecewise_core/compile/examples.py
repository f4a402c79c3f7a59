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

__all__ = ["Job", "copied", "make_job"]


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
        maker = _Maker(mode, by_symbol)
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        # A dim that the piece does not depend on is passed all the same; any number will do.
        count = len(placeholders) - len(piece.inputs)
        inputs: list[Any] = [values.get(place, 2) for place in range(count)]
        inputs += [maker.value(node) for node in piece.inputs]
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


class _Maker:
    """Makes fake tensors like the traced ones, over other symbols."""

    def __init__(self, mode: FakeTensorMode, sizes: dict[sympy.Symbol, Any]) -> None:
        self._mode = mode
        self._sizes = sizes
        self._bases: dict[int, torch.Tensor] = {}

    def value(self, node: torch.fx.Node) -> Any:
        traced = node.meta.get("example_value")
        if not isinstance(traced, torch.Tensor):
            return traced
        size = [valued(s, self._sizes) for s in traced.shape]
        stride = [valued(s, self._sizes) for s in traced.stride()]
        offset = valued(traced.storage_offset(), self._sizes)
        (memory,) = storages(node)
        with self._mode, torch.inference_mode(False), torch.no_grad():
            base = self._bases.get(memory)
            if base is None:
                made = torch.empty_strided(size, stride, dtype=traced.dtype, device=traced.device)
                self._bases[memory] = made
                return made
            if base.dtype == traced.dtype:
                return base.as_strided(size, stride, offset)
            return base.view(traced.dtype).as_strided(size, stride, offset)
