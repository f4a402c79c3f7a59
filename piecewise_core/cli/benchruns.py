"""Eager, torch.compile and piecewise, side by side: equal first, then timed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from piecewise_core.cli.benchcalls import Call, Calls
from piecewise_core.errors import PiecewiseError
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.compared import apart, kept

__all__ = ["Measured", "Runner", "SizeTimes", "measure"]

_FEWEST, _SPENT = 5, 0.2
"""Calls timed of each size, and seconds: what is reached last."""

_UNTIMED = 3
"""Calls before them: the first compile, and capture."""


@dataclass(frozen=True)
class Runner:
    """One way to run the model. ``failed``: why it did not, or gave other results; or ""."""

    name: str
    call: Callable[..., Any]
    failed: str = ""


@dataclass(frozen=True)
class SizeTimes:
    """One size. ``seconds``: the median of a call, by runner."""

    sizes: Sizes
    calls: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """``failed``: runners left out, and why. ``total``: seconds for all the calls, by runner."""

    model: str
    dims: tuple[str, ...]
    device: str
    times: tuple[SizeTimes, ...]
    failed: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def runners(self) -> list[str]:
        """Those that were timed, eager first."""
        return list(self.times[0].seconds)

    @property
    def total(self) -> dict[str, float]:
        """Seconds for all of the calls, at the median of their size."""
        return {n: sum(t.calls * t.seconds[n] for t in self.times) for n in self.runners}

    def to_json(self) -> str:
        """As a JSON object."""
        return json.dumps({**asdict(self), "total": self.total}, indent=2)


def measure(
    runners: list[Runner],
    calls: Calls,
    traffic: Mapping[Sizes, int],
    tell: Callable[[str], None],
) -> tuple[tuple[SizeTimes, ...], dict[str, str]]:
    """Times of each size, and why runners are left out. The first of ``runners`` is right.

    ``tell``: told what is done. Raises what the first one raises.
    """
    failed = {runner.name: runner.failed for runner in runners if runner.failed}
    given = {sizes: calls.of(sizes) for sizes in traffic}
    for sizes, call in given.items():
        right = kept(_run(runners[0], call), copy=True)
        for runner in runners:
            if runner.name not in failed:
                tell(f"comparing {runner.name} at {_named(sizes)}")
                why = _differs(runner, call, right)
                if why:
                    failed[runner.name] = f"{_named(sizes)}: {why}"
    timed = [runner for runner in runners if runner.name not in failed]
    found = []
    for sizes, call in given.items():
        seconds = {}
        for runner in timed:
            tell(f"timing {runner.name} at {_named(sizes)}")
            seconds[runner.name] = _median(runner, call)
        found.append(SizeTimes(sizes, traffic[sizes], seconds))
    return tuple(found), failed


def _differs(runner: Runner, call: Call, right: Mapping[str, Any]) -> str:
    """Why the runner's results, of its first calls, are not ``right``."""
    try:
        for _ in range(_UNTIMED):
            how = apart(kept(_run(runner, call)), right)
            if how is not None:
                return f"other results than eager: {how}"
    except PiecewiseError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # torch.compile's, or the model's own
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""


def _run(runner: Runner, call: Call) -> Any:
    args, kwargs = call
    return runner.call(*args, **kwargs)


def _median(runner: Runner, call: Call) -> float:
    spent: list[float] = []
    _synchronize()
    while len(spent) < _FEWEST or sum(spent) < _SPENT:
        begun = time.perf_counter()
        _run(runner, call)
        _synchronize()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _named(sizes: Sizes) -> str:
    return "x".join(map(str, sizes)) or "the one size"
