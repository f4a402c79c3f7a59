"""A Dynamo graph made ready to serve: split, its platform chosen, its captures decided."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.config import Dim
from piecewise_core.counters import Counters, process_counters
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.door.calls import DoorCalls, Uncapturable, calls_of
from piecewise_core.frontend.door.graph import DoorGraph, TellingGraph
from piecewise_core.frontend.door.made import Made
from piecewise_core.frontend.door.memory import DoorMemories
from piecewise_core.frontend.door.options import Asked, fitted
from piecewise_core.frontend.dynamo_graph import device_type, held_inputs, reading, take_in
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup, prepare
from piecewise_core.graph.contracts import Contracts
from piecewise_core.graph.effects import writes
from piecewise_core.graph.layouts import Layouts
from piecewise_core.graph.memory import storages
from piecewise_core.graph.names import Matcher, source_of
from piecewise_core.graph.split import split
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.program import groups_of
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import Entry

__all__ = ["make"]

logger = logging.getLogger(__name__)


def make(
    graph: torch.fx.GraphModule,
    asked: Asked,
    memories: DoorMemories,
    tell: Callable[[str], None],
) -> DoorGraph:
    """What serves one Dynamo graph, which is taken over. ``tell``: says something once."""
    name = next(filter(None, map(source_of, graph.graph.nodes)), "a graph of torch.compile")
    dims, traced = take_in(graph)
    held = held_inputs(graph.graph)
    kind = device_type(traced.graph)
    setup = prepare(fitted(asked.config, dims), memories.platform(asked.platform, kind), kind)
    if setup.platform.graphs is None:
        tell(asked.without_graphs(setup.selected.info.name))
    setup = _with_graphs(setup, graph.graph)
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    places = tuple(i for i, node in enumerate(nodes) if node in held)
    calls, why = _calls(traced, dims, setup, name)
    differentiable = _differentiable(traced.graph.graph)
    if why:
        setup = dataclasses.replace(setup, graph_mode="none")
    memory = memories.of(setup, asked.platform, _devices(graph.graph))
    counters = Counters(setup.config.on_event, name)
    process_counters.watch(counters)
    cache = setup.artifact_cache()
    cache.ledger.counters = counters
    scheduler = Scheduler(setup.compiler, setup.config, counters, setup.rewrites, cache=cache)
    pool = None if memory.graphs is None else memory.graphs.pool
    region = _region(traced, dims, setup, scheduler, pool)
    _count(region, counters, setup)
    made = DoorGraph if setup.config.on_event is None else TellingGraph
    return made(
        Made(
            name,
            setup,
            region,
            counters,
            memory,
            Background(setup, cache) if setup.config.compile_mode == "background" else None,
            _as_written(region, counters),
            reading(traced),
            len(nodes),
            places,
            tuple(i for i, marked in enumerate(held.values()) if marked),
            calls,
            why,
            not setup.config.capture_sizes,
            differentiable,
        )
    )


def _differentiable(graph: torch.fx.Graph) -> bool:
    """Whether gradients may be asked of what a graph returns, or of a caller's that it writes."""
    written = frozenset[int]().union(*map(writes, graph.nodes))
    if any(storages(node) & written for node in graph.nodes if node.op == "placeholder"):
        return True
    values = (node.meta.get("example_value") for node in graph.output_node().all_input_nodes)
    return any(getattr(value, "requires_grad", False) for value in values)


def _calls(
    traced: Traced, dims: Sequence[Dim], setup: Setup, name: str
) -> tuple[DoorCalls | None, str]:
    """What calls look like where they are to be captured; why they cannot be."""
    if setup.graph_mode == "none":
        return None, ""
    if Ranks(setup.config, None).may_be and groups_of(traced.graph):
        # Each process would capture and free by itself, as Dynamo and the collector come to it.
        return None, "it holds collectives; use pw.compile, or ranks=None on every rank"
    try:
        return calls_of(traced, dims), ""
    except Uncapturable as error:
        logger.info("%s: calls are served without static graphs: %s", name, error)
        return None, str(error)


def _region(
    traced: Traced, dims: Sequence[Dim], setup: Setup, scheduler: Scheduler, pool: Any
) -> Region:
    """The graph, split; compiled now where that is asked for."""
    config = setup.config
    matcher = Matcher(config.splitting_ops, setup.unsafe_ops)
    if matcher:
        matcher.look(traced.graph.graph)
    tried = Contracts((*config.captures, *config.sizes))
    splits, layouts = setup.splits(matcher), Layouts(dims, cuts=False)
    rewrites = setup.rewrites
    found = layouts, tried, rewrites.program, rewrites.of_layouts
    program = split(traced, splits, *found, setup.forks_on)
    backend = setup.backend_class
    region = Region(0, program, config, scheduler, backend, pool)
    if config.compile_mode == "warmup":
        for target in region.targets:
            region.plan(target.box)
    return region


def _count(region: Region, counters: Counters, setup: Setup) -> None:
    counters.add("graphs")
    counters.add("pieces", len(region.program.pieces))
    counters.add("compilable_pieces", len(region.program.compilable))
    counters.tell("traced", "graph", setup.config.bounds)


def _with_graphs(setup: Setup, graph: torch.fx.Graph) -> Setup:
    """Static graphs where nobody said otherwise: one for all where nothing in it forbids that.

    Nobody who passes a backend's name knows what graphs cannot hold: it is cut out.
    """
    config = setup.config
    if setup.platform.graphs is None or config.graph_mode == "none":
        return dataclasses.replace(setup, graph_mode="none")
    splits = setup.config.splitting_ops or "auto"
    mode = config.graph_mode
    if mode is None:
        held = dataclasses.replace(setup, graph_mode="piecewise")
        unsafe = held.splits(Matcher("auto", setup.unsafe_ops))
        mode = "piecewise" if any(map(unsafe, graph.nodes)) else "full_and_piecewise"
    config = config.replace(graph_mode=mode, splitting_ops=splits)
    return dataclasses.replace(setup, config=config, graph_mode=mode)


def _devices(graph: torch.fx.Graph) -> str:
    values = (n.meta.get("example_value") for n in graph.nodes if n.op == "placeholder")
    return ", ".join(sorted({str(v.device) for v in values if isinstance(v, torch.Tensor)}))


def _as_written(region: Region, counters: Counters) -> Entry:
    """Serves what lies outside the dims' bounds, negative ints: Dynamo's guards allow it."""

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        counters.unsized["eager"] += 1
        return region.written_plan()(t, b, *sizes)

    return entry
