"""What a run found, as a JSON report and an exit code."""

from __future__ import annotations

import json
import platform as machine
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from piecewise_core.errors import PiecewiseError
from piecewise_core.plugins.torchbuild import torch_build
from piecewise_core.protocols import API_VERSION
from piecewise_core.testing.conformance.marks import LEVELS
from piecewise_core.testing.conformance.subject import Subject

__all__ = ["MET", "NOT_MET", "NO_HARDWARE", "SCHEMA", "Report", "TestResult", "make_report"]

SCHEMA = 1
"""Version of the report's form; a field that goes or changes its meaning makes a new one."""

MET, NOT_MET, NO_HARDWARE = 0, 1, 3

_FAILS = ("failed", "blocked")


@dataclass(frozen=True)
class TestResult:
    """How one test ended. ``seconds`` are reported, and judged by nobody."""

    __test__ = False

    name: str
    level: str
    property: str
    outcome: str
    reason: str
    seconds: float
    overridden: str | None = None


@dataclass(frozen=True)
class Report:
    """One run of the kit; ``to_json`` is its form on disk, documented in the reference."""

    platform: Mapping[str, str]
    versions: Mapping[str, str]
    device: Mapping[str, object]
    date: str
    asked: str
    tests: tuple[TestResult, ...]

    @property
    def reached(self) -> str | None:
        """The highest level that is met, with all below it; None if L0 is not."""
        found = None
        for level in LEVELS[: LEVELS.index(self.asked) + 1]:
            outcomes = [test.outcome for test in self.tests if test.level == level]
            untried = any(o in (*_FAILS, "no hardware") for o in outcomes)
            if untried or "passed" not in outcomes:
                break
            found = level
        return found

    @property
    def exit_code(self) -> int:
        """0: the level asked for is met. 3: it cannot be tried for want of hardware. 1: else."""
        if self.reached == self.asked and not self.failed:
            return MET
        absent = any(test.outcome == "no hardware" for test in self.tests)
        return NO_HARDWARE if absent and not self.failed else NOT_MET

    @property
    def failed(self) -> tuple[TestResult, ...]:
        """The tests that stand in the way."""
        return tuple(test for test in self.tests if test.outcome in _FAILS)

    @property
    def counts(self) -> Mapping[str, int]:
        """Outcome -> how many tests ended so."""
        return dict(sorted(Counter(test.outcome for test in self.tests).items()))

    def to_json(self) -> str:
        """The report as one JSON object, without this machine's paths and name."""
        data = {
            "schema": SCHEMA,
            "platform": dict(self.platform),
            "versions": dict(self.versions),
            "device": dict(self.device),
            "date": self.date,
            "level": {"asked": self.asked, "reached": self.reached},
            "met": self.exit_code == MET,
            "counts": dict(self.counts),
            "tests": [asdict(test) for test in self.tests],
        }
        return _portable(json.dumps(data, indent=2)) + "\n"


def make_report(subject: Subject, asked: str, tests: Sequence[TestResult]) -> Report:
    """Put together what a run of ``subject`` up to level ``asked`` found."""
    plugin = subject.origin
    try:
        probe = subject.probe()
        device = {"available": probe.available, "reason": probe.reason, "facts": dict(probe.facts)}
    except PiecewiseError as error:
        device = {"available": False, "reason": str(error), "facts": {}}
    return Report(
        platform={
            "name": subject.name,
            "device_type": subject.device_type,
            "distribution": plugin.distribution,
            "version": plugin.version,
        },
        versions={
            "piecewise-core": _version("piecewise-core"),
            "api": ".".join(map(str, API_VERSION)),
            "torch": (torch_build() or {}).get("version", "not installed"),
            "python": machine.python_version(),
        },
        device=device,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        asked=asked,
        tests=tuple(tests),
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _portable(text: str) -> str:
    """``text`` without what names this machine: its directories and its name."""
    places = {
        str(Path(__file__).parents[3]): "<source>",
        sys.prefix: "<prefix>",
        str(Path.home()): "<home>",
        str(Path.cwd()): "<directory>",
        tempfile.gettempdir(): "<temporary>",
        machine.node(): "<host>",
    }
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 3:
            text = text.replace(place, places[place])
    return text
