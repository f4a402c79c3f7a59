"""The graph module of one compilable run: sizes in, tensors in, tensors out."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.contexts import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.memory import values
from piecewise_core.graph.names import source_of
from piecewise_core.graph.segments import Segment, is_item, is_size, producer
from piecewise_core.graph.sizes import build, expression
from piecewise_core.torch_compat.modules import graph_module
from piecewise_core.torch_compat.targets import exit_autocast

__all__ = ["PieceGraph", "piece_graph"]


@dataclass(frozen=True)
class PieceGraph:
    """A run as a graph module of its own.

    ``graph``: its placeholders take the sizes of all dims and then the values of ``inputs``; its
    output is the tuple of the values asked for. ``dims``: places of the dims that it depends on,
    ascending.
    """

    graph: torch.fx.GraphModule
    dims: tuple[int, ...]
    inputs: tuple[torch.fx.Node, ...]


def piece_graph(
    module: torch.fx.GraphModule,
    symbols: Mapping[sympy.Symbol, int],
    dim_count: int,
    run: Segment,
    outputs: Sequence[torch.fx.Node],
) -> PieceGraph:
    """Build the graph of ``run``, a part of ``module``, that returns ``outputs``.

    ``symbols``: symbol -> place among the ``dim_count`` dims. Raises TraceFailed when a size
    depends on tensor data.
    """
    return _Builder(module, symbols, run).build(dim_count, outputs)


class _Builder:
    def __init__(
        self, module: torch.fx.GraphModule, symbols: Mapping[sympy.Symbol, int], run: Segment
    ) -> None:
        self._module = module
        self._symbols = symbols
        self._run = run
        self._graph = torch.fx.Graph()
        self._map: dict[torch.fx.Node, Any] = {}
        self._symbol_nodes: dict[sympy.Symbol, torch.fx.Node] = {}
        self._inside = {*run.nodes, *run.entered}

    def build(self, dim_count: int, outputs: Sequence[torch.fx.Node]) -> PieceGraph:
        inputs = self._inputs()
        dims = self._place_symbols(dim_count, inputs)
        for node in inputs:
            made = self._map[node] = self._graph.placeholder(node.name)
            made.meta["example_value"] = node.meta.get("example_value")
        for node in self._run.entered:
            self._map[node] = self._graph.node_copy(node, self._map.__getitem__)
        opened = [self._map[node] for node in self._run.entered]
        for node in self._run.nodes:
            self._copy(node, opened)
        for entered in reversed(opened):
            self._graph.call_function(exit_autocast, (entered,))
        for node in outputs:
            if is_item(node) and node not in self._map:
                self._map[node] = self._item(node)
        result = self._graph.output(tuple(self._map[n] for n in outputs))
        result.meta["example_value"] = tuple(n.meta.get("example_value") for n in outputs)
        return PieceGraph(graph_module(self._module, self._graph), dims, inputs)

    def _inputs(self) -> tuple[torch.fx.Node, ...]:
        """Tensors from outside, in the order of their first use."""
        found: dict[torch.fx.Node, None] = {}
        for node in self._run.nodes:
            for used in node.all_input_nodes:
                if (
                    producer(used) in self._inside
                    or is_size(used)
                    or _is_module(self._module, used)
                ):
                    continue
                found[used] = None
        return tuple(found)

    def _place_symbols(self, dim_count: int, inputs: Sequence[torch.fx.Node]) -> tuple[int, ...]:
        """One size placeholder per dim; returns the dims that the piece depends on."""
        used = self._used_symbols(inputs)
        by_place: dict[int, list[sympy.Symbol]] = {}
        for symbol in sorted(used, key=str):
            by_place.setdefault(self._symbols[symbol], []).append(symbol)
        sizes = self._symbol_values(used)
        for place in range(dim_count):
            node = self._graph.placeholder(f"s{place}")
            for symbol in by_place.get(place, ()):
                self._symbol_nodes[symbol] = node
                node.meta["example_value"] = sizes.get(symbol)
        return tuple(sorted(by_place))

    def _used_symbols(self, inputs: Sequence[torch.fx.Node]) -> set[sympy.Symbol]:
        used: set[sympy.Symbol] = set()
        for node in inputs:
            for value in values(node.meta.get("example_value")):
                if isinstance(value, torch.Tensor):
                    used |= _symbols_of((*value.shape, *value.stride(), value.storage_offset()))
        for node in self._run.nodes:
            for size in node.all_input_nodes:
                if is_size(size):
                    used |= _symbols_of(size.meta["example_value"])
        unknown = used - set(self._symbols)
        if unknown and not self._run.varies:
            where = source_of(self._run.nodes[0]) or "a piece"
            raise TraceFailed(
                f"sizes {sorted(map(str, unknown))} in {where} depend on tensor data; piecewise "
                "needs sizes that follow from the inputs' sizes. Move the data-dependent part out "
                "of the compiled model"
            )
        return used - unknown

    def _symbol_values(self, wanted: set[sympy.Symbol]) -> dict[sympy.Symbol, torch.SymInt]:
        found: dict[sympy.Symbol, torch.SymInt] = {}
        for node in self._module.graph.nodes:
            if wanted <= found.keys():
                break
            if node.op != "placeholder":
                continue
            for value in values(node.meta.get("example_value")):
                sizes: Any = value.shape if isinstance(value, torch.Tensor) else (value,)
                for size in sizes:
                    symbol = expression(size) if isinstance(size, torch.SymInt) else None
                    if isinstance(symbol, sympy.Symbol):
                        found[symbol] = size
        return found

    def _copy(self, node: torch.fx.Node, opened: list[torch.fx.Node]) -> None:
        self._map[node] = self._graph.node_copy(node, self._value)
        if is_autocast_enter(node):
            opened.append(self._map[node])
        elif is_autocast_exit(node):
            opened.remove(self._map[node.args[0]])  # type: ignore[index]

    def _value(self, node: torch.fx.Node) -> Any:
        """What stands for ``node`` inside the piece."""
        if node in self._map:
            return self._map[node]
        if is_size(node):
            value = node.meta["example_value"]
            return build(self._graph, value, self._symbol_nodes.__getitem__)
        if is_item(node):
            self._map[node] = self._item(node)
        elif _is_module(self._module, node):
            self._map[node] = self._graph.node_copy(node)
        return self._map[node]

    def _item(self, node: torch.fx.Node) -> torch.fx.Node:
        whole, place = node.args
        made = self._graph.call_function(
            node.target,  # type: ignore[arg-type]
            (self._value(whole), place),  # type: ignore[arg-type]
        )
        made.meta.update(node.meta)
        return made


def _is_module(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a node names a submodule (the body of a higher-order operator)."""
    if node.op != "get_attr":
        return False
    return isinstance(operator.attrgetter(str(node.target))(module), torch.nn.Module)


def _symbols_of(value: Any) -> set[sympy.Symbol]:
    found = expression(value)
    if isinstance(found, tuple):
        return set().union(*(_symbols_of(v) for v in found)) if found else set()
    return set(found.free_symbols) if isinstance(found, sympy.Basic) else set()
