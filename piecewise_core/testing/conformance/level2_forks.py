"""L2, eighth part: streams that wait for each other, inside of captures and outside."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_replay import FRESH
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.work import Work

__all__ = ["Forks"]

WAITS = "test_a_stream_waits_for_what_another_was_given"

_WAIT = "GraphDriver.wait_stream"
_BUSY = 0.02
"""Seconds of work on a stream: far longer than the host takes to come to the other one."""

_TURNS = 8

_CHANGE = "have the stream go on behind all that the other was given, which may be capturing"


class Forks(Conformance):
    """wait_stream, and memory of the streams that a capture takes in."""

    @conformance("L2", _WAIT, claims=(_WAIT,), relies_on=(FRESH,))
    def test_a_stream_waits_for_what_another_was_given(self, case: Case) -> None:
        """Behind wait_stream a stream goes on after the other's work, in a capture or not."""
        side, written, read = case.device.new_stream(), case.zeros(1), case.zeros(2)
        work = Work(case, _BUSY)
        for place, (one, other) in enumerate([(case.stream, side), (side, case.stream)]):
            with case.device.stream(one):
                work()
                written.fill_(place + 1)
            case.driver.wait_stream(other, one)
            with case.device.stream(other):
                read[place : place + 1].copy_(written)
        did = "gave a stream long work and a number to write, had another wait for it and read"
        case.equal(read, torch.arange(1.0, 3.0), did, _CHANGE, exact=True)
        lanes = _Lanes(case, side)
        graph, out = case.capture(lanes.forked)
        for start in (2.0, 5.0):
            lanes.x.copy_(rows(case, 4, start=start))
            case.replay(graph)
            did = "in a capture: forked a second stream, gave each long work, joined; replayed"
            case.equal(out, lanes.expected, did, _CHANGE, exact=True)

    @conformance("L2", _WAIT, claims=(_WAIT,), relies_on=(WAITS,))
    def test_memory_of_each_stream_is_its_own(self, case: Case) -> None:
        """What one stream of a capture lets go of, the other is not given."""
        lanes = _Lanes(case, case.device.new_stream())
        graph, (ours, theirs) = case.capture(lanes.using_up)
        for start in (2.0, 5.0):
            lanes.x.copy_(rows(case, 4, start=start))
            case.replay(graph)
            for out, first in ((ours, 2), (theirs, 3)):
                case.equal(
                    out,
                    lanes.used_up(first),
                    "in a capture: forked a second stream, had both make and let go of tensors in "
                    "turn, one behind long work, and joined; replayed",
                    "give memory back to the stream that it was allocated on, and to no other",
                    exact=True,
                )


class _Lanes:
    """Two streams of one capture, each with long work of its own."""

    def __init__(self, case: Case, side: Any) -> None:
        self._case, self._side, self.x = case, side, rows(case, 4)
        self._main_work, self._side_work = Work(case, _BUSY), Work(case, _BUSY)
        self.expected.add_(1)  # first calls load kernels

    @property
    def expected(self) -> torch.Tensor:
        """What ``forked`` gives."""
        return (self.x * 2 + 1) * 3 - self.x * 2

    def forked(self) -> torch.Tensor:
        """Reads on either stream what the other one writes behind long work."""
        case, side = self._case, self._side
        self._main_work()
        shared = self.x * 2
        case.driver.wait_stream(side, case.stream)
        with case.device.stream(side):
            self._side_work()
            there = (shared + 1) * 3
        case.driver.wait_stream(case.stream, side)
        return there - shared

    def used_up(self, first: int) -> torch.Tensor:
        """What one of both of ``using_up`` is, which multiplies by ``first``."""
        found = self.x * first
        for _ in range(_TURNS):
            found = found + 1
        return found

    def using_up(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes and lets go of tensors on both streams in turn, the side stream far behind."""
        case, side = self._case, self._side
        case.driver.wait_stream(side, case.stream)
        with case.device.stream(side):
            self._side_work()
            theirs = self.x * 3
        ours = self.x * 2
        for _ in range(_TURNS):
            with case.device.stream(side):
                theirs = theirs + 1
            ours = ours + 1
        case.driver.wait_stream(case.stream, side)
        return ours, theirs
