"""From a traced graph to a program of pieces: what runs, in which order, on which values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.collectives import keep_waits
from piecewise_core.graph.contexts import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.forks import Forks, Lane, find_forks
from piecewise_core.graph.hazards import Hazards
from piecewise_core.graph.hostinputs import bring_to_device
from piecewise_core.graph.literals import lift_literals
from piecewise_core.graph.memory import storages
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.opfacts import runs_foreign
from piecewise_core.graph.piecegraph import piece_graph
from piecewise_core.graph.segments import Segment, is_item, normalise, segments
from piecewise_core.graph.trace import Traced
from piecewise_core.graph.varying import varies

__all__ = ["Piece", "Program", "inputs_in", "split"]


@dataclass(frozen=True)
class Piece:
    """One run of the program.

    ``index``: place among all pieces. ``splitting``: run as written, from ``nodes``. ``entered``:
    autocast regions to open around a splitting piece. Compilable ones have the rest: ``graph``,
    whose placeholders take the sizes of all dims and then the values of ``inputs``, and whose
    output is the tuple of the values of ``outputs``. ``dims``: places of the dims that the piece
    depends on, ascending. ``hazard``: why this piece must run as written, or None. ``varies``:
    whether its sizes depend on data; it is splitting then, and has ``inputs`` and ``outputs`` too.
    ``lane``: of a fork, None in none: pieces of one fork come one after the other, lane by lane.
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
    varies: bool = False
    lane: Lane | None = None

    @property
    def ops(self) -> tuple[str, ...]:
        """The names of what the piece runs, in order."""
        return tuple(op_name(n) for n in self.nodes)

    @property
    def source(self) -> str:
        """``file:line`` of the first node that the trace could place, or ""."""
        return next((s for s in map(source_of, self.nodes) if s), "")


Matcher = Callable[[torch.fx.Node], bool]


@dataclass(frozen=True)
class Program:
    """A split graph.

    ``traced``: where it came from. ``values``: the graph's results in order: nodes, or constants.
    ``mutated``, ``mutated_bound``: places of flat inputs and of bound tensors that the program
    writes to. ``reshaped``: memory of tensors whose own sizes or strides it changes.
    """

    traced: Traced
    pieces: tuple[Piece, ...]
    values: tuple[Any, ...]
    mutated: frozenset[int]
    mutated_bound: frozenset[int] = frozenset()
    reshaped: frozenset[int] = frozenset()

    @cached_property
    def compilable(self) -> tuple[Piece, ...]:
        """The pieces that are compiled."""
        return tuple(p for p in self.pieces if not p.splitting)

    @cached_property
    def returned(self) -> frozenset[int]:
        """Places of the flat inputs in whose memory results lie."""
        return inputs_in(self.traced, self._of_results, "tensor")

    @cached_property
    def lent(self) -> frozenset[int]:
        """Places of the bound tensors that it writes to, and in which no result lies.

        Nothing is made of what they hold ahead of a call, and nobody is given their memory, no
        operator of others either: what knows only where they lie serves what lies there later.
        """
        foreign = [n for n in self.traced.graph.graph.nodes if runs_foreign(n)]
        given = (storages(each) for node in foreign for each in node.all_input_nodes)
        kept = self._of_results | self.reshaped | frozenset().union(*given)
        return self.mutated_bound - inputs_in(self.traced, kept, "bound")

    @property
    def _of_results(self) -> frozenset[int]:
        nodes = [v for v in self.values if isinstance(v, torch.fx.Node)]
        return frozenset[int]().union(*map(storages, nodes))


