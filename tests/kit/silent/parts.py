"""Parts of a platform that are silently wrong: compilers, drivers and runtimes."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.frozen import Frozen, unseen
from piecewise_core.testing.simulated.recording import Operation
from piecewise_core.testing.simulated.shadows import is_written

__all__ = ["Compiler", "Driver", "floats", "in_graph"]


class Compiler(EagerCompiler):
    """``change(run, args, kept)`` is called in place of a piece's ``run(*args)``.

    ``kept``: a dict of each compiled piece's own. ``changes(graph)``: whether it does that to a
    piece at all.
    """

    name = "silent"

    def compile(self, graph, example_inputs, *, key, config):
        run, kept = graph.forward, {}
        if not self.changes(graph.graph):
            return CompiledGraph(run)
        return CompiledGraph(lambda *args: tuple(self.change(run, args, kept)))

    def changes(self, graph: torch.fx.Graph) -> bool:
        return True

    def change(self, run, args, kept):
        return run(*args)


class Driver(SimulatedDriver):
    """``alter(steps)`` gets the operators of every graph once it is captured."""

    def capture_end(self, graph):
        super().capture_end(graph)
        steps = graph.recording.steps
        self.alter(graph, [s for s in steps if isinstance(s, Operation)])

    def alter(self, graph: Any, operations: list[Operation]) -> None:
        pass

    @staticmethod
    def keep(operation: Operation, wanted: Any = lambda frozen: True) -> None:
        """Have ``operation`` read copies of what it reads, as it is now."""
        for place, argument in enumerate(operation.function._schema.arguments):
            given = operation.args[place] if place < len(operation.args) else None
            if isinstance(given, Frozen) and not is_written(argument) and wanted(given):
                with torch.inference_mode(), unseen():
                    given._fixed = given.thaw().clone()


def floats(outs: Any, change: Any) -> list[Any]:
    """``outs`` with ``change`` made to those that are floating point."""
    return [change(o) if _is_float(o) else o for o in outs]


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def in_graph(graph: torch.fx.Graph, *names: str) -> bool:
    """Whether an operator, function or method of one of ``names`` is in ``graph``."""
    return any(
        name in str(getattr(n.target, "__name__", n.target)) for n in graph.nodes for name in names
    )
