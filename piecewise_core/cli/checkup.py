"""Try one platform: make it, let it check itself, and let it compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from piecewise_core.cli.computation import compute
from piecewise_core.errors import PiecewiseError
from piecewise_core.plugins.candidates import Candidate
from piecewise_core.plugins.probing import create_platform
from piecewise_core.plugins.selection import Selected
from piecewise_core.protocols import Platform

__all__ = ["Checkup", "Step", "check_up"]

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One thing tried. ``detail``: what came of it, or what went wrong and what to do.

    ``needed``: whether the platform counts as unable to compute without it.
    """

    title: str
    ok: bool
    detail: str
    needed: bool = True


@dataclass(frozen=True)
class Checkup:
    """How one platform fared."""

    platform: str
    distribution: str
    active: bool
    steps: tuple[Step, ...]

    @property
    def computes(self) -> bool:
        """Whether everything that is needed worked."""
        return all(step.ok for step in self.steps if step.needed)


def check_up(candidate: Candidate, selected: Selected | None, *, compiling: bool) -> Checkup:
    """Try ``candidate``; whatever it raises becomes a failed step.

    The active platform is the object that was selected; another one is made here.
    """
    active = candidate.status == "active"
    steps: list[Step] = []
    platform = selected.platform if active and selected else _made(candidate, steps)
    if platform is not None and candidate.info is not None:
        steps += _tried(platform, candidate.info.device_type, compiling=compiling)
    return Checkup(candidate.name, str(candidate.origin), active, tuple(steps))


def _made(candidate: Candidate, steps: list[Step]) -> Platform | None:
    if candidate.info is None:
        return None
    try:
        return create_platform(candidate.info, candidate.origin)
    except PiecewiseError as exc:
        steps.append(Step("create", False, str(exc)))
        return None


def _tried(platform: Platform, device_type: str, *, compiling: bool) -> list[Step]:
    from piecewise_core.compile.eager import EagerCompiler

    own = platform.compiler
    steps = []
    self_check: Callable[[], Any] | None = getattr(platform, "self_check", None)
    if self_check is not None:
        # Without its tools a platform still runs through the eager compiler.
        steps.append(_step("self-check", lambda: _facts(self_check()), needed=compiling))
    info: Callable[[], Any] | None = getattr(platform.device, "memory_info", None)
    if info is not None:
        steps.append(_step("memory", lambda: _memory(*info()), needed=False))
    steps.append(_step("eager", lambda: compute(platform, device_type, EagerCompiler())))
    if compiling:
        steps.append(_step(own.name, lambda: compute(platform, device_type, own)))
    return steps


def _step(title: str, attempt: Callable[[], str], *, needed: bool = True) -> Step:
    try:
        return Step(title, True, attempt(), needed)
    except PiecewiseError as exc:
        return Step(title, False, str(exc), needed)
    except Exception as exc:
        return Step(title, False, f"{type(exc).__name__}: {exc}", needed)


def _memory(free: int, total: int) -> str:
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"


def _facts(facts: Any) -> str:
    return ", ".join(f"{name}: {value}" for name, value in dict(facts or {}).items()) or "fine"
