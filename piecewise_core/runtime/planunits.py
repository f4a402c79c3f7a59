"""What torch.vmap or torch.func.grad encloses, as one operation of a plan.

In between, values are wrapped: no graph and no buffer can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from piecewise_core.graph.closing import closing
from piecewise_core.graph.memory import storages
from piecewise_core.graph.piecegraph import piece_graph
from piecewise_core.graph.segments import Segment
from piecewise_core.graph.split import Program

__all__ = ["Unit"]


class Unit:
    """Runs ``nodes``, given the sizes of all dims and the values of ``inputs``.

    Returns the values of ``outputs``.
    """

    def __init__(self, program: Program, nodes: Sequence[torch.fx.Node]) -> None:
        inside = set(nodes)
        self.outputs = [n for n in nodes if storages(n) and any(u not in inside for u in n.users)]
        traced = program.traced
        run = Segment(True, (), list(nodes))
        dims = len(traced.box.ranges)
        made = piece_graph(traced.graph, traced.symbols, dims, run, self.outputs)
        self.inputs = made.inputs
        self.__name__ = f"{nodes[0].name.lstrip('_')} and what it encloses"
        self._run = closing(made.graph)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)
