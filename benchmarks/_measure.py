"""What every benchmark shares: fair timing, where it ran, a table, and one JSON line last."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "in_turn", "median_difference", "per_call", "report"]

Row = tuple[str, float, str, float | None]
"""Name, value, unit, and the target that the value must not exceed."""


def per_call(run: Callable[[], Any], calls: int) -> float:
    """Seconds of one call, the loop included."""
    begun = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begun) / calls


def in_turn(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int
) -> dict[str, list[float]]:
    """Seconds of a call of each, measured in turn: what disturbs a round disturbs all of it."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        per_call(run, calls)
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(per_call(run, calls))
    return found


def report(title: str, rows: Sequence[Row], raw: Mapping[str, Any] | None = None) -> None:
    """Print the rows, then one JSON line with the same values, where it ran, and ``raw``."""
    place = _place()
    table = Table(title=f"{title}\n{', '.join(f'{k} {v}' for k, v in place.items())}")
    table.add_column("")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    for name, value, unit, target in rows:
        met = "" if target is None else "met" if value <= target else "[red]missed[/red]"
        aim = "" if target is None else f"<= {target:g} {unit}"
        table.add_row(name.replace("_", " "), f"{value:.4g} {unit}", f"{aim} {met}")
    Console(width=None if Console().is_terminal else 110).print(table)
    values = {name: float(f"{value:.5g}") for name, value, _, _ in rows}
    print(json.dumps({**values, "where": place, **(raw or {})}))


def _place() -> dict[str, Any]:
    """The machine and versions, and how busy it was."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    return {
        "cpu": _processor(),
        "cpus": cpus,
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "date": str(datetime.date.today()),
        "load": load,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def median_difference(found: Mapping[str, Sequence[float]], name: str, floor: str) -> float:
    """The median over rounds of ``name`` less ``floor`` in the same round."""
    pairs = zip(found[name], found[floor], strict=True)
    return statistics.median(a - b for a, b in pairs)
