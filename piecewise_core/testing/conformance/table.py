"""A report as a table for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from piecewise_core.testing.conformance.report import MET, NO_HARDWARE, Report

__all__ = ["render"]

_STYLES = {
    "passed": "green",
    "failed": "bold red",
    "blocked": "red",
    "not claimed": "dim",
    "no hardware": "yellow",
    "expected failure": "yellow",
}


def render(report: Report, console: Console) -> None:
    """Print ``report``: the tests, every failure in full, the verdict."""
    console.print(Text(_heading(report)), soft_wrap=True)
    table = Table()
    for heading in ("level", "test", "outcome"):
        table.add_column(heading, no_wrap=heading != "test", overflow="fold")
    table.add_column("s", justify="right")
    table.add_column("why", overflow="fold", ratio=1)
    for test in report.tests:
        table.add_row(
            test.level,
            test.name,
            Text(test.outcome, _STYLES.get(test.outcome, "")),
            f"{test.seconds:.1f}",
            Text(_why(test.outcome, test.reason, test.overridden)),
        )
    console.print(table)
    for test in report.failed:
        if test.outcome == "failed":
            console.print(Text(f"\n{test.name}", "bold red"))
            console.print(Text(test.reason), soft_wrap=True)
    console.print()
    console.print(_verdict(report), soft_wrap=True)


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
    reached = f"level reached: {report.reached or 'none'} (asked for {report.asked}); {counts}"
    if report.exit_code == MET:
        return Text(f"Met. {reached}", "bold green")
    if report.exit_code == NO_HARDWARE:
        return Text(f"Untried for want of hardware. {reached}", "bold yellow")
    hint = "" if report.failed else "; a level of which nothing is claimed is not reached"
    return Text(f"Not met. {reached}{hint}", "bold red")
