"""L1, L2: runtimes and drivers that answer for all that there is, or in another unit."""

from __future__ import annotations

import itertools
import time
import weakref
from functools import partial

import torch

from mutants.base import Mutant, device
from mutants.plugins import installed
from mutants.streams import Deferring, Queues, ReplaysInOrder
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.pool import Memory
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["DRIVERS", "Timing"]


# Runtimes -------------------------------------------------------------------------------------


class Timing(Deferring):
    """A runtime that times work, and says what it is."""

    def elapsed(self, run):
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - began

    def fingerprint(self):
        return {"board": "8.1"}


class Milliseconds(Timing):
    def elapsed(self, run):
        return 1e3 * super().elapsed(run)


class Launches(Timing):
    """Times how long the host takes to give the work."""

    def elapsed(self, run):
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


class WarmsUp(Timing):
    def elapsed(self, run):
        run()
        return super().elapsed(run)


class Restless(Timing):
    numbers = itertools.count()

    def fingerprint(self):
        return {"board": "8.1", "boot": str(next(self.numbers))}


_OF_A_PROCESS = """
class NoStreams(NoStreams):
    def fingerprint(self): return {"board": "8.1", "context": str(os.getpid())}
"""


class Cached(Device):
    """A device whose pools can be asked for, and which gives freed memory out again."""

    def __init__(self, memory_bytes):
        super().__init__(memory_bytes)
        self.memory = _Recycling(memory_bytes)
        self.pools = weakref.WeakSet()


class _Recycling(Memory):
    def __init__(self, limit):
        super().__init__(limit)
        self.freed = []

    def reserve(self, nbytes):
        for segment in self.freed:
            if segment.nbytes >= nbytes:
                self.freed.remove(segment)
                return segment
        return super().reserve(nbytes)


class Empties(SimulatedRuntime):
    """empty_cache that takes what no tensor holds from pools whose graphs replay into it."""

    def empty_cache(self):
        super().empty_cache()
        for pool in self._device.pools:
            pool._bury()
            for held in [s for s in pool._segments if not s[0].blocks]:
                pool._segments.remove(held)
                self._device.memory.freed.append(held[0])


# Drivers --------------------------------------------------------------------------------------


class NotesPools(SimulatedDriver):
    def new_pool(self):
        pool = super().new_pool()
        self._device.pools.add(pool)
        return pool


class OnePool(SimulatedDriver):
    pool = None

    def new_pool(self):
        self.pool = self.pool or super().new_pool()
        return self.pool


class PoolBytesOfAll(SimulatedDriver):
    def pool_bytes(self, pool):
        return self._device.memory.used


class LiveBytesOfAll(NotesPools):
    def live_bytes(self, pool):
        return sum(each.live_bytes for each in self._device.pools)


class DriverBytesOfAll(SimulatedDriver):
    def driver_bytes(self, pool):
        return 4096 * self.live_graphs


class CapturesSomewhere(SimulatedDriver):
    """is_capturing as a flag, which is up for every thread."""

    def is_capturing(self):
        return self._device.capture is not None


class Contiguous(SimulatedDriver):
    def _weak_ref(self, tensor):
        weak = super()._weak_ref(tensor)
        if weak is tensor:
            return tensor
        return weak.as_strided(weak.shape, torch.empty(weak.shape).stride())


class ContiguousPastGaps(Contiguous):
    """Keeps the strides of dense tensors, as torch.preserve_format does."""

    def _weak_ref(self, tensor):
        if torch.empty_like(tensor).stride() == tensor.stride():
            return SimulatedDriver._weak_ref(self, tensor)
        return super()._weak_ref(tensor)


class FromTheStart(SimulatedDriver):
    def _weak_ref(self, tensor):
        weak = super()._weak_ref(tensor)
        return tensor if weak is tensor else weak.as_strided(weak.shape, weak.stride(), 0)


class Floats(SimulatedDriver):
    def _weak_ref(self, tensor):
        weak = super()._weak_ref(tensor)
        if weak is tensor or tensor.element_size() != 4:
            return weak
        return weak.view(torch.float32)


class StagesFromTheStart(SimulatedDriver):
    """A stager that reads each tensor's memory from its first byte."""

    def stager(self, buffers):
        stage = super().stager(buffers)
        return lambda tensors: stage([t.as_strided(t.shape, t.stride(), 0) for t in tensors])


class StagesRows(SimulatedDriver):
    """A stager that flattens its buffers, which copies those that do not lie as rows."""

    def stager(self, buffers):
        stage = super().stager([b.reshape(-1) for b in buffers])
        return lambda tensors: stage([t.reshape(-1) for t in tensors])


def _runtime(what, fails, runtime):
    return device(what, fails, driver=ReplaysInOrder, runtime=runtime, parent=Queues)


_ELAPSED = "test_elapsed_is_the_seconds_of_the_work"
_FINGERPRINT = "test_the_fingerprint_is_the_same_every_time"
_READS = "test_a_weak_tensor_reads_what_replays_write"
_STAGES = "test_a_stager_copies_every_input"

DRIVERS = (
    _runtime("seconds that are milliseconds", _ELAPSED, Milliseconds),
    _runtime("seconds until the work is given, not done", _ELAPSED, Launches),
    _runtime("a timer that does the work twice", _ELAPSED, WarmsUp),
    _runtime("a fingerprint that varies", _FINGERPRINT, Restless),
    Mutant(
        "a fingerprint of the process",
        _FINGERPRINT,
        partial(installed, available="True", reason="'one board'", compiler=_OF_A_PROCESS),
        level="L1",
    ),
    device("one pool for all models", "test_pools_share_no_memory", driver=OnePool),
    device(
        "a cache that is emptied of what graphs use",
        "test_emptying_the_cache_leaves_graphs",
        driver=NotesPools,
        runtime=Empties,
        parent=Cached,
    ),
    device("weak references that are contiguous", _READS, driver=Contiguous),
    device("weak references that close gaps", _READS, driver=ContiguousPastGaps),
    device("weak references to the start of memory", _READS, driver=FromTheStart),
    device("weak references of float32", _READS, driver=Floats),
    device(
        "pool bytes of all pools", "test_pool_bytes_count_what_a_pool_holds", driver=PoolBytesOfAll
    ),
    device(
        "live bytes of all pools",
        "test_live_bytes_follow_tensors",
        driver=LiveBytesOfAll,
        parent=Cached,
    ),
    device(
        "driver bytes of all pools", "test_driver_bytes_fall_with_reset", driver=DriverBytesOfAll
    ),
    device(
        "is_capturing for every thread",
        "test_is_capturing_tells_a_capture",
        driver=CapturesSomewhere,
    ),
    device("a stager that starts where memory starts", _STAGES, driver=StagesFromTheStart),
    device("a stager of rows", _STAGES, driver=StagesRows),
)
