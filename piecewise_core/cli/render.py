"""Doctor's findings as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from piecewise_core.cli.checkup import Checkup
from piecewise_core.cli.diagnosis import Diagnosis
from piecewise_core.torch_compat.versions import tested_range

__all__ = ["render"]

_STYLES = {"active": "bold green", "found": "green", "skipped": "yellow", "failed": "bold red"}
_OK, _WARN, _FAIL = Text("  ok  ", "green"), Text("  warn", "yellow"), Text("  FAIL", "bold red")


def render(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print ``diagnosis`` to ``console``, by default standard output."""
    console = console or Console()
    console.print(_plain(", ".join(f"{n} {v}" for n, v in diagnosis.versions.items())))
    tested = f"piecewise is tested with torch {tested_range()}"
    untested = diagnosis.untested and Text(diagnosis.untested, "yellow")
    console.print(untested or _plain(tested), soft_wrap=True)
    console.print(_plain(str(diagnosis.settings)), soft_wrap=True)
    if diagnosis.candidates:
        console.print(_plugins(diagnosis))
    for checkup in diagnosis.checkups:
        _print_checkup(checkup, console)
    if diagnosis.torch_error is not None:
        text = f"Torch does not load, so no platform was tried: {diagnosis.torch_error}"
        console.print(Text(text, "bold red"), soft_wrap=True)
    elif diagnosis.error is not None:
        console.print(Text(f"No active platform: {diagnosis.error}", "bold red"), soft_wrap=True)
    elif diagnosis.healthy:
        console.print(Text(_verdict(diagnosis), "bold green"))
    else:
        console.print(Text("The active platform does not compute; see above.", "bold red"))


def _verdict(diagnosis: Diagnosis) -> str:
    steps = [step for checkup in diagnosis.checkups if checkup.active for step in checkup.steps]
    if all(step.ok for step in steps):
        return "The active platform computes."
    return "The active platform computes, but only uncompiled; see the warning above."


def _plugins(diagnosis: Diagnosis) -> Table:
    table = Table(title="Platforms", title_justify="left")
    for heading in ("platform", "device", "from", "state"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why", overflow="fold")
    for candidate in diagnosis.candidates:
        table.add_row(
            _plain(candidate.name),
            _plain(candidate.info.device_type if candidate.info else "?"),
            _plain(str(candidate.origin)),
            Text(candidate.status, _STYLES[candidate.status]),
            _plain(candidate.reason),
        )
    return table


def _print_checkup(checkup: Checkup, console: Console) -> None:
    console.print(_plain(f"\n{checkup.platform} ({checkup.distribution})"))
    for step in checkup.steps:
        mark = _OK if step.ok else (_FAIL if step.needed else _WARN)
        # Whole lines, so that a message can be copied or searched for.
        console.print(mark, _plain(f"{step.title}: {step.detail}"), soft_wrap=True)


def _plain(text: str) -> Text:
    """Text in which square brackets are just that."""
    return Text(text)
