"""What one run was given in Python values, to compare the second run with.

A graph repeats the second run. Where a number came out differently there than in the first, as of
a counter, a clock or Python's random numbers, every call would have to come out differently.
"""

from __future__ import annotations

from typing import Any

from piecewise_core.capture.hostdata import is_lift
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.hostdata import bytes_of
from piecewise_core.graph.structure import is_plain
from piecewise_core.torch_compat import pytree

__all__ = ["Script"]


class Script:
    """Takes in the operators of the first run; those of the second must come in that order.

    Some may be left out: what is made once, a table say, is made in the first.
    """

    def __init__(self) -> None:
        self._lines: list[tuple[Any, ...]] = []
        self._place: int | None = None
        self._found: list[int] = []

    def begin(self) -> None:
        """The second run begins."""
        self._place = 0

    @property
    def step(self) -> int:
        """The number of the operator that was called last, in the first run."""
        return len(self._lines) - 1

    def repeated(self) -> set[int]:
        """The steps of the first run that the second called too, whichever it left out."""
        latest, end = set(), len(self._lines)
        for line in reversed([self._lines[step] for step in self._found]):
            end = max(step for step in range(end) if self._lines[step] == line)
            latest.add(end)
        return latest & set(self._found)

    def note(self, fn: Any, args: Any, kwargs: Any) -> None:
        """An operator is called. Raises CaptureFailed where the first run did not call it so."""
        line = _line(fn, args, kwargs)
        if self._place is None:
            self._lines.append(line)
            return
        try:
            self._place = self._lines.index(line, self._place) + 1
        except ValueError:
            raise CaptureFailed(_differs(line, self._lines[self._place :])) from None
        self._found.append(self._place - 1)


def _line(fn: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    if is_lift(fn):
        return str(fn), bytes_of(args[0])
    leaves = pytree.tree_leaves((args, kwargs))
    return str(fn), *(repr(v) for v in leaves if is_plain(v))


def _differs(line: tuple[Any, ...], rest: list[tuple[Any, ...]]) -> str:
    before = next((other for other in rest if other[0] == line[0]), None)
    if before is None:
        return (
            f"{line[0]} was called in the second run where the first did not call it. Code that "
            "asks whether a graph is being captured takes another path then (attention masks of "
            "transformers), as does what goes by a clock or random numbers; a graph repeats one "
            "run, and nothing has looked at that path. Use pw.compile, which traces one path for "
            "every call, or put that code into a splitting op"
        )
    pairs = [(a, b) for a, b in zip(before, line, strict=False) if a != b]
    apart = f" ({pairs[0][0][:40]}, then {pairs[0][1][:40]})" if pairs else ""
    return (
        f"{line[0]} was given something else in the second run than in the first{apart}; a graph "
        "repeats one run, so what Python decides must come out the same, which a counter, a clock "
        "or Python's random numbers do not. Pass it as an argument, or put that code into a "
        "splitting op"
    )
