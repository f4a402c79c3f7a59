"""Static graphs of vLLM's pieces, by piecewise's driver: pools, memory, budget, failures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.building_blocks import no_collection, pytree
from piecewise_core.protocols import BudgetContext

__all__ = ["Captures"]

logger = logging.getLogger("vllm.piecewise")


class Captures:
    """The graphs of one process. ``declared``: the platform's driver, as GraphCompiler has it.

    ``dropped``: batches that are served without graphs, and why. ``turn``: the batch last seen,
    and its number, so that one of a forward's pieces hashes it for all.
    """

    def __init__(self, declared: Any) -> None:
        self.declared = declared
        self.dropped: dict[Any, str] = {}
        self._pools: dict[Any, Any] = {}
        self._captured: Counter[Any] = Counter()
        self._slots: dict[Any, int] = {}
        self.turn: tuple[Any, int] = (None, -1)
        self._left = declared.resource_budget(BudgetContext(1, (), 0)) if declared.graphs else 0
        self._reported = False

    def find(self, batch: Any, capturing: bool) -> tuple[Any, int]:
        """``turn``, with ``batch`` now. Threads may have turns of their own: keep what is given."""
        self.turn = found = batch, self._slots.setdefault(batch, len(self._slots))
        if not capturing and not self._reported:
            self._reported = True
            logger.info("piecewise-vllm: %s", self.summary())
        return found

    def capture(self, run: Callable[[], Any], handle: Any, batch: Any) -> Any:
        """Capture ``run`` into the pool that the device's library knows by ``handle``.

        Returns graph, results, and results that keep no memory alive; None where the batch is to
        be served without. The caller keeps the results until what reads them is captured.
        """
        of = self.declared
        if self._left is not None and self._captured.total() >= self._left:
            return self._drop(batch, "the device has no room for more graphs")
        graph = of.graphs.new_graph()
        try:
            if of.register_generator is not None:
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

    def release(self, graph: Any, batch: Any) -> None:
        """Free a graph."""
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

    def _pool(self, handle: Any) -> Any:
        if handle not in self._pools:
            graphs = self.declared.graphs
            known = getattr(graphs, "pool_of", None)  # else one for our own graphs
            self._pools[handle] = graphs.new_pool() if known is None else known(handle)
        return self._pools[handle]

    def _weak(self, output: Any) -> Any:
        weak = self.declared.weak_ref or (lambda tensor: tensor)
        return pytree.tree_map(lambda t: weak(t) if isinstance(t, torch.Tensor) else t, output)

    def _drop(self, batch: Any, why: str) -> None:
        if batch not in self.dropped:
            self.dropped[batch] = why
            logger.warning("piecewise-vllm: %s is served without static graphs: %s", batch, why)
