"""What is to be said of the graphs that torch.compile has from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from piecewise_core.frontend.door.graph import DoorGraph
from piecewise_core.frontend.door.status import graph_status
from piecewise_core.frontend.status import Status
from piecewise_core.ranges import Sizes

__all__ = ["DynamoGraph", "facts"]


@dataclass(frozen=True)
class DynamoGraph:
    """One graph that torch.compile has from piecewise.

    ``line``: where it begins. ``dims``: each with its bounds. ``captured``: sizes with static
    graphs. ``places``: sets of addresses of what the model holds that have some. ``uncaptured``:
    why calls, or calls of a size, are served without. ``status``: what serves which sizes.
    """

    line: str
    platform: str
    compiler: str
    graph_mode: str
    dims: tuple[str, ...]
    captured: tuple[Sizes, ...]
    places: int
    uncaptured: tuple[str, ...]
    stats: dict[str, Any]
    status: Status = field(default_factory=lambda: Status(False, ()))

    def __str__(self) -> str:
        calls = ", ".join(f"{kind} {n}" for kind, n in self.stats["calls"].items() if n)
        captured = ", ".join(map(str, self.captured)) or "none"
        lines = [
            f"{self.line}: platform {self.platform}, compiler {self.compiler}, "
            f"graph_mode {self.graph_mode}",
            f"  dims: {', '.join(self.dims) or 'none'}",
            f"  captured: {captured}" + (f", at {self.places} places" if self.places > 1 else ""),
            *(f"  not captured: {why}" for why in self.uncaptured),
            f"  calls: {calls or 'none'}",
        ]
        return "\n".join(lines)


def facts(graphs: Iterable[DoorGraph]) -> tuple[DynamoGraph, ...]:
    """What there is to say of each."""
    return tuple(map(_facts, graphs))


def _facts(graph: DoorGraph) -> DynamoGraph:
    made, setup = graph.made, graph.made.setup
    plans = [held.capturing.plans for held in graph.held]
    sizes = {size for each in plans for size in each.captured}
    dropped = [f"{size}: {why}" for each in plans for size, why in each.dropped.items()]
    return DynamoGraph(
        made.name,
        setup.selected.info.name,
        setup.compiler.name,
        setup.graph_mode,
        tuple(f"{dim.name} {dim.sizes}" for dim in setup.config.dims),
        tuple(sorted(sizes)),
        sum(1 for each in plans if len(each)),
        (*filter(None, [made.why]), *graph.told_of, *dict.fromkeys(dropped)),
        graph.stats().to_dict() | {"captures": sum(each.graphs for each in plans)},
        graph_status(graph),
    )
