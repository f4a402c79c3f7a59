"""A figure next to the target it is held to, and tables of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Target", "print_table", "print_targets"]


@dataclass(frozen=True)
class Target:
    """``value``: None when it could not be had, for the reason in ``note``.

    ``at_least``: whether larger is better.
    """

    name: str
    value: float | None
    target: float
    unit: str = "x"
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """met, missed, or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.target if self.at_least else self.value <= self.target
        return "met" if met else "missed"

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line."""
        value = None if self.value is None else float(f"{self.value:.5g}")
        return {**asdict(self), "value": value, "verdict": self.verdict}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table; the first column is text, the others figures."""
    print(f"\n{title}")
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(_text(cell)) for cell in row))
    _print(table)


def print_targets(targets: Sequence[Target], *, simulated: bool) -> list[dict[str, Any]]:
    """Print figures next to their targets and return them for the JSON line.

    On the simulated device nothing has a speed, so nothing is judged.
    """
    print("\ntargets")
    table = Table()
    for column in ("", "measured", "target", ""):
        table.add_column(column, justify="right" if column else "left")
    for each in targets:
        value = "-" if each.value is None else f"{each.value:.4g} {each.unit}"
        sign = ">=" if each.at_least else "<="
        verdict = "not judged" if simulated else each.verdict
        note = f"{verdict}: {each.note}" if each.note else verdict
        table.add_row(each.name, value, f"{sign} {each.target:g} {each.unit}", escape(note))
    _print(table)
    found = [each.to_dict() for each in targets]
    return [{**each, "verdict": "not judged"} for each in found] if simulated else found


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 160).print(table)


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
