"""How a test of the kit says what it is about, and how a subclass says why it replaces one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

__all__ = ["LEVELS", "Spec", "conformance", "override_reason", "overrides", "spec_of"]

LEVELS = ("L0", "L1", "L2", "L3")
"""Contract without hardware; compile and dispatch; capture; endurance."""

F = TypeVar("F", bound=Callable[..., Any])

_SPEC = "__conformance__"
_REASON = "__overrides__"


@dataclass(frozen=True)
class Spec:
    """What one test is about.

    ``name``: of the test function. ``level``: one of LEVELS. ``property``: one sentence.
    ``blames``: the Protocol member that is at fault when it fails. ``claims``: what a platform
    must declare for the test to apply. ``relies_on``: tests that must not have failed for this
    one to mean anything. ``overridden``: why a subclass replaced it.
    """

    name: str
    level: str
    property: str
    blames: str
    claims: tuple[str, ...] = ()
    relies_on: tuple[str, ...] = ()
    overridden: str | None = None

    def replaced(self, reason: str) -> Spec:
        """The same test, replaced by a subclass for ``reason``."""
        return replace(self, overridden=reason)


def conformance(
    level: str,
    blames: str,
    *,
    claims: tuple[str, ...] = (),
    relies_on: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Mark a method as a test of the kit; its docstring's first line is the property."""

    def mark(test: F) -> F:
        first = (test.__doc__ or "").strip().split("\n\n")[0]
        spec = Spec(test.__name__, level, " ".join(first.split()), blames, claims, relies_on)
        setattr(test, _SPEC, spec)
        return test

    return mark


def overrides(reason: str) -> Callable[[F], F]:
    """State why a subclass of PlatformConformance replaces a test of the kit.

    ``reason``: a sentence, shown in the report. The test may take ``case`` as the kit's do, or
    nothing. A replaced test without this is a failure.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"overrides() needs a sentence that says why, got {reason!r}")

    def mark(test: F) -> F:
        setattr(test, _REASON, reason.strip())
        return test

    return mark


def spec_of(thing: Any) -> Spec | None:
    """The Spec of a test of the kit; None for anything else."""
    found = getattr(thing, _SPEC, None)
    return found if isinstance(found, Spec) else None


def override_reason(thing: Any) -> str | None:
    """The reason given with ``overrides``, or None."""
    return getattr(thing, _REASON, None)
