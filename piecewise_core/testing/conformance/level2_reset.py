"""L2, sixth part: what a reset gives back, and how many graphs there may be."""

from __future__ import annotations

import gc
from typing import Any

from piecewise_core.protocols import BudgetContext
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_memory import DISJOINT
from piecewise_core.testing.conformance.level2_pools import POOLS
from piecewise_core.testing.conformance.level2_replay import BASIC, GRAPHS
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["BUDGET", "FREES", "Resets", "asked"]

FREES = "test_reset_gives_memory_back"
BUDGET = "test_the_budget_is_kept"

_RESET = "GraphDriver.reset"
_LARGE = 1 << 18
"""Elements of float32: a MiB."""
_ROUNDS = 5
_MANY = 256


class Resets(Conformance):
    """Reset, driver_bytes, resource_budget."""

    # Reset -----------------------------------------------------------------------------

    @conformance("L2", _RESET, claims=("GraphDriver.pool_bytes",), relies_on=(BASIC,))
    def test_reset_gives_memory_back(self, case: Case) -> None:
        """Memory of a graph that was reset, its tensors gone, serves the next capture."""
        x, took = case.zeros(_LARGE), []
        for _ in range(_ROUNDS):
            graph, out = case.capture(lambda: x + 1)
            case.reset(graph)
            del graph, out
            _collected(case)
            took.append(case.driver.pool_bytes(case.pool))
        case.require(
            took[-1] <= took[0],
            f"captured a result of {4 * _LARGE} bytes, reset the graph, dropped the result; "
            f"{_ROUNDS} times in one pool",
            f"pool_bytes stay at {took[0]}, or fall",
            f"{took}",
            "free the graph's share of the pool in reset(), also where tensors outlive the graph",
        )

    @conformance("L2", _RESET, claims=GRAPHS, relies_on=(BASIC,))
    def test_resetting_twice_is_resetting_once(self, case: Case) -> None:
        """A second reset of a graph does nothing; nor does one of a graph never captured."""
        x = rows(case, 4)
        graph, _ = case.capture(lambda: x + 1)
        case.driver.reset(graph)
        case.driver.reset(graph)
        case.driver.reset(case.new_graph())

    @conformance("L2", _RESET, claims=GRAPHS, relies_on=(BASIC, DISJOINT))
    def test_reset_leaves_other_graphs(self, case: Case) -> None:
        """Resetting one graph takes nothing from the others of its size."""
        x = rows(case, 4)
        with case.ready():
            first, _ = case.capture(lambda: x - 1)
            second, y = case.capture(lambda: x + 1)
            case.reset(first)
            third, held = case.capture(lambda: [x * n for n in range(7, 12)])
        case.replay(second)
        case.replay(third)
        case.equal(
            y,
            x + 1,
            f"captured three graphs into one pool, the first reset before the third "
            f"({len(held)} results, held), replayed the second and third, read the second's result",
            "free only what the graph itself holds",
            exact=True,
        )

    @conformance(
        "L2",
        "GraphDriver.driver_bytes",
        claims=("GraphDriver.driver_bytes",),
        relies_on=(FREES, POOLS),
    )
    def test_driver_bytes_fall_with_reset(self, case: Case) -> None:
        """driver_bytes is not negative, and nothing is left of it without graphs."""
        x, other = rows(case, 4), case.driver.new_pool()
        case.capture(lambda: x + 1, pool=other)
        graphs = [case.capture(lambda: x + 1)[0] for _ in range(3)]
        held = case.driver.driver_bytes(case.pool)
        while graphs:
            case.reset(graphs.pop())
        left = case.driver.driver_bytes(case.pool)
        case.require(
            held >= 0 and left == 0,
            "asked for driver_bytes with three graphs, and when they were reset; a fourth one "
            "lives in another pool",
            "not negative, then 0",
            (held, left),
            "count the graphs of this pool that live now",
        )

    # Budget ----------------------------------------------------------------------------

    @conformance(
        "L2",
        "GraphDriver.resource_budget",
        claims=("GraphDriver.resource_budget",),
        relies_on=(BASIC,),
    )
    def test_the_budget_is_kept(self, case: Case) -> None:
        """As many graphs as resource_budget allows can be captured, and it counts them."""
        allowed = asked(case)
        if allowed is None:
            raise NotClaimed("resource_budget gives None: no bound")
        x, wanted = rows(case, 4), min(allowed, _MANY)
        for number in range(wanted):
            try:
                case.capture(lambda: x + 1)
            except Exception as error:
                case.require(
                    False,
                    f"captured as many graphs as resource_budget allowed, {allowed}",
                    f"{wanted} captures",
                    f"number {number + 1} failed: {error.__cause__ or error}",
                    "tell what is free now, or None where there is no bound",
                )
        left = asked(case)
        case.require(
            left is not None and left <= allowed - wanted,
            f"captured {wanted} graphs and asked for the budget again",
            f"{allowed - wanted} or less",
            left,
            "count the graphs that live now",
        )


def asked(case: Case) -> Any:
    """What the driver says it can still capture."""
    return case.driver.resource_budget(BudgetContext(1, ((4,),), 0))


def _collected(case: Case) -> None:
    """Let everything that was dropped go."""
    gc.collect()
    case.device.synchronize()
    if case.has("DeviceRuntime.empty_cache"):
        case.device.empty_cache()
