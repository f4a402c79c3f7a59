"""Decides how one test ends."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from piecewise_core.errors import PiecewiseError
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.marks import LEVELS, Spec
from piecewise_core.testing.conformance.run import Run
from piecewise_core.testing.conformance.timelimit import time_limit
from piecewise_core.testing.conformance.verdicts import NotClaimed, Violation, failure_text

__all__ = ["FOUND", "KEEPS", "Verdict", "judge"]

FOUND = "test_the_platform_is_found"
KEEPS = "test_what_create_gives_keeps_the_protocols"
PROBED = "test_the_probe_answers"

_SPOILS = ("failed", "blocked", "expected failure")


@dataclass(frozen=True)
class Verdict:
    """How a test ended. ``reason``: empty where it passed."""

    outcome: str
    reason: str = ""


def judge(run: Run, spec: Spec, test: Callable[[Case], Any]) -> Verdict:
    """Run one test, unless there is a reason not to."""
    verdict = _untried(run, spec) or _tried(run, spec, test)
    expected = run.xfails.get(spec.name)
    if expected is not None:
        verdict = _against(expected, verdict, run)
    run.outcomes[spec.name] = verdict.outcome
    return verdict


def _untried(run: Run, spec: Spec) -> Verdict | None:
    """Why the test is not run at all, or None."""
    if LEVELS.index(spec.level) > LEVELS.index(run.suite.level):
        return Verdict("not asked", f"a test of {spec.level}; {run.suite.level} was asked for")
    needs = (*((FOUND, PROBED, KEEPS) if spec.level != "L0" else ()), *spec.relies_on)
    for name in needs:
        if run.outcomes.get(name) in _SPOILS:
            return Verdict("blocked", f"relies on {name}, which did not pass")
    if spec.level == "L0":
        return None
    try:
        probe = run.subject.probe()
    except PiecewiseError as error:
        return Verdict("blocked", f"the platform cannot be asked for its hardware: {error}")
    return None if probe.available else Verdict("no hardware", probe.reason)


def _tried(run: Run, spec: Spec, test: Callable[[Case], Any]) -> Verdict:
    try:
        with contextlib.ExitStack() as stack:
            case = Case(run, spec)
            if spec.level != "L0":
                stack.enter_context(_as_core_does())
            stack.callback(case.close)
            for claim in spec.claims:
                case.claim(claim)
            if spec.level != LEVELS[-1]:  # endurance takes what it takes
                stack.enter_context(time_limit(run.suite.seconds))
            test(case)
    except NotClaimed as reason:
        return Verdict("not claimed", str(reason))
    except pytest.skip.Exception as reason:
        return Verdict("not claimed", str(reason))
    except (Violation, Exception) as error:
        return Verdict("failed", failure_text(spec.property, spec.blames, error))
    return Verdict("passed")


@contextlib.contextmanager
def _as_core_does() -> Any:
    """Inference mode, and no warning of torch's about an empty graph."""
    import torch

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _against(expected: str, verdict: Verdict, run: Run) -> Verdict:
    """``verdict`` of a test that is listed as an expected failure, because of ``expected``."""
    if verdict.outcome == "failed":
        return Verdict("expected failure", expected)
    if verdict.outcome in ("passed", "not claimed"):
        how = "passes" if verdict.outcome == "passed" else f"is not claimed ({verdict.reason})"
        return Verdict(
            "failed",
            f"the test {how}, and {run.suite.xfail_path()} lists it as an expected failure "
            f"({expected}); remove that line",
        )
    return verdict
