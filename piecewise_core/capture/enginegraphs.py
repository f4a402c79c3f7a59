"""Static graphs of pieces that an engine calls by itself: pools, budget, memory, failures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch

from piecewise_core.graph.garbage import no_collection
from piecewise_core.plugins import Declared
from piecewise_core.protocols import BudgetContext
from piecewise_core.torch_compat import pytree

__all__ = ["EngineGraphs"]

logger = logging.getLogger(__name__)


class EngineGraphs:
    """The graphs that one engine has captured with a platform's driver.

    The engine decides what is captured when, on which stream, in what order its graphs are
    replayed, and which of them lie in one pool. ``declared``: the platform's device and driver.
    ``tell``: is given a sentence for each batch that goes without graphs. ``dropped``: these
    batches, and why. ``turn``: the batch that was seen last, and its number, by which the pieces
    of one forward know it without hashing it again.
    """

    def __init__(self, declared: Declared, tell: Callable[[str], None] = logger.warning) -> None:
        self.declared = declared
        self.dropped: dict[Hashable, str] = {}
        self.tell = tell
        self.turn: tuple[Any, int] = (None, -1)
        self._numbers: dict[Hashable, int] = {}
        self._pools: dict[Hashable, Any] = {}
        self._captured: Counter[Hashable] = Counter()
        self._left: int | None = 0
        if declared.graphs is not None:
            self._left = declared.resource_budget(BudgetContext(1, (), 0))

    def take_turn(self, batch: Hashable) -> tuple[Any, int]:
        """``turn``, with ``batch`` now. Threads may have turns of their own: keep what is given."""
        self.turn = found = batch, self._numbers.setdefault(batch, len(self._numbers))
        return found

    def capture(self, run: Callable[[], Any], handle: Hashable, batch: Hashable) -> Any:
        """Capture ``run()`` on the current stream, into the pool known by ``handle``.

        ``handle``: the device library's name of a pool. ``batch``: whose piece this is. Returns
        the graph, the results, and results that keep no memory alive; None where the batch is to
        be served without graphs from now on. Whoever calls keeps the results until what reads them
        is captured.
        """
        of = self.declared
        if self._left is not None and self._captured.total() >= self._left:
            return self._drop(batch, "the device has no room for more graphs")
        graph = of.graphs.new_graph()
        try:
            if of.register_generator is not None and of.rng is not None:
                of.register_generator(graph, of.rng())
            with no_collection():
                of.graphs.capture_begin(graph, self._pool(handle), of.device.current_stream())
                output = run()
                of.graphs.capture_end(graph)
        except Exception as error:
            of.abort_capture(graph)
            of.graphs.reset(graph)
            return self._drop(batch, of.explain(error) or f"{type(error).__name__}: {error}")
        self._captured[batch] += 1
        return graph, output, self._weak(output)

    def release(self, graph: Any, batch: Hashable) -> None:
        """Free a graph of ``batch``."""
        self.declared.graphs.reset(graph)
        self._captured[batch] -= 1

    def summary(self) -> str:
        """One line: how many graphs there are, in how much memory."""
        whole = len([n for batch, n in self._captured.items() if n and batch not in self.dropped])
        held = sum(self.declared.pool_bytes(pool) for pool in self._pools.values())
        part = f", {len(self.dropped)} in part or not at all" if self.dropped else ""
        count = self._captured.total()
        return f"{count} static graphs: {whole} batch sizes captured{part}; {held} bytes"

    def lines(self) -> list[str]:
        """What is captured, in which memory, and what was dropped."""
        pools, of = self._pools.items(), self.declared
        return [
            *(f"{n} static graphs for {batch}" for batch, n in self._captured.items()),
            *(f"pool {h}: {of.pool_bytes(p)} bytes, driver {of.driver_bytes(p)}" for h, p in pools),
            *(f"no static graphs for {batch}: {why}" for batch, why in self.dropped.items()),
        ]

    def _pool(self, handle: Hashable) -> Any:
        if handle not in self._pools:
            graphs = self.declared.graphs
            known = getattr(graphs, "pool_of", None)  # else one for our own graphs
            self._pools[handle] = graphs.new_pool() if known is None else known(handle)
        return self._pools[handle]

    def _weak(self, output: Any) -> Any:
        weak = self.declared.weak_ref or (lambda tensor: tensor)
        return pytree.tree_map(lambda t: weak(t) if isinstance(t, torch.Tensor) else t, output)

    def _drop(self, batch: Hashable, why: str) -> None:
        if batch not in self.dropped:
            self.dropped[batch] = why
            self.tell(f"{batch} is served without static graphs: {why}")