def split(
    traced: Traced,
    matcher: Callable[[torch.fx.Node], bool],
    learn: Callable[[Traced, Sequence[Segment]], Traced | None] = lambda traced, runs: None,
    distrust: Callable[[Traced, Matcher], Matcher] = lambda traced, matcher: matcher,
    rewrites: Iterable[Callable[[torch.fx.GraphModule, Matcher], None]] = (),
    of_layouts: Sequence[Callable[[torch.fx.GraphModule, Matcher], None]] = (),
    forks_on: str | None = None,
) -> Program:
    """Cut ``traced`` at the nodes that ``matcher`` accepts, and where forks begin and end.

    ``learn``: writes the real strides of what splitting runs return into the trace; whether it
    changed any. ``distrust``: adds to ``matcher`` what must not be compiled.
    ``rewrites``: change the graph before it is cut, in order; ``of_layouts``: those that go by the
    real strides, and by all cuts. ``forks_on``: the type of the device to find forks for, of two
    streams; None to find none. Takes the graph over (it is normalised in place). Raises
    TraceFailed when a size depends on tensor data.
    """
    graph = traced.graph.graph
    cut = matcher
    matcher = lambda node: cut(node) or varies(node)  # noqa: E731
    normalise(graph)
    _drop_dead_outputs(graph, traced.output.used)
    lift_literals(traced.graph, matcher)
    _drop_dead_nodes(graph)
    matcher = bring_to_device(graph, matcher)
    for rewrite in rewrites:
        rewrite(traced.graph, matcher)
        _drop_dead_nodes(graph)
    matcher = distrust(traced, keep_waits(graph, matcher))
    traced = learn(traced, segments(graph, matcher)) or traced
    for rewrite in of_layouts:
        rewrite(traced.graph, matcher)
    # Only now: in another layout a view may be a copy, and a copy a view.
    forks = Forks() if forks_on is None else find_forks(graph, _weights(traced), forks_on)
    runs = segments(graph, matcher, forks.order, forks.lanes)
    nodes = [n for run in runs for n in run.nodes]
    writes = {n: effects.writes(n) for n in nodes}
    reshaped = frozenset().union(*(writes[n] for n in nodes if effects.reshapes(n)))
    made = _Pieces(traced, runs, Hazards(runs, writes, reshaped))
    pieces = tuple(made.piece(i, run) for i, run in enumerate(runs))
    written = frozenset().union(*writes.values())
    return Program(
        traced,
        pieces,
        tuple(graph.output_node().args[0]),  # type: ignore[arg-type]
        mutated=inputs_in(traced, written, "tensor"),
        mutated_bound=inputs_in(traced, written, "bound"),
        reshaped=reshaped,
    )


def _weights(traced: Traced) -> list[torch.fx.Node]:
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    both = zip(placeholders, traced.inputs, strict=True)
    return [node for node, source in both if source.bound is not None]


def _drop_dead_outputs(graph: torch.fx.Graph, used: Sequence[int]) -> None:
    """Results that the call does not return become None, so that no piece computes them."""
    output = graph.output_node()
    results: Any = output.args[0]
    output.args = (tuple(a if i in used else None for i, a in enumerate(results)),)


def _drop_dead_nodes(graph: torch.fx.Graph) -> None:
    """Unused values that nobody would miss are no work for a piece."""
    for node in reversed(graph.nodes):
        if not node.users and effects.is_pure(node):
            graph.erase_node(node)


def inputs_in(traced: Traced, memory: frozenset[int], kind: str) -> frozenset[int]:
    """Places of the graph's inputs of one kind, ``tensor`` or ``bound``, in in ``memory``."""
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    return frozenset(
        getattr(source, kind)
        for node, source in zip(placeholders, traced.inputs, strict=True)
        if getattr(source, kind) is not None and storages(node) & memory
    )


class _Pieces:
    """Builds pieces, knowing which run every value is made in."""

    def __init__(self, traced: Traced, runs: Sequence[Segment], hazards: Hazards) -> None:
        self._traced = traced
        self._hazards = hazards
        self._graph = traced.graph.graph
        self._run_of = {n: i for i, run in enumerate(runs) for n in run.nodes}
        for node in self._graph.nodes:
            if is_item(node) and node.args[0] in self._run_of:
                self._run_of[node] = self._run_of[node.args[0]]
        self._made_in: list[list[torch.fx.Node]] = [[] for _ in runs]
        for node in self._graph.nodes:
            if node in self._run_of:
                self._made_in[self._run_of[node]].append(node)

    def piece(self, index: int, run: Segment) -> Piece:
        if run.splitting and not run.varies:
            return Piece(index, True, tuple(run.nodes), run.entered, lane=run.lane)
        outputs = self._outputs(index)
        traced = self._traced
        made = piece_graph(traced.graph, traced.symbols, len(traced.box.ranges), run, outputs)
        nodes = tuple(n for n in run.nodes if not (is_autocast_enter(n) or is_autocast_exit(n)))
        if run.varies:
            parts = made.graph, made.dims, made.inputs, outputs
            return Piece(index, True, tuple(run.nodes), run.entered, *parts, varies=True)
        hazard = self._hazards.of(index, made.inputs, outputs)
        parts = made.graph, made.dims, made.inputs, outputs
        return Piece(index, False, nodes, (), *parts, hazard, lane=run.lane)

    def _outputs(self, index: int) -> tuple[torch.fx.Node, ...]:
        """Values made in run ``index`` that another run or the caller needs, in order."""
        return tuple(n for n in self._made_in[index] if self._leaves(n) and _goes(n))

    def _leaves(self, node: torch.fx.Node) -> bool:
        if isinstance(node.meta.get("example_value"), (tuple, list)):
            return False
        index = self._run_of[node]
        return any(
            user.op == "output" or self._run_of.get(user, index) != index for user in node.users
        )


def _goes(node: torch.fx.Node) -> bool:
    """Whether a value can leave its piece: a tensor, or a number that data decides."""
    return bool(storages(node)) or varies(node)
