"""Call locks: models that call each other from two threads never wait for ever (FAULTS 52)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import Interlocked
from piecewise_core.frontend.calllock import CallLock
from piecewise_core.testing import SimulatedPlatform

LIMIT = 60.0
MODELS = {}
INSIDE = threading.local()


@torch.library.custom_op("calllock::other", mutates_args=())
def other(x: torch.Tensor, which: int) -> torch.Tensor:
    """Ask the other model, once both threads are in the middle of a call."""
    meeting, INSIDE.meeting = getattr(INSIDE, "meeting", None), None
    if meeting is None:
        return x.clone()
    meeting.wait(LIMIT)
    return MODELS[which](x).clone()


@other.register_fake
def _(x: torch.Tensor, which: int) -> torch.Tensor:
    return torch.empty_like(x)


def first(x):
    return other(x * 2, 1) + 1


def second(x):
    return other(x * 3, 0) + 2


@contextmanager
def _threads(*steps) -> Iterator[list[BaseException]]:
    raised: list[BaseException] = []

    def run(step):
        try:
            with torch.inference_mode():
                step()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(step,), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    yield raised
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"


@pytest.mark.parametrize("captured", [3, 5], ids=["captured", "uncaptured"])
@pytest.mark.parametrize("kinds", [(pw.compile,) * 2, (pw.record,) * 2, (pw.compile, pw.record)])
def test_two_models_that_call_each_other_from_two_threads_are_served(kinds, captured):
    x = torch.ones(3, 2)
    for which, (make, fn) in enumerate(zip(kinds, (first, second), strict=True)):
        config = pw.Config(
            dynamic={"x": {0: pw.Dim("rows", 1, 8)}},
            splitting_ops=["calllock::other"],
            capture_sizes=[captured],
            **({"compiler": "eager"} if make is pw.compile else {}),
        )
        MODELS[which] = make(fn, config, SimulatedPlatform())
        with torch.inference_mode():
            for _ in range(2):
                MODELS[which](x)
    for _ in range(2):
        meeting, found = threading.Barrier(2), {}

        def call(which, meeting=meeting, found=found):
            INSIDE.meeting = meeting
            found[which] = MODELS[which](x).clone()

        with _threads(lambda: call(0), lambda: call(1)) as raised:
            pass
        assert not raised
        # The inner call's own question is answered by itself.
        assert torch.equal(found[0], (x * 2) * 3 + 2 + 1)
        assert torch.equal(found[1], (x * 3) * 2 + 1 + 2)


@pytest.mark.parametrize("count", [2, 3])
def test_a_circle_of_threads_is_refused_by_name_to_the_last(count):
    locks = [CallLock() for _ in range(count)]
    meeting = threading.Barrier(count)
    through = []

    def step(place):
        with locks[place]:
            meeting.wait(LIMIT)
            with locks[(place + 1) % count]:
                through.append(place)

    with _threads(*(lambda place=place: step(place) for place in range(count))) as raised:
        pass
    assert len(through) == count - 1
    assert [type(error) for error in raised] == [Interlocked]
    assert "Call the models in one order" in str(raised[0])
    for lock in locks:
        assert lock.acquire(blocking=False)
        lock.release()


def test_threads_that_hold_nothing_or_other_locks_wait():
    locks = [CallLock() for _ in range(3)]
    entered, free, order = threading.Event(), threading.Event(), []

    def holds():
        with locks[0]:
            entered.set()
            free.wait(LIMIT)
            order.append("first")

    def waits(*held):
        entered.wait(LIMIT)
        with ExitStack() as stack:
            for lock in held:
                stack.enter_context(lock)
            with locks[0], locks[0]:
                order.append("then")

    with _threads(holds, waits, lambda: waits(locks[1], locks[2])) as raised:
        entered.wait(LIMIT)
        free.set()
    assert not raised
    assert order == ["first", "then", "then"]
