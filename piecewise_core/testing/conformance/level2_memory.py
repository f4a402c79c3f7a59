"""L2, second part: the memory of graphs is shared, kept, freed and told."""

from __future__ import annotations

import gc
from typing import Any

import torch

from piecewise_core.protocols import BudgetContext
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_replay import BASIC, FRESH, GRAPHS, STAYS
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["BUDGET", "FREES", "WEAK_READS", "Memory"]

WEAK_READS = "test_a_weak_tensor_reads_what_replays_write"
LIVE = "test_live_bytes_follow_tensors"
WEAK_LETS_GO = "test_a_weak_tensor_keeps_no_memory"
FREES = "test_reset_gives_memory_back"
BUDGET = "test_the_budget_is_kept"
DISJOINT = "test_memory_in_use_is_not_given_out_again"

_RESET = "GraphDriver.reset"
_WEAK = "GraphDriver.weak_ref"
_LARGE = 1 << 18
"""Elements of float32: a MiB."""
_ROUNDS = 5
_MANY = 256


class Memory(Conformance):
    """Pools, weak references, reset, and what is told of memory."""

    @conformance("L2", "GraphDriver.capture_begin", claims=GRAPHS, relies_on=(BASIC, STAYS))
    def test_memory_in_use_is_not_given_out_again(self, case: Case) -> None:
        """Results that are held keep their memory through later captures of the same size."""
        x = rows(case, 4)
        with case.ready():
            first, y = case.capture(lambda: x + 1)
            second, z = case.capture(lambda: x * 7)
        case.replay(first)
        case.replay(second)
        case.equal(
            y,
            x + 1,
            f"captured y = x + 1 and z = x * 7 for one size, held y and z ({z.numel()} elements), "
            "replayed both, read y",
            "give out memory again only when the last tensor over it is gone",
            exact=True,
        )

    @conformance(
        "L2", "GraphDriver.live_bytes", claims=("GraphDriver.live_bytes",), relies_on=(DISJOINT,)
    )
    def test_live_bytes_follow_tensors(self, case: Case) -> None:
        """live_bytes rises with a result that is held, and falls when it is dropped."""
        x, told = case.zeros(_LARGE), []
        first = case.capture(lambda: x[:8] + 1)  # a pool may not exist before
        told.append(case.driver.live_bytes(case.pool))
        _graph, out = case.capture(lambda: x + 1)
        told.append(case.driver.live_bytes(case.pool))
        del out
        told.append(case.driver.live_bytes(case.pool))
        case.require(
            told[1] - told[0] >= 4 * _LARGE and told[1] - told[2] >= 4 * _LARGE,
            f"captured a result of {4 * _LARGE} bytes behind one of {first[1].nbytes}, dropped it",
            "live_bytes up by that, then down by that",
            told,
            "count the memory that tensors hold, not what the pool has reserved",
        )

    # Weak references -------------------------------------------------------------------

    @conformance("L2", _WEAK, claims=(_WEAK,), relies_on=(FRESH,))
    def test_a_weak_tensor_reads_what_replays_write(self, case: Case) -> None:
        """weak_ref gives a tensor of the same layout over the same memory of the pool."""
        x = rows(case, 4)
        graph, out = case.capture(lambda: (x * 2).t())
        weak = case.driver.weak_ref(out)
        case.require(
            (weak.shape, weak.stride(), weak.dtype, weak.device)
            == (out.shape, out.stride(), out.dtype, out.device),
            "took a weak reference of a transposed result",
            f"{list(out.shape)}, strides {out.stride()}, {out.dtype}",
            f"{list(weak.shape)}, strides {weak.stride()}, {weak.dtype}",
            "keep shape, strides, offset, dtype and device",
        )
        del out
        x.copy_(rows(case, 4, start=1.0))
        case.replay(graph)
        case.equal(
            weak,
            (x * 2).t(),
            "captured (x * 2).t(), kept only a weak reference, wrote to x, replayed",
            "return a tensor over the same memory, not a copy",
            exact=True,
        )

    @conformance("L2", _WEAK, claims=(_WEAK,))
    def test_a_weak_tensor_of_other_memory_keeps_it(self, case: Case) -> None:
        """weak_ref of a tensor that no pool owns is that tensor: its memory stays."""
        memory = [rows(case, 64)]
        expected = memory[0].clone()
        weak = case.driver.weak_ref(memory[0])
        memory.clear()
        gc.collect()
        others = [torch.full_like(expected, -1.0) for _ in range(16)]
        case.equal(
            weak,
            expected,
            f"took a weak reference of a tensor outside of pools, dropped that tensor, made "
            f"{len(others)} others",
            "return the tensor itself where no pool owns its memory",
            exact=True,
        )

    @conformance("L2", _WEAK, claims=(_WEAK, "GraphDriver.live_bytes"), relies_on=(LIVE,))
    def test_a_weak_tensor_keeps_no_memory(self, case: Case) -> None:
        """Memory that only a weak reference refers to may be reused by the pool."""
        x = case.zeros(_LARGE)
        _graph, out = case.capture(lambda: x + 1)
        weak = case.driver.weak_ref(out)
        held = case.driver.live_bytes(case.pool)
        del out
        left = case.driver.live_bytes(case.pool)
        case.require(
            left <= held - 4 * _LARGE,
            f"captured a result of {4 * _LARGE} bytes, took a weak reference, dropped the result",
            f"live_bytes falls by that, from {held}",
            f"{left}, with {tuple(weak.shape)} held weakly",
            "do not let the weak tensor own the storage",
        )

    # The pool --------------------------------------------------------------------------

    @conformance(
        "L2",
        "GraphDriver.capture_begin",
        claims=(_WEAK, "GraphDriver.pool_bytes"),
        relies_on=(BASIC, WEAK_LETS_GO),
    )
    def test_sizes_share_the_pool(self, case: Case) -> None:
        """Captures of smaller sizes fit into what the largest one took."""
        took, kept = [], []
        for size in (_LARGE, _LARGE // 2, _LARGE // 4):
            x = case.zeros(size)
            _, out = case.capture(lambda x=x: ((x + 1) * 2).relu())  # type: ignore[misc]
            kept += [x, case.driver.weak_ref(out)]
            del out
            took.append(case.driver.pool_bytes(case.pool))
        case.require(
            took[-1] <= took[0],
            f"captured three sizes, largest first, into one pool ({len(kept)} tensors held)",
            f"pool_bytes stays at {took[0]}",
            f"{took} behind each",
            "give memory that no tensor holds to the next capture into the same pool",
        )

    @conformance(
        "L2",
        "GraphDriver.pool_bytes",
        claims=(_WEAK, "GraphDriver.pool_bytes"),
        relies_on=(DISJOINT,),
    )
    def test_pool_bytes_count_what_a_pool_holds(self, case: Case) -> None:
        """pool_bytes grows by at least what a held result takes."""
        x = case.zeros(_LARGE)
        first = case.capture(lambda: x[:8] + 1)  # a pool may not exist before
        before = case.driver.pool_bytes(case.pool)
        _, out = case.capture(lambda: x + 1)
        after = case.driver.pool_bytes(case.pool)
        case.require(
            0 <= before <= after - out.numel() * out.element_size(),
            f"captured a result of {out.numel() * out.element_size()} bytes, and held it, behind "
            f"one of {first[1].nbytes}",
            f"pool_bytes grows by that at least, from {before}",
            after,
            "count all that the pool has from the device, in use or not",
        )

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
        "L2", "GraphDriver.driver_bytes", claims=("GraphDriver.driver_bytes",), relies_on=(FREES,)
    )
    def test_driver_bytes_fall_with_reset(self, case: Case) -> None:
        """driver_bytes is not negative, and nothing is left of it without graphs."""
        x = rows(case, 4)
        graphs = [case.capture(lambda: x + 1)[0] for _ in range(3)]
        held = case.driver.driver_bytes(case.pool)
        while graphs:
            case.reset(graphs.pop())
        left = case.driver.driver_bytes(case.pool)
        case.require(
            held >= 0 and left == 0,
            "asked for driver_bytes with three graphs, and when they were reset",
            "not negative, then 0",
            (held, left),
            "count the graphs that live now",
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
