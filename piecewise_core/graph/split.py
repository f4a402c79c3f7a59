"""From a traced graph to a program of pieces: what runs, in which order, on which values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.errors import TraceFailed
from piecewise_core.graph import effects
from piecewise_core.graph.cleaning import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.names import Matcher, op_name
from piecewise_core.graph.segments import Segment, is_item, is_size, normalise, segments
from piecewise_core.graph.sizes import build, expression
from piecewise_core.graph.trace import Traced

__all__ = ["Piece", "Program", "split"]


@dataclass(frozen=True)
class Piece:
    """One run of the program.

    ``index``: place among all pieces. ``splitting``: run as written, from ``nodes``.
    Compilable ones have the rest: ``graph``, whose placeholders take the sizes of all dims and then
    the values of ``inputs``, and whose output is the tuple of the values of ``outputs``. ``dims``:
    places of the dims that the piece depends on, ascending. ``hazard``: why this piece must run as written, or None. ``entered``:
    autocast regions to open around a splitting piece.
    """

    index: int
    splitting: bool
    nodes: tuple[torch.fx.Node, ...]
    entered: tuple[torch.fx.Node, ...] = ()
    graph: torch.fx.GraphModule | None = None
    dims: tuple[int, ...] = ()
    inputs: tuple[torch.fx.Node, ...] = ()
    outputs: tuple[torch.fx.Node, ...] = ()
    hazard: str | None = None

    @property
    def ops(self) -> tuple[str, ...]:
        """The names of what the piece runs, in order."""
        return tuple(op_name(n) for n in self.nodes)

    @property
    def source(self) -> str:
        """``file:line`` of the first node that the trace could place, or ""."""
        return next((s for s in map(source_of, self.nodes) if s), "")


@dataclass(frozen=True)
class Program:
    """A split graph.

    ``values``: the graph's results in order: nodes, or constants. ``mutated``: places of flat
    inputs that the program writes to. ``traced``: where it came from.
    """

    traced: Traced
    pieces: tuple[Piece, ...]
    values: tuple[Any, ...]
    mutated: frozenset[int]

    @property
    def compilable(self) -> tuple[Piece, ...]:
        """The pieces that are compiled."""
        return tuple(p for p in self.pieces if not p.splitting)


def source_of(node: torch.fx.Node) -> str:
    """``file:line`` of the user code that made ``node``, or ""."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    found = [f for f in found if not f[0].startswith("<piecewise")]
    return f"{found[-1][0]}:{found[-1][1]}" if found else ""


def split(traced: Traced, matcher: Matcher) -> Program:
    """Cut ``traced`` at the nodes that ``matcher`` accepts.

    Takes the graph over (it is normalised in place). Raises TraceFailed when a size depends on
    tensor data.
    """
    module = traced.graph
    normalise(module.graph)
    _drop_dead_outputs(module.graph, traced.output.used)
    runs = segments(module.graph, matcher)
    writes = {n: effects.writes(n) for run in runs for n in run.nodes}
    output = next(n for n in module.graph.nodes if n.op == "output")
    results = tuple(output.args[0])
    made = _Pieces(module, traced, runs, results, writes)
    pieces = tuple(made.piece(i, run) for i, run in enumerate(runs))
    return Program(traced, pieces, results, _mutated(module.graph, traced, writes))


def _drop_dead_outputs(graph: torch.fx.Graph, used: Sequence[int]) -> None:
    """Results that the call does not return become None, so that no piece computes them."""
    output = next(n for n in graph.nodes if n.op == "output")
    kept = tuple(a if i in used else None for i, a in enumerate(output.args[0]))
    output.args = (kept,)


def _mutated(
    graph: torch.fx.Graph, traced: Traced, writes: Mapping[torch.fx.Node, frozenset[int]]
) -> frozenset[int]:
    written = frozenset().union(*writes.values()) if writes else frozenset()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    return frozenset(
        source.tensor
        for node, source in zip(placeholders, traced.inputs, strict=True)
        if source.tensor is not None and effects.storages(node) & written
    )


