"""The class that levels and vendors' suites derive from: it judges every test the same way."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from piecewise_core.testing.conformance.judging import Verdict, judge
from piecewise_core.testing.conformance.marks import LEVELS, Spec, override_reason, spec_of
from piecewise_core.testing.conformance.run import Run
from piecewise_core.testing.conformance.subject import Subject

__all__ = ["Conformance"]


class Conformance:
    """Wraps every test of the kit when a class with tests is made. See PlatformConformance."""

    platform: ClassVar[Any] = None
    level: ClassVar[str] = LEVELS[-1]
    xfails: str | Path | None = None
    rounds: int = 2000
    seconds: ClassVar[float] = 600.0

    _run: Run

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.level not in LEVELS:
            raise ValueError(f"{cls.__name__}.level = {cls.level!r}; the levels are {LEVELS}")
        unexplained = list(cls.__mro__[1].__dict__.get("unexplained", ()))
        for name, value in list(vars(cls).items()):
            inherited = next((s for s in (_spec_in(b, name) for b in cls.__mro__[1:]) if s), None)
            spec, reason = spec_of(value), override_reason(value)
            if inherited is not None:
                spec = inherited.replaced(reason) if reason else None
                if reason is None:
                    unexplained.append(name)
            if spec is not None and callable(value):
                setattr(cls, name, _judged(value, spec))
        cls.unexplained = tuple(unexplained)
        cls._run = Run(cls)

    unexplained: tuple[str, ...] = ()

    @classmethod
    def specs(cls) -> Mapping[str, Spec]:
        """Every test of the kit that this class has, by name, in order."""
        found: dict[str, Spec] = {}
        for owner in reversed(cls.__mro__):
            for name in vars(owner):
                spec = spec_of(getattr(cls, name, None)) or _spec_in(owner, name)
                if spec is not None:
                    found[name] = spec
        return found

    @classmethod
    def subject(cls) -> Subject:
        """The platform under test. Raises NoPlatform, PlatformConflict or PluginError."""
        return cls._run.subject

    @classmethod
    def expected(cls) -> Mapping[str, str]:
        """The tests that are expected to fail, with reasons. Raises ConfigError."""
        return cls._run.xfails

    @classmethod
    def xfail_path(cls) -> Path | None:
        """The file of expected failures; a relative path starts at the suite's own file."""
        if cls.xfails is None:
            return None
        home = getattr(sys.modules.get(cls.__module__), "__file__", None)
        return Path(home).parent / cls.xfails if home else Path(cls.xfails)


def _spec_in(owner: type, name: str) -> Spec | None:
    return spec_of(vars(owner).get(name))


def _judged(test: Callable[..., Any], spec: Spec) -> Callable[..., None]:
    """``test`` as pytest calls it: without arguments of its own, and with a verdict."""
    takes_case = len(inspect.signature(test).parameters) > 1

    def judged(self: Conformance, request: pytest.FixtureRequest) -> None:
        body = partial(test, self) if takes_case else lambda case: test(self)
        verdict = judge(type(self)._run, spec, body)
        properties = request.node.user_properties
        properties += [("conformance", verdict.outcome), ("reason", verdict.reason)]
        if spec.overridden:
            properties.append(("overridden", spec.overridden))
        _tell(verdict)

    judged.__name__, judged.__qualname__ = test.__name__, test.__qualname__
    judged.__doc__, judged.__module__ = test.__doc__ or spec.property, test.__module__
    judged.__conformance__ = spec  # type: ignore[attr-defined]
    return judged


def _tell(verdict: Verdict) -> None:
    """End the test as pytest knows it."""
    if verdict.outcome == "failed":
        pytest.fail(verdict.reason, pytrace=False)
    if verdict.outcome == "expected failure":
        pytest.xfail(verdict.reason)
    if verdict.outcome != "passed":
        pytest.skip(f"{verdict.outcome}: {verdict.reason}")
