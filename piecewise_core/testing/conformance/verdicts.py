"""How a test of the kit ends, and what a failure tells."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piecewise_core.errors import PiecewiseError
from piecewise_core.plugins.attribution import raised

__all__ = ["OUTCOMES", "NotClaimed", "Violation", "failure_text"]

OUTCOMES = (
    "passed",
    "failed",
    "not claimed",
    "no hardware",
    "blocked",
    "expected failure",
    "not asked",
)
"""Every way in which a test can end; all but "failed" and "blocked" let a level be met, and "no
hardware" and "not asked" leave it untried."""

_SHOWN = 4
"""Frames of core and of torch that a trace shows, the innermost; those of plugins are all shown."""

_THEIRS = (str(Path(__file__).parents[2]), sysconfig.get_paths()["stdlib"], "<")
"""Where files lie that are not a plugin's, but for the packages that are installed there."""


class NotClaimed(Exception):
    """The platform does not declare what the test is about; the text says what."""


class Violation(AssertionError):
    """A property that does not hold: what was done, expected and got, and what to change."""

    def __init__(self, did: str, expected: Any, got: Any, change: str) -> None:
        super().__init__(f"{did}: expected {expected}, got {got}")
        self.did, self.expected, self.got, self.change = did, expected, got, change


def failure_text(property: str, blames: str, error: BaseException) -> str:
    """A failure as text that needs no look at the kit's source.

    ``blames``: the Protocol member at fault, where the error itself does not show another.
    """
    if isinstance(error, Violation):
        did, expected, got, change = error.did, error.expected, error.got, error.change
    else:
        blames = getattr(error, "method", "") or blames
        error = raised(error)
        did, expected = "what core does at this point", "no error"
        got = f"{type(error).__name__}: {error}"
        change = f"make {blames} work here, or leave it out if it is optional; see the trace"
        if isinstance(error, PiecewiseError):
            change = "what the message says"
    rows = {
        "property": property,
        "did": did,
        "expected": expected,
        "got": got,
        "change": change,
    }
    lines = [
        f"{blames} breaks the contract",
        *(f"  {k + ':':<10}{_short(v)}" for k, v in rows.items()),
    ]
    if not isinstance(error, Violation):
        lines += ["  trace:", *_trace(error)]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value).strip() or repr(value)
    return text.replace("\n", "\n            ")


def _trace(error: BaseException) -> list[str]:
    """Every frame of a plugin, and the innermost of others; those of what it came from as well."""
    frames = [f for one in _causes(error) for f in traceback.extract_tb(one.__traceback__)]
    frames = [f for f in frames if "/testing/conformance/" not in f.filename] or frames
    last = len(frames) - _SHOWN
    shown = [f for place, f in enumerate(frames) if place >= last or _is_plugins(f.filename)]
    return [f"    {f.filename}:{f.lineno} in {f.name}: {f.line}" for f in shown]


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_plugins(file: str) -> bool:
    _, installed, rest = file.rpartition("site-packages/")
    if installed:
        return rest.partition("/")[0] not in ("torch", "piecewise_core", "_pytest", "pluggy")
    return not file.startswith(_THEIRS)
