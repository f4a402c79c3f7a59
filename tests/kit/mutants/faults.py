"""L2: captures that fail badly, and inputs staged badly."""

from __future__ import annotations

import weakref

from mutants.base import device
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.recording import Recording
from piecewise_core.testing.simulated.waits import UNSAFE

__all__ = ["FAULTS"]


class NeverCapturing(SimulatedDriver):
    def is_capturing(self):
        return False


class Nests(SimulatedDriver):
    def capture_begin(self, graph, pool, stream):
        if self._device.capture is None:
            super().capture_begin(graph, pool, stream)


class GoesOn(SimulatedDriver):
    """abort_capture that leaves it capturing."""

    def abort_capture(self, graph):
        pass


class AbortsAll(SimulatedDriver):
    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.begun = weakref.WeakSet()

    def capture_begin(self, graph, pool, stream):
        super().capture_begin(graph, pool, stream)
        self.begun.add(graph)

    def abort_capture(self, graph):
        super().abort_capture(graph)
        while self.begun:
            self.begun.pop().recording = None


class Permissive(Device):
    """Lets operators wait for the device in the middle of a capture."""

    def forbid_in_capture(self, what, advice):
        if not what.startswith("aten."):
            super().forbid_in_capture(what, advice)


class Silent(SimulatedDriver):
    """capture_end that swallows the error of a spoiled capture, whose operators are lost."""

    def capture_end(self, graph):
        spoiled = graph.capture is not None and graph.capture.spoiled
        if not spoiled:
            super().capture_end(graph)
            return
        self._leave_capture(graph, graph.capture)
        graph.recording = Recording()


class Misspells(SimulatedDriver):
    def unsafe_ops(self):
        return (*UNSAFE, "aten::nonzeros")


class Puzzled(SimulatedDriver):
    def explain(self, exc):
        return {"DeviceFault": "Look at the driver's log."}[type(exc).__name__]


class FirstOnly(SimulatedDriver):
    def stager(self, buffers):
        first = super().stager(buffers[:1])
        return lambda tensors: first(tensors[:1])


class Leaves(SimulatedDriver):
    """A stager by which padding leaks: the rest of each buffer stays as it was."""

    def stager(self, buffers):
        def stage(tensors):
            for buffer, tensor in zip(buffers, tensors, strict=True):
                count = (tensor.numel(),)
                buffer.as_strided(count, (1,)).copy_(tensor.as_strided(count, (1,)))

        return stage


class LeavesLater(SimulatedDriver):
    """The same, from the second call on."""

    def stager(self, buffers):
        first, later, calls = super().stager(buffers), Leaves.stager(self, buffers), []

        def stage(tensors):
            calls.append(1)
            (first if len(calls) == 1 else later)(tensors)

        return stage


FAULTS = (
    device(
        "is_capturing that is always False",
        "test_is_capturing_tells_a_capture",
        driver=NeverCapturing,
    ),
    device("captures inside captures", "test_a_capture_inside_a_capture_is_refused", driver=Nests),
    device(
        "an abort that goes on capturing",
        "test_a_failed_capture_leaves_the_device_usable",
        driver=GoesOn,
    ),
    device(
        "an abort that takes other graphs with it",
        "test_a_failed_capture_leaves_other_graphs",
        driver=AbortsAll,
    ),
    device(
        "an unsafe operator that is captured in silence",
        "test_an_unsafe_operator_is_an_error_in_a_capture",
        parent=Permissive,
    ),
    device(
        "a capture that swallows an error", "test_a_spoiled_capture_gives_no_graph", driver=Silent
    ),
    device("an unsafe operator that is misspelt", "test_unsafe_operators_exist", driver=Misspells),
    device("explain that raises", "test_explain_takes_any_error", driver=Puzzled),
    device("a stager that copies one input", "test_a_stager_copies_every_input", driver=FirstOnly),
    device(
        "padding leaked by a stager", "test_a_stager_zeroes_what_it_does_not_reach", driver=Leaves
    ),
    device("padding leaked at later calls", "test_padding_never_leaks", driver=LeavesLater),
)
