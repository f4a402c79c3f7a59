"""L1, second part: what a runtime tells of its streams, its memory, its clock and its device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.fresh import ask_fresh
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.work import Work

__all__ = ["NEST", "RNG", "Runtimes", "differing"]

NEST = "test_streams_nest_and_come_back"
RNG = "test_the_generator_is_the_device_s"

_ELAPSED = "DeviceRuntime.elapsed"
_LONG = 0.05
"""Seconds of work, beside which what else elapsed() does takes no time."""
_TRIES = 3
_FACTOR = 20
"""Far more than two clocks differ in, and far less than two units."""


class Runtimes(Conformance):
    """Streams, memory, generators, the device's clock and its name."""

    @conformance("L1", "DeviceRuntime.stream")
    def test_streams_nest_and_come_back(self, case: Case) -> None:
        """Inside stream(s) the current stream is s; outside it is what it was, after errors too."""
        device = case.device
        before, s, t = device.current_stream(), device.new_stream(), device.new_stream()
        said = []
        with device.stream(s):
            said.append(device.current_stream() == s)
            try:
                with device.stream(t):
                    said.append(device.current_stream() == t)
                    raise KeyError("on purpose")
            except KeyError:
                said.append(device.current_stream() == s)
        said.append(device.current_stream() == before)
        case.require(
            all(said),
            "entered stream(s), in it stream(t), left t by an error, then left s",
            "current_stream() is s, t, s, and then what it was before",
            f"right: {said}",
            "make stream() a context manager that restores in finally and swallows nothing",
        )

    @conformance("L1", "DeviceRuntime.memory_info", claims=("DeviceRuntime.memory_info",))
    def test_memory_info_is_free_and_total(self, case: Case) -> None:
        """memory_info gives (free, total) in bytes."""
        found = case.device.memory_info()
        case.require(
            isinstance(found, tuple)
            and len(found) == 2
            and all(isinstance(n, int) for n in found)
            and 0 <= found[0] <= found[1] > 0,
            "called memory_info()",
            "(free, total), two ints with 0 <= free <= total",
            found,
            "return (free, total) in bytes, in this order",
        )

    @conformance("L1", "DeviceRuntime.rng", claims=("DeviceRuntime.rng",))
    def test_the_generator_is_the_device_s(self, case: Case) -> None:
        """Seeding the generator of rng() fixes what operators draw on the device."""
        generator = case.device.rng()
        state = generator.get_state()
        generator.manual_seed(3)
        first = torch.rand(4, device=case.device_type)
        generator.manual_seed(3)
        second = torch.rand(4, device=case.device_type)
        generator.set_state(state)
        case.equal(
            second,
            first,
            f"seeded rng() and drew torch.rand(4, device={case.device_type!r}), twice",
            "return the device's default generator, which operators draw from",
            exact=True,
        )

    @conformance("L1", _ELAPSED, claims=(_ELAPSED,), relies_on=(NEST,))
    def test_elapsed_is_the_seconds_of_the_work(self, case: Case) -> None:
        """Timed by elapsed, work is done once, in nearly the seconds of the host's clock."""
        work, device, found = Work(case, _LONG), case.device, []
        with device.stream(case.stream):
            for _ in range(_TRIES):  # the host may be kept from looking at its clock, not always
                began = time.perf_counter()
                seconds = device.elapsed(work)
                device.synchronize()
                found.append((seconds, time.perf_counter() - began))
        near = [by_host / _FACTOR <= told <= by_host * _FACTOR for told, by_host in found]
        case.require(
            any(near) and work.calls == _TRIES,
            f"timed long work {_TRIES} times by elapsed(), and around each by the host's clock",
            f"{_TRIES} calls; seconds that a factor of {_FACTOR} divides from the host's at most",
            f"{work.calls} calls; "
            + ", ".join(
                f"{told:.3g} by elapsed, {by_host:.3g} by the host" for told, by_host in found
            ),
            "call run() once, wait for its work, and give seconds; devices count milliseconds",
        )

    @conformance("L1", "DeviceRuntime.fingerprint", claims=("DeviceRuntime.fingerprint",))
    def test_the_fingerprint_is_the_same_every_time(self, case: Case) -> None:
        """A fingerprint is the same at every call, and in another process."""
        first = dict(case.device.fingerprint())
        another: Any = case.subject.make().device
        others = [case.device.fingerprint(), another.fingerprint()]
        if case.has("entry point"):
            others.append(ask_fresh(case.subject, "fingerprint", PYTHONHASHSEED="7").found)
        differs = differing(first, *others)
        case.require(
            not differs,
            "called fingerprint() again, and in a fresh interpreter if the platform is installed",
            "the same facts",
            f"other values of: {', '.join(differs)}",
            "leave out times, counters, addresses and process ids: kept code would never be found",
        )


def differing(first: Mapping[str, str], *others: Mapping[str, str]) -> list[str]:
    """Names that stand for something else in one of ``others``, as text."""
    wanted = {str(name): str(value) for name, value in first.items()}
    found = [{str(name): str(value) for name, value in other.items()} for other in others]
    return sorted({n for o in found for n in wanted.keys() | o if wanted.get(n) != o.get(n)})
