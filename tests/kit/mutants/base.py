"""How a mutant is made: the simulated device with one part replaced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = ["Mutant", "device"]


@dataclass(frozen=True)
class Mutant:
    """``what``: the broken promise. ``fails``: the test that notices, and no other does.

    ``platform``: a context whose value a suite takes as its platform. ``level``: how far it is
    tested.
    """

    what: str
    fails: str
    platform: Callable[[], AbstractContextManager[Any]]
    level: str = "L3"


def device(
    what: str,
    fails: str,
    *,
    driver: type[SimulatedDriver] = SimulatedDriver,
    runtime: type[SimulatedRuntime] = SimulatedRuntime,
    compiler: type[EagerCompiler] = EagerCompiler,
    parent: type[Device] = Device,
    backend: Any = None,
    **knobs: Any,
) -> Mutant:
    """A mutant of the simulated device; every test gets one of its own."""

    def make() -> Any:
        return _Mutated(driver, runtime, compiler, parent, backend, knobs)

    return Mutant(what, fails, lambda: nullcontext(make))


class _Mutated(SimulatedPlatform):
    def __init__(self, driver, runtime, compiler, parent, backend, knobs):
        super().__init__()
        shared = parent(None)
        self.graphs = driver(shared, **knobs)
        self.device = runtime(shared)
        self.compiler = compiler()
        if backend is not None:
            self.piecewise_backend = backend
