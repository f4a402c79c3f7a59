"""What a mutant of silent errors is: a program, what happens to it, and what serves it wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.device import Device
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

__all__ = [
    *("CUT", "ROWS", "SIZE", "Call", "Mutant", "Program", "calls", "platform", "random", "rows"),
]

ROWS = pw.Dim("rows", 1, 16)
SIZE = 4
"""The size that is captured, where one is."""
CUT: Mapping[str, Any] = {"splitting_ops": ("torch.softmax",)}


class Call:
    """One call's arguments; made anew for the served and for the plain model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@dataclass(frozen=True)
class Program:
    """``model``: what is served. ``steps``: calls, and changes: functions without arguments.

    A program is made twice, for the served and for the plain run, so that each has a state of its
    own. ``dynamic``: as in Config. ``keeps``: results are looked at when all calls are
    done.
    """

    model: Callable[..., Any]
    steps: Sequence[Call | Callable[[], Any]]
    dynamic: Mapping[str, Any] = field(default_factory=lambda: {"x": {0: ROWS}})
    keeps: bool = False


@dataclass(frozen=True)
class Mutant:
    """``kind``: of silent error. ``what``: this one, in words, with its variant.

    ``program``: makes a Program. ``platform``: makes what serves it. ``front``: "compile",
    "record" or "door". ``settings``: of Config. ``blind``: it is served once more with nobody
    watching Python's state, as if the watch had missed the change. ``late``: what is found was
    right when it was given, and is not any more.
    """

    kind: str
    what: str
    program: Callable[[], Program]
    platform: Callable[[], Any] = SimulatedPlatform
    front: str = "compile"
    settings: Mapping[str, Any] = field(default_factory=dict)
    blind: bool = False
    late: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.kind}: {self.what}"


def platform(
    *,
    compiler: type[EagerCompiler] = EagerCompiler,
    driver: type[SimulatedDriver] = SimulatedDriver,
    runtime: type[SimulatedRuntime] = SimulatedRuntime,
    device: type[Device] = Device,
    **knobs: Any,
) -> Callable[[], Any]:
    """The simulated device with a part that lies."""

    def make() -> Any:
        made, shared = SimulatedPlatform(), device(None)
        made.graphs = driver(shared, **knobs)
        made.device = runtime(shared)
        made.compiler = compiler()
        return made

    return make


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """The same numbers each time."""
    generator = torch.Generator().manual_seed(seed)
    if not dtype.is_floating_point:
        return torch.randint(-9, 9, shape, generator=generator).to(dtype)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def rows(count: int = SIZE, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows of eight."""
    return random(count, 8, dtype=dtype, seed=seed)


def calls(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Call]:
    """A call of each size, each with other numbers."""
    return [Call(rows(size, dtype=dtype, seed=seed)) for seed, size in enumerate(sizes)]
