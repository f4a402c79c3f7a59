"""L2, fourth part: pools that have nothing in common, and caches that are emptied around them."""

from __future__ import annotations

from collections.abc import Callable

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_replay import BASIC, FRESH, GRAPHS
from piecewise_core.testing.conformance.marks import conformance

__all__ = ["POOLS", "Pools"]

POOLS = "test_pools_share_no_memory"

_EMPTY = "DeviceRuntime.empty_cache"
_LARGE = 1 << 18
"""Elements of float32: a MiB."""


class Pools(Conformance):
    """Each model has a pool of its own, whatever others do."""

    @conformance("L2", "GraphDriver.new_pool", claims=GRAPHS, relies_on=(BASIC, FRESH))
    def test_pools_share_no_memory(self, case: Case) -> None:
        """What a graph writes to in its pool is no memory of another pool's graphs."""
        _leave_each_other_alone(
            case,
            lambda: None,
            "captured x + 1 into one pool and let go of the result",
            "give a new pool at every call, and memory of a pool to captures into that one alone",
        )

    @conformance("L2", _EMPTY, claims=(_EMPTY, *GRAPHS), relies_on=(POOLS,))
    def test_emptying_the_cache_leaves_graphs(self, case: Case) -> None:
        """empty_cache takes nothing from pools whose graphs can be replayed."""
        _leave_each_other_alone(
            case,
            case.device.empty_cache,
            "captured x + 1 into one pool, let go of the result, called empty_cache()",
            "leave pools alone that have graphs: these write to memory that no tensor holds",
        )


def _leave_each_other_alone(
    case: Case, between: Callable[[], object], did: str, change: str
) -> None:
    """Capture into one pool, do ``between``, capture into another one, replay both."""
    x, numbers = case.zeros(_LARGE) + 2, range(7, 12)
    graph = case.capture(lambda: x + 1)[0]
    between()
    other = case.driver.new_pool()
    later, held = case.capture(lambda: [x * n for n in numbers], pool=other)
    case.replay(later)
    case.replay(graph)
    for number, result in zip(numbers, held, strict=True):
        case.equal(
            result,
            x * number,
            f"{did}; captured x * n into another pool, replayed that graph, then the first one, "
            f"and read x * {number}",
            change,
            exact=True,
        )
