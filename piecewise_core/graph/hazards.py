"""Which pieces a compiler could get wrong, because what it would need to know lies outside them.

Compilers see a piece alone. Such a piece runs as written instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from piecewise_core.graph.contexts import is_switch
from piecewise_core.graph.memory import shared, storages, tensor_inputs
from piecewise_core.graph.segments import Segment

__all__ = ["Hazards"]

Memory = frozenset[int]


class Hazards:
    """Judges the runs of one program.

    ``writes``: memory that each node writes to. ``reshaped``: memory of tensors whose own sizes
    or strides the program changes.
    """

    def __init__(
        self,
        runs: Sequence[Segment],
        writes: Mapping[torch.fx.Node, Memory],
        reshaped: Memory,
    ) -> None:
        self._runs = runs
        self._reshaped = reshaped
        self._written = [_union(writes[n] for n in run.nodes) for run in runs]
        self._later = [_union(self._written[i + 1 :]) for i in range(len(runs))]

    def of(
        self, index: int, inputs: Sequence[torch.fx.Node], outputs: Sequence[torch.fx.Node]
    ) -> str | None:
        """Why run ``index`` must run as written, or None."""
        run = self._runs[index]
        if shared(inputs) & self._written[index]:
            return "it writes to memory that two of its inputs share"
        if shared(outputs) & self._later[index]:
            return "a later piece writes to memory that two of its outputs share"
        if len(self._runs) > 1 and any(map(is_switch, run.nodes)):
            return "it switches a state of torch that other pieces run under"
        if self._reshaped and self._reshaped & _touched(run):
            return "the model changes a tensor's own sizes or strides in place"
        return None


def _touched(run: Segment) -> Memory:
    return _union(storages(n) for node in run.nodes for n in (node, *tensor_inputs(node)))


def _union(parts: object) -> Memory:
    return frozenset().union(*parts)  # type: ignore[misc]
