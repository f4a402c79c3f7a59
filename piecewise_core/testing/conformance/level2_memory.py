"""L2, fifth part: the memory of graphs is shared, kept and reported."""

from __future__ import annotations

import gc

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_pools import POOLS
from piecewise_core.testing.conformance.level2_replay import BASIC, FRESH, GRAPHS, STAYS
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows

__all__ = ["DISJOINT", "WEAK_READS", "Memory"]

WEAK_READS = "test_a_weak_tensor_reads_what_replays_write"
LIVE = "test_live_bytes_follow_tensors"
WEAK_LETS_GO = "test_a_weak_tensor_keeps_no_memory"
DISJOINT = "test_memory_in_use_is_not_given_out_again"

_WEAK = "GraphDriver.weak_ref"
_LARGE = 1 << 18
"""Elements of float32: a MiB."""
_BEYOND = 1 << 23
"""Elements that fit in no block that an allocator took for a few bytes: they take some MiB."""


class Memory(Conformance):
    """Pools, weak references, and what is reported of memory."""

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
        "L2",
        "GraphDriver.live_bytes",
        claims=("GraphDriver.live_bytes",),
        relies_on=(DISJOINT, POOLS),
    )
    def test_live_bytes_follow_tensors(self, case: Case) -> None:
        """live_bytes rises with a result that is held, and falls when it is dropped."""
        x, live = case.zeros(_LARGE), []
        first = case.capture(lambda: x[:8] + 1)  # a pool may not exist before
        live.append(case.driver.live_bytes(case.pool))
        _graph, out = case.capture(lambda: x + 1)
        live.append(case.driver.live_bytes(case.pool))
        del out
        live.append(case.driver.live_bytes(case.pool))
        elsewhere = _elsewhere(case, x)
        live.append(case.driver.live_bytes(case.pool))
        rose, fell, stayed = live[1] - live[0], live[1] - live[2], live[3] - live[2]
        case.require(
            rose >= 4 * _LARGE and fell >= 4 * _LARGE and stayed < 4 * _LARGE,
            f"captured a result of {4 * _LARGE} bytes behind one of {first[1].nbytes}, dropped it, "
            f"held as much in another pool and outside of pools ({len(elsewhere)} tensors)",
            "live_bytes up by that, then down by that, and no more",
            live,
            "count the memory of this pool that tensors hold, not what the pool has reserved",
        )

    # Weak references -------------------------------------------------------------------

    @conformance("L2", _WEAK, claims=(_WEAK,), relies_on=(FRESH,))
    def test_a_weak_tensor_reads_what_replays_write(self, case: Case) -> None:
        """weak_ref gives a tensor of the same layout over the same memory of the pool."""
        x = rows(case, 4)
        graph, outs = case.capture(lambda: _laid(x))
        weak = {how: case.driver.weak_ref(out) for how, out in outs.items()}
        for how, out in outs.items():
            case.require(
                _layout(weak[how]) == _layout(out),
                f"took a weak reference of a result, {how}",
                _layout(out),
                _layout(weak[how]),
                "keep shape, strides, offset, dtype and device",
            )
        del out, outs
        x.copy_(rows(case, 4, start=1.0))
        case.replay(graph)
        for how, expected in _laid(x).items():
            case.equal(
                weak[how],
                expected,
                f"captured a result, {how}, kept only a weak reference, wrote to x, replayed",
                "return a tensor over the same memory, from where that one starts, not a copy",
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
        relies_on=(DISJOINT, POOLS),
    )
    def test_pool_bytes_count_what_a_pool_holds(self, case: Case) -> None:
        """pool_bytes grows by at least what a held result takes."""
        x = case.zeros(_BEYOND)
        first = case.capture(lambda: x[:8] + 1)  # a pool may not exist before
        before = case.driver.pool_bytes(case.pool)
        _, out = case.capture(lambda: x + 1)
        after = case.driver.pool_bytes(case.pool)
        elsewhere = _elsewhere(case, x)
        at_last = case.driver.pool_bytes(case.pool)
        case.require(
            0 <= before <= after - out.nbytes and at_last - after < out.nbytes,
            f"captured a result of {out.nbytes} bytes, and held it, behind one of "
            f"{first[1].nbytes}; then held as much in another pool and outside of pools "
            f"({len(elsewhere)} tensors)",
            f"pool_bytes grows by that at least, from {before}, then no more",
            (after, at_last),
            "count all that this pool has from the device, in use or not, and no other's",
        )


def _elsewhere(case: Case, x: torch.Tensor) -> list[torch.Tensor]:
    """As much memory as ``x`` takes: in another pool, and outside of pools."""
    return [case.capture(lambda: x + 1, pool=case.driver.new_pool())[1], torch.zeros_like(x)]


def _laid(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Results that lie in each way, and of several dtypes, by what each is called."""
    y = x * 2
    return {
        "transposed": y.t(),
        "rows and columns from the middle": y[1:, 2:6],
        "expanded": (x[:, :1] + 1).expand(-1, 8),
        "of float16": (x * 3).to(torch.float16),
        "of int32": (x * 100).to(torch.int32),
        "of bool": x > 0,
    }


def _layout(tensor: torch.Tensor) -> str:
    """What a weak tensor has in common with its own, the memory aside."""
    shape, where = list(tensor.shape), tensor.device
    return f"{shape}, strides {tensor.stride()}, {tensor.dtype}, on {where}"
