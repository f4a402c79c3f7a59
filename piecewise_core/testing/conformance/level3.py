"""L3: endurance, threads, streams, exhaustion, interruption. Nothing is timed."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_faults import USABLE
from piecewise_core.testing.conformance.level2_inputs import PADDED, captured
from piecewise_core.testing.conformance.level2_replay import AGAIN, GRAPHS
from piecewise_core.testing.conformance.level2_reset import BUDGET, FREES, asked
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["Level3"]

REPLAYED = "test_thousands_of_replays_leave_nothing"

_RELEASES = 20
_STREAMS = 16
_THREADS = 6
_INTERRUPTS = 3
_BOUND = 4096


class Level3(Conformance):
    """What a server does to a platform in weeks, in short."""

    @conformance("L3", "GraphDriver.replay", claims=GRAPHS, relies_on=(AGAIN,))
    def test_thousands_of_replays_leave_nothing(self, case: Case) -> None:
        """Thousands of replays of one graph grow neither the pool nor the process."""
        x, rounds = rows(case, 4), 5 * case.suite.rounds
        graph, out = case.capture(lambda: x + 1)

        def once() -> None:
            case.announce(graph)
            case.driver.replay(graph)

        did = f"replayed a graph with {out.numel()} results"
        _grows_not(case, once, rounds, did, "replay()")

    @conformance("L3", "GraphDriver.reset", claims=GRAPHS, relies_on=(REPLAYED, FREES))
    def test_rounds_of_capture_and_reset_leave_nothing(self, case: Case) -> None:
        """Thousands of captures, each reset, grow neither the pool nor the process."""
        x, rounds = rows(case, 4), case.suite.rounds

        def once() -> None:
            graph, _ = case.capture(lambda: x + 1)
            case.announce(graph)
            case.driver.replay(graph)
            case.reset(graph)

        _grows_not(case, once, rounds, "captured, replayed and reset a graph", "reset()")

    @conformance("L3", "DeviceRuntime.new_stream", claims=GRAPHS, relies_on=(AGAIN,))
    def test_many_streams_capture(self, case: Case) -> None:
        """Graphs are captured on many streams, one after the other, and all replay."""
        x, made = rows(case, 4), []
        for number in range(_STREAMS):
            stream, pool = case.device.new_stream(), case.driver.new_pool()
            plus: Any = functools.partial(torch.add, x, number)
            made.append((*case.capture(plus, pool=pool, stream=stream), pool, stream))
        for number, (graph, out, _, _) in enumerate(made):
            case.replay(graph)
            case.equal(
                out,
                x + number,
                f"captured x + n on {_STREAMS} streams, each with a pool, replayed all",
                "keep no state in the driver that only one stream can use",
                exact=True,
            )

    @conformance("L3", "GraphDriver.capture_begin", claims=GRAPHS, relies_on=(AGAIN,))
    def test_threads_capture_one_after_the_other(self, case: Case) -> None:
        """A thread captures and replays as the one before it did."""
        x, failed = rows(case, 4), []

        def work(number: int) -> None:
            try:
                with torch.inference_mode():
                    graph, out = case.capture(lambda: x + number)
                    case.replay(graph)
                    if not torch.equal(out.cpu(), (x + number).cpu()):
                        failed.append(f"thread {number}: wrong numbers")
            except BaseException as error:
                failed.append(f"thread {number}: {error.__cause__ or error!r}")

        for number in range(_THREADS):
            thread = threading.Thread(target=work, args=(number,))
            thread.start()
            thread.join()
        case.require(
            not failed,
            f"captured and replayed in {_THREADS} threads, one after the other",
            "each works",
            "; ".join(failed),
            "bind nothing to the thread that made the driver",
        )

    @conformance(
        "L3",
        "GraphDriver.resource_budget",
        claims=("GraphDriver.resource_budget",),
        relies_on=(BUDGET, FREES),
    )
    def test_what_was_exhausted_comes_back(self, case: Case) -> None:
        """When graphs run out and are then reset, as many as before can be captured."""
        allowed, x = asked(case), rows(case, 4)
        if allowed is None or allowed > _BOUND:
            raise NotClaimed(f"resource_budget gives {allowed}: exhausting it is not tried")
        counts = []
        for _ in range(2):
            graphs: list[Any] = []
            with contextlib.suppress(Exception):
                while len(graphs) <= allowed:
                    graphs.append(case.capture(lambda: x + 1)[0])
            counts.append(len(graphs))
            while graphs:
                case.reset(graphs.pop())
            case.close()
        case.require(
            counts[1] >= counts[0],
            "captured until an error came, reset all, and did it again",
            f"{counts[0]} captures again",
            f"{counts[1]}",
            "give back what a capture took that failed for want of something",
        )

    @conformance("L3", "GraphDriver.abort_capture", claims=GRAPHS, relies_on=(USABLE,))
    def test_interrupts_leave_the_device_usable(self, case: Case) -> None:
        """Ctrl-C in the middle of captures, again and again, leaves a device that captures."""
        x = rows(case, 4)

        def interrupted() -> None:
            x * 2
            raise KeyboardInterrupt

        did = f"interrupted {_INTERRUPTS} captures by KeyboardInterrupt, left each, captured x + 1"
        change = "leave capture mode whatever was raised, every time"
        try:
            for _ in range(_INTERRUPTS):
                with contextlib.suppress(KeyboardInterrupt):
                    case.capture(interrupted)
            graph, out = case.capture(lambda: x + 1)
        except Exception as error:
            got = f"{type(error).__name__}: {error.__cause__ or error}"
            case.require(False, did, "a graph", got, change)
        case.replay(graph)
        case.equal(out, x + 1, did, change, exact=True)

    @conformance("L3", "GraphDriver.new_pool", claims=GRAPHS, relies_on=(PADDED,))
    def test_released_models_come_back(self, case: Case) -> None:
        """A model's graphs are released and captured again, many times, with the same memory."""
        fast, held = captured(case, sizes=(4, 8)), []
        for turn in range(_RELEASES):
            fast.release()
            fast.restore()
            x = rows(case, 4, start=turn)
            case.equal(
                fast(x),
                x + x.sum(0),
                f"released and restored a model's graphs {turn + 1} times, then called it",
                "let new_pool() give a pool of its own every time, and take nothing for good",
            )
            held.append(fast.stats().pool_bytes)
        replayed = fast.stats().calls["replayed"]
        case.require(
            replayed == _RELEASES and held[-1] <= held[0],
            f"released and restored a model's graphs {_RELEASES} times, one call in between",
            f"{_RELEASES} replays and pool_bytes that stay at {held[0]}",
            f"{replayed} replays, pool_bytes {held[-1]}",
            "free everything of a pool with its last graph, so that captures go on to work",
        )


def _grows_not(case: Case, once: Callable[[], None], rounds: int, did: str, blamed: str) -> None:
    """Do ``once`` a little, measure, do it ``rounds`` times, measure again."""
    measured = []
    for times in (max(rounds // 10, 20), rounds):
        for _ in range(times):
            once()
        case.device.synchronize()
        gc.collect()
        held = case.driver.pool_bytes(case.pool) if case.has("GraphDriver.pool_bytes") else 0
        measured.append((held, len(gc.get_objects())))
    (pool, objects), (pool_after, objects_after) = measured
    case.require(
        pool_after <= pool and objects_after - objects < max(rounds // 4, 20),
        f"{did} {rounds} times",
        f"pool_bytes stay at {pool}; Python objects stay near {objects}",
        f"pool_bytes {pool_after}; Python objects {objects_after}",
        f"keep nothing of a graph behind {blamed}",
    )
