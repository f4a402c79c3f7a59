"""L2: functions that order streams badly."""

from __future__ import annotations

import contextlib
import functools
import threading
import types

import torch

from mutants.base import device
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.frozen import unseen
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["STREAMS", "Deferring", "Queues", "ReplaysInOrder"]

_DEFERRED = {
    torch.ops.aten.copy_.default,
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.mm.out,
}


class Queues(Device):
    """A device whose streams, but for the default one, begin some work only when waited for."""

    def __init__(self, memory_bytes):
        super().__init__(memory_bytes)
        self.queues = {}

    @property
    def at_once(self):
        return self.capture is not None or self.stream is self._default

    def finish(self, stream):
        with unseen():
            for work in self.queues.pop(stream, ()):
                work()

    def finish_all(self):
        # Streams that nobody ordered may finish in any order; this one shows that.
        for stream in reversed(tuple(self.queues)):
            self.finish(stream)


class _Defer(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        work = functools.partial(func, *args, **kwargs)
        if func in _DEFERRED and not self.device.at_once:
            self.device.queues.setdefault(self.device.stream, []).append(work)
            return kwargs.get("out", args[0])
        self.device.finish(self.device.stream)
        return work()


class ReplaysInOrder(SimulatedDriver):
    def _wait_stream(self, stream, other):
        self._device.finish(other)
        super()._wait_stream(stream, other)

    def replay(self, graph):
        self._device.finish(self._device.stream)
        super().replay(graph)

    def replayer(self, graph):
        return functools.partial(self.replay, graph)


class Deferring(SimulatedRuntime):
    """The runtime of Queues, whose streams wait for each other."""

    noted = types.SimpleNamespace  # where an order notes the stream of the last call

    @contextlib.contextmanager
    def stream(self, stream):
        with super().stream(stream), _Defer(self._device):
            yield stream

    def synchronize(self):
        super().synchronize()
        self._device.finish_all()

    def stream_order(self):
        last = self.noted()

        def in_order():
            if self._device.capture is not None:
                return
            current = self._device.stream
            if getattr(last, "stream", current) is not current:
                self._device.finish(last.stream)
            last.stream = current

        return in_order


class OrdersNothing(Deferring):
    def stream_order(self):
        return lambda: None


class OrdersEachThread(Deferring):
    noted = threading.local


class LeavesTheLast(Deferring):
    def stream_order(self):
        in_order = super().stream_order()
        seen = []

        def leaving():
            in_order()
            seen.append(self._device.stream)
            self._device._current.stream = seen[-2:][0]

        return leaving


class WaitsInCaptures(Deferring):
    def stream_order(self):
        seen = []

        def in_order():
            seen.append(self._device.stream)
            if seen[-2:][0] is not seen[-1]:
                self.synchronize()

        return in_order


def _streams(what, runtime):
    return device(
        what,
        "test_a_stream_waits_for_that_of_the_last_call",
        driver=ReplaysInOrder,
        runtime=runtime,
        parent=Queues,
    )


STREAMS = (
    _streams("an order of streams that orders nothing", OrdersNothing),
    _streams("an order of each thread's streams alone", OrdersEachThread),
    _streams("an order that leaves the last stream current", LeavesTheLast),
    _streams("an order that waits in a capture", WaitsInCaptures),
)
