"""L2: streams that fork from captures badly."""

from __future__ import annotations

from mutants.base import device
from mutants.streams import Deferring, Queues, ReplaysInOrder
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.pool import Pool

__all__ = ["FORKS"]

WAITS = "test_a_stream_waits_for_what_another_was_given"


class WaitsForNothing(SimulatedDriver):
    def _wait_stream(self, stream, other):
        """Nothing is waited for."""


class WaitsOneWay(SimulatedDriver):
    def _wait_stream(self, stream, other):
        capture = self._device.capture
        if capture is None or stream is not capture.stream:
            super()._wait_stream(stream, other)


class WaitsInCapturesAlone(ReplaysInOrder):
    def _wait_stream(self, stream, other):
        SimulatedDriver._wait_stream(self, stream, other)


class OnePoolForAll(Pool):
    def allocate(self, nbytes, dtype, stream):
        return super().allocate(nbytes, dtype, None)


class LendsMemory(SimulatedDriver):
    def new_pool(self):
        return OnePoolForAll(self._device.memory)


FORKS = (
    device("a wait that waits for nothing", WAITS, driver=WaitsForNothing),
    device("a fork that is never joined", WAITS, driver=WaitsOneWay),
    device(
        "a wait in captures alone",
        WAITS,
        driver=WaitsInCapturesAlone,
        runtime=Deferring,
        parent=Queues,
    ),
    device(
        "memory of one stream of a capture given to the other",
        "test_memory_of_each_stream_is_its_own",
        driver=LendsMemory,
    ),
)
