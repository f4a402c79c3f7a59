"""Write captured graphs to files, to look at: what is in them is the platform's business."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.errors import CaptureFailed

__all__ = ["dump_plans"]


def dump_plans(plans: Sequence[CapturedPlans], directory: Path) -> list[Path]:
    """Write every graph of all forms of calls to ``directory``; returns the files.

    Of several forms, each has a folder of its own, ``form-0`` and so on. Raises CaptureFailed
    where there are none, or the driver cannot write any.
    """
    if not any(map(len, plans)):
        raise CaptureFailed("there are no graphs; call warmup() with capture_sizes first")
    if len(plans) == 1:
        return _dump(plans[0], directory)
    held = [(place, each) for place, each in enumerate(plans) if len(each)]
    return [path for place, each in held for path in _dump(each, directory / f"form-{place}")]


def _dump(plans: CapturedPlans, directory: Path) -> list[Path]:
    """Write each graph to a file of its own in ``directory``, made if need be."""
    write = plans.memory.platform.dump
    if write is None:
        raise CaptureFailed(
            "this platform's graphs cannot be written out: its driver has no method dump"
        )
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for plan in plans:
        for place, graph in enumerate(plan.graphs):
            sizes = "x".join(map(str, plan.sizes)) or "fixed"
            path = directory / f"sizes-{sizes}-graph-{place}.txt"
            path.unlink(missing_ok=True)
            write(graph, path)
            written.append(path)
    return written
