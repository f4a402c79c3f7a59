"""torch.compile as a peer, and evidence that its CUDA graphs are really in use.

Three things made it look slow, or fast, without a word, in torch 2.11:

- Dynamo keeps compiled code per Python code object, and a backend counts as the same when its
  options are equal. Two ``torch.compile(model, mode="reduce-overhead")``, one of them compiled
  inside a ``config.patch``, are one artifact. So peers differ in their options here.
- ``torch._dynamo.reset()`` tears down the graph trees of every peer in the process.
- Graphs are skipped with a log line and a counter, both read here; with graph partition, which is
  on by default, also without either. So the graphs that the trees hold are counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from _place import Place

__all__ = ["Evidence", "overhead", "partitioned", "settle"]

CALLS = 6
"""Calls until graphs must be recorded: one compiles and warms up, one records."""


def overhead(model: Any, **options: Any) -> Any:
    """torch.compile with CUDA graphs, as ``mode="reduce-overhead"`` has them."""
    return torch.compile(model, mode="reduce-overhead", **options)


def partitioned(model: Any, op: str) -> Any:
    """The same, cut at the operator ``op`` by Inductor's graph partition; None without it."""
    from torch._inductor import config

    if not hasattr(config, "custom_should_partition_ops"):
        return None
    options = {
        "triton.cudagraphs": True,
        "graph_partition": True,
        "custom_should_partition_ops": [op],
    }
    return torch.compile(model, options=options)


@dataclass
class Evidence:
    """What a peer did until it was warm.

    ``graphs``: CUDA graphs recorded. ``compiled``: programs that Dynamo compiled for it. ``skips``
    and ``reasons``: times that graphs were left out, and the log's words. ``copied``: inputs
    copied at each replay. ``settled``: whether nothing was recorded or compiled any more.
    ``problem``: why its figures say nothing; empty when they do.
    """

    name: str
    graphs: int = 0
    compiled: int = 0
    skips: int = 0
    copied: int = 0
    settled: bool = False
    reasons: list[str] = field(default_factory=list)
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        return asdict(self)


def settle(
    name: str,
    call: Callable[[], Any],
    place: Place,
    *,
    graphs: bool = True,
    least: int = 1,
    fresh: bool = True,
) -> Evidence:
    """Call a peer until it is warm; what it did, and whether that makes it a fair peer.

    ``graphs``: whether it is meant to use CUDA graphs, and ``least`` how many. ``fresh``: whether
    this is its first use. Run it in the context that it is measured in.
    """
    evidence = Evidence(name)
    before = _snapshot()
    with _reasons(evidence.reasons):
        for _ in range(CALLS):
            call()
            place.synchronize()
        warm = _snapshot()
        for _ in range(CALLS):
            call()
            place.synchronize()
    after = _snapshot()
    for key in ("graphs", "compiled", "skips", "copied"):
        setattr(evidence, key, after[key] - before[key])
    evidence.settled = after == warm
    evidence.problem = _problem(evidence, graphs, least, fresh)
    return evidence


def _problem(evidence: Evidence, graphs: bool, least: int, fresh: bool) -> str:
    if fresh and not evidence.compiled:
        return "it compiled nothing of its own: another peer's code ran"
    if graphs and evidence.skips:
        why = "; ".join(evidence.reasons) or "no reason logged"
        return f"CUDA graphs were skipped {evidence.skips} times: {why}"
    if graphs and evidence.graphs < least and (fresh or evidence.compiled):
        return f"{evidence.graphs} CUDA graphs were recorded, {least} expected"
    return "" if evidence.settled else "it still compiled or recorded after the warm-up"


def _snapshot() -> dict[str, int]:
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs": _recorded(),
        "compiled": counters["stats"]["unique_graphs"],
        "skips": inductor["cudagraph_skips"],
        "copied": inductor["cudagraph_recorded_non_static_inputs"],
    }


def _recorded() -> int:
    """How many graphs the trees of the current device hold."""
    from torch._inductor import cudagraph_trees

    manager = cudagraph_trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    nodes = [n for roots in ((manager and manager.roots) or {}).values() for n in roots]
    count = 0
    while nodes:
        count += 1
        nodes += [n for children in nodes.pop().children.values() for n in children]
    return count


@contextmanager
def _reasons(into: list[str]) -> Iterator[None]:
    """Collect what torch logs about CUDA graphs that it leaves out."""
    from torch._inductor import cudagraph_utils

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if text not in into:
                into.append(text[:500])

    logger = getattr(cudagraph_utils, "cudagraphs_log", logging.getLogger("torch"))
    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
