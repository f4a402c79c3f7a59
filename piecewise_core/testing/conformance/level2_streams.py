"""L2, third part: streams that come one after the other, where a runtime orders them itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level1_runtime import NEST
from piecewise_core.testing.conformance.level2_replay import BASIC, GRAPHS
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.work import Work

__all__ = ["Streams"]

_ORDER = "DeviceRuntime.stream_order"
_TURNS = 9
_BUSY = 0.02
"""Seconds of work on a stream: far longer than the host takes to come to the next stream."""


class Streams(Conformance):
    """The order of work on several streams."""

    @conformance("L2", _ORDER, claims=(_ORDER, *GRAPHS), relies_on=(NEST, BASIC))
    def test_a_stream_waits_for_that_of_the_last_call(self, case: Case) -> None:
        """Work behind a call begins after all that the stream of the last call was given."""
        turns, device = _Turns(case), case.device
        here, a, b = device.current_stream(), device.new_stream(), device.new_stream()
        for stream in (here, a, b, b, a, here):
            turns.take(stream)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(turns.take, b).result()
        turns.take(a)
        turns.capture()
        turns.take(b)
        turns.check()


class _Turns:
    """Streams in turn: each reads what the last one wrote behind long work, and nobody waits."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.in_order = case.device.stream_order() or _nothing
        self.written, self.read = case.zeros(1), case.zeros(_TURNS)
        self.taken = 0
        self._work = Work(case, _BUSY)

    def take(self, stream: Any) -> None:
        """Read what the last turn wrote, and write the number of this one, on ``stream``."""
        device = self.case.device
        with torch.inference_mode(), device.stream(stream):  # a thread begins without that mode
            self.in_order()
            found = device.current_stream()
            self.case.require(
                found == stream,
                f"made {stream} current, called the function, looked at current_stream()",
                stream,
                found,
                "restore the current stream where the function changes it",
            )
            self.read[self.taken : self.taken + 1].copy_(self.written)
            self._work()
            self.written.fill_(self.taken + 1)
        self.taken += 1

    def capture(self) -> None:
        """Call the function in a capture, where it may do nothing."""
        x = rows(self.case, 4)

        def run() -> torch.Tensor:
            self.in_order()
            return x + 1

        did = "called the function on one stream, then in a capture of x + 1 on another; replayed"
        change = "do nothing where the current stream is capturing"
        try:
            graph, out = self.case.capture(run)
        except Exception as error:
            got = f"{type(error).__name__}: {error.__cause__ or error}"
            self.case.require(False, did, "a graph", got, change)
        self.case.replay(graph)
        self.case.equal(out, x + 1, did, change, exact=True)

    def check(self) -> None:
        """Raise a Violation unless every turn read what the last one wrote."""
        self.case.equal(
            self.read,
            torch.arange(float(_TURNS)),
            "on streams in turn, in two threads and without waiting: called the function, read what"
            " the last turn wrote, gave the stream long work, wrote the number of the turn",
            "have the current stream wait for that of the last call, whichever thread made it",
            exact=True,
        )


def _nothing() -> None:
    """What is to be called where work is done when a call returns."""
