"""L3: devices that are right a few times."""

from __future__ import annotations

import threading

from mutants.base import device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["ENDURANCE"]


class KeepsGraphs(SimulatedDriver):
    """Notes every graph that it reset, for good."""

    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.log = []

    def reset(self, graph):
        super().reset(graph)
        self.log.append([id(graph)])


class LogsReplays(SimulatedDriver):
    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.log = []

    def replay(self, graph):
        super().replay(graph)
        self.log.append([id(graph)])


class FewStreams(SimulatedRuntime):
    made = 0

    def new_stream(self):
        self.made += 1
        if self.made > 8:
            raise RuntimeError("out of streams")
        return super().new_stream()


class OneThread(SimulatedDriver):
    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.home = threading.get_ident()

    def capture_begin(self, graph, pool, stream):
        if threading.get_ident() != self.home:
            raise RuntimeError("the driver was made in another thread")
        super().capture_begin(graph, pool, stream)


class LosesHandles(SimulatedDriver):
    """A capture that fails for want of a handle takes one with it."""

    def capture_begin(self, graph, pool, stream):
        try:
            super().capture_begin(graph, pool, stream)
        except RuntimeError:
            self._max_graphs -= 1
            raise


class AbortsOnce(SimulatedDriver):
    aborted = False

    def abort_capture(self, graph):
        if not self.aborted:
            super().abort_capture(graph)
        self.aborted = True


class FewPools(SimulatedDriver):
    made = 0

    def new_pool(self):
        self.made += 1
        if self.made > 18:
            raise RuntimeError("out of pools")
        return super().new_pool()


ENDURANCE = (
    device(
        "replays that leave a trace", "test_thousands_of_replays_leave_nothing", driver=LogsReplays
    ),
    device(
        "graphs that are never forgotten",
        "test_rounds_of_capture_and_reset_leave_nothing",
        driver=KeepsGraphs,
    ),
    device("a handful of streams", "test_many_streams_capture", runtime=FewStreams),
    device("one thread only", "test_threads_capture_one_after_the_other", driver=OneThread),
    device(
        "handles that are lost when there are none",
        "test_what_was_exhausted_comes_back",
        driver=LosesHandles,
        max_graphs=40,
    ),
    device(
        "an abort that works once", "test_interrupts_leave_the_device_usable", driver=AbortsOnce
    ),
    device("a handful of pools", "test_released_models_come_back", driver=FewPools),
)