class _Pieces:
    """Builds pieces, knowing what every run reads, makes and writes."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        traced: Traced,
        runs: Sequence[Segment],
        results: Sequence[Any],
        writes: Mapping[torch.fx.Node, frozenset[int]],
    ) -> None:
        self._module = module
        self._traced = traced
        self._runs = runs
        self._writes = writes
        self._run_of = {n: i for i, run in enumerate(runs) for n in run.nodes}
        for node in module.graph.nodes:
            if is_item(node) and node.args[0] in self._run_of:
                self._run_of[node] = self._run_of[node.args[0]]
        self._results = {r for r in results if isinstance(r, torch.fx.Node)}

    def piece(self, index: int, run: Segment) -> Piece:
        if run.splitting:
            return Piece(index, True, tuple(run.nodes), run.entered)
        outputs = self._outputs(index)
        graph, dims, inputs = _PieceGraph(self._module, self._traced, run).build(outputs)
        nodes = tuple(n for n in run.nodes if not (is_autocast_enter(n) or is_autocast_exit(n)))
        hazard = self._hazard(index, run, inputs, outputs)
        return Piece(index, False, nodes, (), graph, dims, inputs, outputs, hazard)

    def _outputs(self, index: int) -> tuple[torch.fx.Node, ...]:
        """Values made in run ``index`` that another run or the caller needs, in order."""
        return tuple(
            node
            for node in self._module.graph.nodes
            if self._run_of.get(node) == index and effects.storages(node) and self._leaves(node)
        )

    def _leaves(self, node: torch.fx.Node) -> bool:
        if isinstance(node.meta.get("example_value"), (tuple, list)):
            return False
        index = self._run_of[node]
        return node in self._results or any(
            self._run_of.get(user, index) != index for user in node.users if user.op != "output"
        )

    def _hazard(
        self,
        index: int,
        run: Segment,
        inputs: Sequence[torch.fx.Node],
        outputs: Sequence[torch.fx.Node],
    ) -> str | None:
        """Why a compiler could break the aliasing that this piece takes part in, or None.

        Compilers see a piece alone. Two inputs over one memory that the piece writes, and two
        outputs over one memory that later code writes, are beyond what they promise to keep.
        """
        written = frozenset().union(*(self._writes[n] for n in run.nodes))
        shared = _shared(inputs)
        if shared & written:
            return "it writes to memory that two of its inputs share"
        later = frozenset().union(
            *(self._writes[n] for after in self._runs[index + 1 :] for n in after.nodes)
        )
        if _shared(outputs) & later:
            return "a later piece writes to memory that two of its outputs share"
        return None


def _shared(nodes: Sequence[torch.fx.Node]) -> frozenset[int]:
    """Memory that more than one of ``nodes`` lives in."""
    seen: set[int] = set()
    twice: set[int] = set()
    for node in nodes:
        found = effects.storages(node)
        twice |= seen & found
        seen |= found
    return frozenset(twice)


class _PieceGraph:
    """Builds the graph module of one compilable run."""

    def __init__(self, module: torch.fx.GraphModule, traced: Traced, run: Segment) -> None:
        self._module = module
        self._symbols = traced.symbols
        self._dim_count = len(traced.box.ranges)
        self._run = run
        self._graph = torch.fx.Graph()
        self._map: dict[torch.fx.Node, Any] = {}
        self._symbol_nodes: dict[sympy.Symbol, torch.fx.Node] = {}
        self._inside = set(run.nodes)

    def build(
        self, outputs: Sequence[torch.fx.Node]
    ) -> tuple[torch.fx.GraphModule, tuple[int, ...], tuple[torch.fx.Node, ...]]:
        inputs = self._inputs()
        dims = self._place_symbols(inputs)
        for node in inputs:
            self._map[node] = self._placeholder(node)
        opened = [self._reopen(node) for node in self._run.entered]
        for node in self._run.nodes:
            self._copy(node, opened)
        for entered in reversed(opened):
            self._graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
        for node in outputs:
            if is_item(node) and node not in self._map:
                self._map[node] = self._item(node)
        result = self._graph.output(tuple(self._map[n] for n in outputs))
        result.meta["example_value"] = tuple(n.meta.get("example_value") for n in outputs)
        return torch.fx.GraphModule(self._module, self._graph), dims, inputs

    def _inputs(self) -> tuple[torch.fx.Node, ...]:
        """Tensors from outside, in the order of their first use."""
        found: dict[torch.fx.Node, None] = {}
        for node in self._run.nodes:
            for used in node.all_input_nodes:
                producer = used.args[0] if is_item(used) else used
                if producer in self._inside or is_size(used) or _is_module(self._module, used):
                    continue
                found[used] = None
        return tuple(found)

    def _place_symbols(self, inputs: Sequence[torch.fx.Node]) -> tuple[int, ...]:
        """One size placeholder per dim; returns the dims that the piece depends on."""
        used: set[sympy.Symbol] = set()
        for node in inputs:
            for value in effects.values(node.meta.get("example_value")):
                if isinstance(value, torch.Tensor):
                    used |= _symbols_of((tuple(value.shape), value.stride()))
        for node in self._run.nodes:
            for size in node.all_input_nodes:
                if is_size(size):
                    used |= _symbols_of(size.meta["example_value"])
        unknown = used - set(self._symbols)
        if unknown:
            raise TraceFailed(
                f"sizes {sorted(map(str, unknown))} in {source_of(self._run.nodes[0]) or 'a piece'} "
                "depend on tensor data; piecewise needs sizes that follow from the inputs' sizes"
            )
        by_place: dict[int, list[sympy.Symbol]] = {}
        for symbol in used:
            by_place.setdefault(self._symbols[symbol], []).append(symbol)
        values = self._symbol_values()
        for place in range(self._dim_count):
            node = self._graph.placeholder(f"s{place}")
            for symbol in by_place.get(place, ()):
                self._symbol_nodes[symbol] = node
                node.meta["example_value"] = values.get(symbol)
        return tuple(sorted(by_place))

    def _symbol_values(self) -> dict[sympy.Symbol, torch.SymInt]:
        found = {}
        for node in self._module.graph.nodes:
            if node.op != "placeholder":
                continue
            for value in effects.values(node.meta.get("example_value")):
                sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
                for size in sizes:
                    if isinstance(size, torch.SymInt) and isinstance(
                        expression(size), sympy.Symbol
                    ):
                        found[expression(size)] = size
        return found

    def _placeholder(self, node: torch.fx.Node) -> torch.fx.Node:
        made = self._graph.placeholder(node.name)
        made.meta["example_value"] = node.meta.get("example_value")
        return made

    def _reopen(self, node: torch.fx.Node) -> torch.fx.Node:
        self._map[node] = self._graph.node_copy(node, lambda n: self._map[n])
        made: torch.fx.Node = self._map[node]
        return made

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
        producer = self._map[node.args[0]]  # type: ignore[index]
        made = self._graph.call_function(node.target, (producer, node.args[1]))  # type: ignore[arg-type]
        made.meta.update(node.meta)
        return made


def _is_module(module: torch.fx.GraphModule, node: torch.fx.Node) -> bool:
    """Whether a node names a submodule (the body of a higher-order operator)."""
    if node.op != "get_attr":
        return False
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return isinstance(found, torch.nn.Module)


def _symbols_of(value: Any) -> set[sympy.Symbol]:
    found = expression(value)
    if isinstance(found, tuple):
        return set().union(*(_symbols_of(v) for v in found)) if found else set()
    return set(found.free_symbols) if isinstance(found, sympy.Basic) else set()
