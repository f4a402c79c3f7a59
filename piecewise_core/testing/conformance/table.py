"""A report as a table for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from piecewise_core.testing.conformance.report import MET, NO_HARDWARE, Report, TestResult

__all__ = ["render"]

_WIDTH = 80
_INDENT = " " * 22

_UNTRIED = ("blocked", "not claimed", "no hardware", "not asked")

_STYLES = {
    "passed": "green",
    "failed": "bold red",
    "blocked": "red",
    "not claimed": "dim",
    "no hardware": "yellow",
    "expected failure": "yellow",
}


def render(report: Report, console: Console) -> None:
    """Print ``report``: the tests, every failure in full, the verdict.

    A line a test, fit for 80 columns and for pipes; tests that were not run for one reason are one
    line together.
    """
    console.print(Text(_heading(report)), soft_wrap=True)
    console.print()
    for tests in _grouped(report.tests):
        first = tests[0]
        name = first.name if len(tests) == 1 else f"{len(tests)} tests"
        outcome = Text(f"{first.outcome:<16}", _STYLES.get(first.outcome, ""))
        console.print(Text.assemble(f"{first.level:<2}  ", outcome, f"  {name}"), soft_wrap=True)
        why = _why(first.outcome, first.reason, first.overridden)
        for line in textwrap.wrap(why, _WIDTH - len(_INDENT), break_long_words=False):
            console.print(Text(f"{_INDENT}{line}", "dim"), soft_wrap=True)
    for test in report.failed:
        if test.outcome == "failed":
            console.print(Text(f"\n{test.name}", "bold red"))
            console.print(Text(test.reason), soft_wrap=True)
    console.print()
    console.print(_verdict(report), soft_wrap=True)


def _grouped(tests: Sequence[TestResult]) -> Iterable[list[TestResult]]:
    """Those that were not run for one reason together, where the first of them stands."""
    groups: dict[object, list[TestResult]] = {}
    for test in tests:
        untried = test.outcome in _UNTRIED and not test.overridden
        key = (test.level, test.outcome, test.reason) if untried else test.name
        groups.setdefault(key, []).append(test)
    return groups.values()


def _heading(report: Report) -> str:
    about, device = report.platform, report.device
    made = " ".join(filter(None, (about["distribution"], about["version"])))
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return (
        f"{about['name']} ({made}), device {about['device_type']}: {device['reason']}\n{versions}"
    )


def _why(outcome: str, reason: str, overridden: str | None) -> str:
    said = "see below" if outcome == "failed" else reason
    return "; ".join(filter(None, (said, overridden and f"replaced: {overridden}")))


def _verdict(report: Report) -> Text:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items())
    reached = f"level reached: {report.reached or 'none'} (asked for {report.asked})\n{counts}"
    if report.exit_code == MET:
        return Text(f"Met. {reached}", "bold green")
    if report.exit_code == NO_HARDWARE:
        return Text(f"Untried for want of hardware. {reached}", "bold yellow")
    hint = "" if report.failed else "; a level of which nothing is claimed is not reached"
    return Text(f"Not met. {reached}{hint}", "bold red")
