"""All that the benchmarks take from piecewise's insides, in one place."""

from __future__ import annotations

import contextlib
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from _place import Place

from piecewise_core.frontend import precompile

__all__ = [
    "Stopwatch",
    "capture_all",
    "captured_plan",
    "entry_microseconds",
    "floor_of",
    "launched_alone",
    "prepare",
]


def captured_plan(module: Any, *sizes: int) -> Any:
    """The captured plan of one size."""
    return module._pw_session.forms[0].capturing.plans.get(sizes)


@contextlib.contextmanager
def launched_alone(*plans: Any) -> Iterator[None]:
    """Graphs of ``plans`` that share executables of the CUDA driver are launched by their own.

    Executables that this makes stay.
    """
    executables = importlib.import_module("piecewise_cuda.executables")
    for plan in plans:
        for graph in plan.graphs:
            graph.executable.holds = None
    with mock.patch.object(executables.Executable, "take", return_value=False):
        yield


def floor_of(plan: Any, arguments: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A flat function over the plan's own graphs and operator calls, and the input copies.

    Replays are bound; operators are called through the dispatcher.
    """
    names: dict[str, Any] = {}
    given = [f"t{i}" for i in range(len(arguments))]
    lines = [f"def floor({', '.join(given)}):"]
    for i, view in enumerate(plan.held[: len(arguments)]):
        names[f"c{i}"] = view.copy_
        lines.append(f" c{i}(t{i})")
    for i, step in enumerate(plan.steps):
        names[f"s{i}"] = step
        lines.append(f" s{i}()")
    exec("\n".join(lines), names)
    return functools.partial(names["floor"], *arguments)


def entry_microseconds(
    module: Any, arguments: Sequence[torch.Tensor], sizes: Sequence[int], calls: int
) -> float:
    """Median from the call to where staging would begin."""
    dispatch = module._pw_session.forms[0].dispatch
    slot = dispatch.find(*sizes)
    kept = dispatch.entries[slot]
    dispatch.entries[slot] = lambda *args: None
    try:
        found = []
        for _ in range(calls):
            begun = time.perf_counter()
            module(*arguments)
            found.append(time.perf_counter() - begun)
    finally:
        dispatch.entries[slot] = kept
    return statistics.median(found) * 1e6


def prepare(module: Any, arguments: Sequence[torch.Tensor]) -> Any:
    """Trace and compile everything, capture nothing; returns the session."""
    session = module._pw_session
    session.start(*arguments)
    for _ in precompile.compile_all(session.forms):
        pass
    return session


def capture_all(session: Any) -> list[tuple[int, ...]]:
    """Capture every capture size, those that ``release`` freed too; those now served by graphs."""
    for form in session.forms:
        form.wake()
    found: list[tuple[int, ...]] = precompile.capture_all(session.shared, session.forms)
    return found


def pieces_of(session: Any, sizes: Sequence[int]) -> list[tuple[Callable[..., Any], Any]]:
    """Each compilable piece with the arguments that one run at ``sizes`` gives it."""
    region = session.regions[0]
    made: list[tuple[Callable[..., Any], Any]] = []

    def noting(run: Callable[..., Any]) -> Callable[..., Any]:
        def piece(*args: Any) -> Any:
            made.append((run, args))
            return run(*args)

        return piece

    box = region.fallback(tuple(sizes)).box
    plan = region.code.plan([noting(run) for _, run in region.runnables(box)])
    views = session.forms[0].capturing.replays.reads.buffers(tuple(sizes))
    plan(views, session.forms[0].model.read(), *sizes)
    return made


class Stopwatch:
    """Seconds spent in named functions of piecewise while ``running()``.

    What is called within another watched function counts for both. A name that is gone is left
    out, so that a figure is missing and not wrong.
    """

    WATCHED = (
        ("rehearsal run", "piecewise_core.capture.recorder", "Recorder.rehearse"),
        ("recording", "piecewise_core.capture.recorder", "Recorder.record"),
        ("steps", "piecewise_core.capture.sequence", "StepSequence.steps"),
        ("capture_begin", "piecewise_core.capture.torch_driver", "TorchGraphDriver.capture_begin"),
        ("capture_end", "piecewise_core.capture.torch_driver", "TorchGraphDriver.capture_end"),
        ("replay once", "piecewise_core.capture.torch_driver", "TorchGraphDriver.replay"),
        ("new_graph", "piecewise_core.capture.torch_driver", "TorchGraphDriver.new_graph"),
        ("weak_ref", "piecewise_core.capture.torch_driver", "TorchGraphDriver.weak_ref"),
        ("pool bytes", "piecewise_core.capture.torch_driver", "TorchGraphDriver.pool_bytes"),
        ("driver bytes", "piecewise_core.capture.torch_driver", "TorchGraphDriver.driver_bytes"),
        ("memory snapshot", "piecewise_core.capture.torch_memory", "PoolMemory.read"),
        ("synchronize", "piecewise_core.capture.torch_runtime", "TorchRuntime.synchronize"),
        ("gc.collect", "gc", "collect"),
        ("whole capture", "piecewise_core.capture.plans", "CapturedPlans.capture"),
    )

    def __init__(self, place: Place) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.sizes: dict[str, float] = {}
        self._place = place

    @contextlib.contextmanager
    def running(self) -> Iterator[Stopwatch]:
        """Watch; each function costs about a microsecond more per call."""
        with contextlib.ExitStack() as stack:
            for name, module, path in self.WATCHED:
                holder: Any = importlib.import_module(module)
                *owners, attribute = path.split(".")
                for owner in owners:
                    holder = getattr(holder, owner, None)
                if hasattr(holder, attribute):
                    wrapped = self._wrapped(name, getattr(holder, attribute))
                    stack.enter_context(mock.patch.object(holder, attribute, wrapped))
            yield self

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - begun
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
                self.calls[name] = self.calls.get(name, 0) + 1
                if name == "whole capture":
                    self.sizes[str(args[1])] = seconds

        return watched
