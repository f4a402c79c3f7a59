"""What ``piecewise cache`` finds out, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piecewise_core.store.entry import Manifest
from piecewise_core.store.misses import Miss, nearest

__all__ = ["Reason", "entry_facts", "reasons", "show_entries", "show_reasons", "size_text"]

_KEY = 12
"""Digits of a key that are shown; commands take as many as tell keys apart."""

_MODEL = 16
"""Columns that a model's name has at least, however narrow the terminal, if it is as long."""


@dataclass(frozen=True)
class Reason:
    """Why one entry had to be compiled: the nearest entry that an earlier run made."""

    manifest: Manifest
    miss: Miss

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        near = self.miss.nearest
        return {
            "key": self.manifest.key,
            "label": self.manifest.piece,
            "model": self.manifest.model,
            "sizes": str(self.manifest.box),
            "nearest": None if near is None else near.key,
            "differences": [asdict(d) for d in self.miss.differences],
        }


def entry_facts(manifest: Manifest) -> dict[str, Any]:
    """One entry as plain data."""
    return {
        "key": manifest.key,
        "label": manifest.piece,
        "model": manifest.model,
        "sizes": str(manifest.box),
        "serves": None if manifest.serves is None else str(manifest.serves),
        "why": manifest.why,
        "compiler": manifest.adaptor,
        "bytes": manifest.size,
        "seconds": manifest.seconds,
        "made": manifest.made,
        "run": manifest.run,
        "factors": dict(manifest.factors),
    }


def reasons(wanted: Iterable[Manifest], every: Sequence[Manifest]) -> list[Reason]:
    """For each of ``wanted`` the nearest among older entries of other runs."""
    found = []
    for manifest in wanted:
        older = [
            m
            for m in every
            if m.run != manifest.run and m.key != manifest.key and m.made <= manifest.made
        ]
        found.append(Reason(manifest, nearest(manifest.factors, manifest.label, older)))
    return found


def show_entries(manifests: Sequence[Manifest], where: str) -> None:
    """Print a table of entries."""
    console = Console()
    total = size_text(sum(m.size for m in manifests))
    console.print(Text(f"{where}: {len(manifests)} entries, {total}"), soft_wrap=True)
    if not manifests:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("key", no_wrap=True)
    widest = max(len(_names(m)[0]) for m in manifests)
    table.add_column("model", overflow="fold", min_width=min(widest, _MODEL))
    table.add_column("piece", overflow="fold")
    table.add_column("sizes", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("compiled in", justify="right")
    table.add_column("made (UTC)", no_wrap=True)
    for m in manifests:
        cells = (m.key[:_KEY], *_names(m), str(m.box), size_text(m.size))
        table.add_row(*map(Text, cells), f"{m.seconds:.2f} s", _date(m.made))
    console.print(table)


def _names(manifest: Manifest) -> tuple[str, str]:
    """A model's name, without its module, and the piece; a trace is told by its model's path."""
    trace, _, path = manifest.piece.partition(" of ")
    if trace != "trace":
        return manifest.model, manifest.piece
    return manifest.model or path.rpartition(":")[2], trace


def show_reasons(found: Sequence[Reason]) -> None:
    """Print why each entry was compiled; equal reasons stand together."""
    console = Console()
    groups: dict[tuple[str, ...], list[Reason]] = {}
    for reason in found:
        groups.setdefault(tuple(map(str, reason.miss.differences)), []).append(reason)
    for differences, alike in groups.items():
        for reason in alike:
            m, near = reason.manifest, reason.miss.nearest
            compared = "nothing to compare with" if near is None else f"nearest {near.key[:_KEY]}"
            line = f"{m.key[:_KEY]} {m.label} {m.box}: {compared}"
            console.print(Text(line), soft_wrap=True)
        for difference in differences:
            console.print(Text(f"  {difference}"), soft_wrap=True)


def size_text(size: int) -> str:
    """Bytes for people: ``1.4 MiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _date(made: int) -> str:
    try:
        return datetime.fromtimestamp(made / 1000, timezone.utc).strftime("%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):
        return "?"
