"""The graphs that torch.compile has from here."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from piecewise_core.errors import GradNeeded, PiecewiseError
from piecewise_core.frontend.door.facts import DynamoGraph, facts
from piecewise_core.frontend.door.graph import DoorGraph
from piecewise_core.frontend.door.make import make
from piecewise_core.frontend.door.memory import DoorMemories
from piecewise_core.frontend.door.options import Asked, asked
from piecewise_core.frontend.door.surroundings import guard_surroundings
from piecewise_core.frontend.door.wrapped import has_wrappers, unwrapped, with_leaves
from piecewise_core.frontend.dynamo_graph import device_type
from piecewise_core.graph.names import source_of
from piecewise_core.graph.quantized import quantizing, taking_nested
from piecewise_core.torch_compat.dispatcher import count_function_modes, without_function_modes
from piecewise_core.torch_compat.functorch import has_tangent, in_dual_level
from piecewise_core.torch_compat.zerosigns import guard_zero_signs

__all__ = ["door", "dynamo_graphs"]

logger = logging.getLogger(__name__)


class _Door:
    """Makes graphs ready, and knows them for as long as Dynamo uses them."""

    def __init__(self) -> None:
        self._numbered: weakref.WeakValueDictionary[int, DoorGraph] = weakref.WeakValueDictionary()
        self._count = itertools.count()
        self._first = 0
        self._memories = DoorMemories()
        self._told: set[str] = set()

    def take(
        self, graph: torch.fx.GraphModule, options: Mapping[str, Any] | None, mode: str | None
    ) -> Callable[..., Any]:
        """Make one graph ready."""
        wanted = asked(options, mode)
        guard_zero_signs(graph.graph)
        guard_surroundings(device_type(graph))
        return _seen_once(self._serving(graph, wanted))

    def _serving(self, graph: torch.fx.GraphModule, wanted: Asked) -> Callable[..., Any]:
        self._tell(wanted.without_effect())
        node = quantizing(graph.graph)
        if node is not None:
            self._tell(f"{source_of(node)}: a graph with quantized tensors runs as written")
            return graph
        node = taking_nested(graph.graph)
        if node is not None:
            self._tell(f"{node.target}: a graph that takes nested tensors runs as written")
            return graph
        plain = graph
        if has_wrappers(graph.graph):
            try:
                plain = unwrapped(graph)
            except PiecewiseError as error:
                self._tell(f"a graph runs as written: {error}")
                return graph
        made = make(plain, wanted, self._memories, self._tell)
        self._numbered[next(self._count)] = made
        return made if plain is graph else with_leaves(made, graph.graph)

    @property
    def graphs(self) -> list[DoorGraph]:
        """Those that Dynamo still uses, in the order in which it made them."""
        return [graph for _, graph in self.numbered()]

    def numbered(self) -> list[tuple[int, DoorGraph]]:
        """The same, each with a number that no other has."""
        return [(n, graph) for n, graph in sorted(self._numbered.items()) if n >= self._first]

    def reset(self) -> None:
        """Free all static graphs.

        No later call finds code of before a reset, but globals of the user's module keep what
        lies around graph breaks alive. Frames under way may still call it: it is released again.
        """
        for graph in list(self._numbered.values()):
            graph.release()
        self._first = next(self._count)

    def _tell(self, what: str) -> None:
        if what and what not in self._told:
            self._told.add(what)
            logger.warning("%s", what)


def _seen_once(serve: Callable[..., Any]) -> Callable[..., Any]:
    """``serve`` without torch function modes: what they do, Dynamo has written into the graph."""

    def call(*inputs: Any) -> Any:
        if in_dual_level() and any(map(has_tangent, inputs)):
            raise GradNeeded(
                "called in forward-mode differentiation (torch.func.jvp, a dual level) on tensors "
                "that have tangents; backend='piecewise' is for inference: compile with "
                "backend='eager' there"
            )
        if not count_function_modes():
            return serve(*inputs)
        with without_function_modes():
            return serve(*inputs)

    return call


door = _Door()
"""The process's, as Dynamo's code is."""


def dynamo_graphs() -> tuple[DynamoGraph, ...]:
    """What there is to say of every graph that torch.compile has from here, the oldest first."""
    return facts(door.graphs)
