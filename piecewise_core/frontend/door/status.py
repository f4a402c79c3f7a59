"""What serves which sizes of a graph of torch.compile's door."""

from __future__ import annotations

from collections.abc import Iterator

from piecewise_core.frontend.door.graph import DoorGraph
from piecewise_core.frontend.status import Status, TargetStatus
from piecewise_core.frontend.statuses import code_seconds, code_state, named, spans_of
from piecewise_core.ranges import Box, Sizes
from piecewise_core.tally import Counted

__all__ = ["graph_status"]


def graph_status(graph: DoorGraph) -> Status:
    """Its targets; sizes that nobody listed are among them once they have graphs."""
    targets = tuple(_targets(graph))
    return Status(not any(target.waits for target in targets), targets)


def _targets(graph: DoorGraph) -> Iterator[TargetStatus]:
    made = graph.made
    region, dims = made.region, [dim.name for dim in made.setup.config.dims]
    counted = made.counters.by_target()
    yield from _captured(graph, dims, counted)
    boxes = {target.box: target.kind for target in region.targets}
    if ("general", region.general_box) in counted:
        boxes.setdefault(region.general_box, "general")
    for box, kind in boxes.items():
        state, reason, waits = code_state(region, box, made.background)
        found = counted.get((kind, box), Counted())
        yield TargetStatus(
            kind,
            named(dims, box),
            state,
            reason,
            *found,
            seconds=code_seconds(region, box),
            waits=waits and kind != "general",
            spans=spans_of(box),
        )
    eager = sum(n.calls for (kind, _), n in counted.items() if kind == "eager")
    if eager:
        why = "outside of what was compiled, or with other results"
        yield TargetStatus("eager", "others", "as_written", why, eager, form=-1)


def _captured(
    graph: DoorGraph, dims: list[str], counted: dict[tuple[str, Sizes | Box | None], Counted]
) -> Iterator[TargetStatus]:
    plans = [held.capturing.plans for held in graph.held]
    dropped = {sizes: why for each in plans for sizes, why in each.dropped.items()}
    captured = {sizes for each in plans for sizes in each.captured}
    for sizes in sorted({*captured, *dropped}):
        ready, box = sizes in captured, Box.single(sizes)
        yield TargetStatus(
            "replayed",
            named(dims, box),
            "ready" if ready else "failed",
            "" if ready else f"served without graphs: {dropped[sizes]}",
            *counted.get(("replayed", sizes), Counted()),
            spans=spans_of(box),
        )
