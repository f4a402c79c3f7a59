"""L2: memory that is copied, leaked, handed out twice or lied about."""

from __future__ import annotations

import weakref

from mutants.base import device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.pool import Pool, poison, poison_of

__all__ = ["MEMORY"]


class Clones(SimulatedDriver):
    def _weak_ref(self, tensor):
        return tensor.clone()


class Dangles(SimulatedDriver):
    """A weak tensor of memory that no pool owns, which goes with the tensor it was made of."""

    def _weak_ref(self, tensor):
        if self._device.memory.owner_of(tensor.data_ptr()) is not None or not tensor.numel():
            return super()._weak_ref(tensor)
        weak = tensor.clone()
        weakref.finalize(
            tensor, poison, weak.data_ptr(), weak.nbytes, poison_of(weak.dtype)
        ).atexit = False
        return weak


class Strong(SimulatedDriver):
    def _weak_ref(self, tensor):
        return tensor


class _Leaking(Pool):
    """Memory of one capture serves no other."""

    capture = None

    def allocate(self, nbytes, dtype, stream):
        return super().allocate(nbytes, dtype, self.capture)


class Leaks(SimulatedDriver):
    def new_pool(self):
        return _Leaking(self._device.memory)

    def capture_begin(self, graph, pool, stream):
        pool.capture = object()
        super().capture_begin(graph, pool, stream)


def _give_out(pool):
    """Let memory that tensors hold be handed out again."""
    for block in pool._live.values():
        if block.address not in block.segment.spans:
            block.segment.put(block.address, block.rounded)
    pool._live.clear()


class GivesOutTwice(SimulatedDriver):
    def capture_begin(self, graph, pool, stream):
        _give_out(pool)
        super().capture_begin(graph, pool, stream)


class ResetsAll(SimulatedDriver):
    def reset(self, graph):
        super().reset(graph)
        if graph.pool is not None:
            _give_out(graph.pool)


class NoBytes(SimulatedDriver):
    def pool_bytes(self, pool):
        return 0


class AllLive(SimulatedDriver):
    def live_bytes(self, pool):
        return pool.nbytes


class _Sticky(Pool):
    """Memory that was in use when a graph was reset stays in use."""

    def __init__(self, memory):
        super().__init__(memory)
        self.stuck = set()

    def _die(self, block):
        if block.address not in self.stuck:
            super()._die(block)


class KeepsItsShare(SimulatedDriver):
    def new_pool(self):
        return _Sticky(self._device.memory)

    def reset(self, graph):
        if graph.pool is not None:
            graph.pool.stuck.update(graph.pool._live)
        super().reset(graph)


class ResetsOnce(SimulatedDriver):
    def reset(self, graph):
        if getattr(graph, "gone", False):
            raise RuntimeError("the graph was freed already")
        graph.gone = True
        super().reset(graph)


class EverMore(SimulatedDriver):
    """Counts graphs that were, not those that are."""

    ever = 0

    def capture_begin(self, graph, pool, stream):
        self.ever += 1
        super().capture_begin(graph, pool, stream)

    def driver_bytes(self, pool):
        return 4096 * self.ever


class Boasts(SimulatedDriver):
    def resource_budget(self, ctx):
        return 2 * self._max_graphs


MEMORY = (
    device(
        "a weak reference that is a copy",
        "test_a_weak_tensor_reads_what_replays_write",
        driver=Clones,
    ),
    device(
        "a weak reference to memory that is freed",
        "test_a_weak_tensor_of_other_memory_keeps_it",
        driver=Dangles,
    ),
    device(
        "a weak reference that keeps its memory",
        "test_a_weak_tensor_keeps_no_memory",
        driver=Strong,
    ),
    device("a leaked pool", "test_sizes_share_the_pool", driver=Leaks),
    device(
        "a pool that hands one memory out twice",
        "test_memory_in_use_is_not_given_out_again",
        driver=GivesOutTwice,
    ),
    device(
        "pool bytes that are nothing", "test_pool_bytes_count_what_a_pool_holds", driver=NoBytes
    ),
    device("live bytes that never fall", "test_live_bytes_follow_tensors", driver=AllLive),
    device("a reset that leaks", "test_reset_gives_memory_back", driver=KeepsItsShare),
    device(
        "a second reset that fails", "test_resetting_twice_is_resetting_once", driver=ResetsOnce
    ),
    device("a reset that frees the whole pool", "test_reset_leaves_other_graphs", driver=ResetsAll),
    device("driver bytes that only grow", "test_driver_bytes_fall_with_reset", driver=EverMore),
    device("a budget ignored", "test_the_budget_is_kept", driver=Boasts, max_graphs=40),
)
