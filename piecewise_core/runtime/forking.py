"""A plan's statements in two lanes: where streams part, where they join, what lives until then.

An allocator gives memory back to the stream that it was made on, as soon as nothing holds it on the
host. So what was there before a fork and is last used in it, on whichever stream, is held until the
join: the other stream may still be reading, or have nothing that orders its next kernel behind the
reading. What a lane makes and uses up itself goes back at once, to its own stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from piecewise_core.runtime.planlines import Line

__all__ = ["Forking"]


class Forking:
    """Collects lines, piece by piece."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._fork: int | None = None
        self._at, self._side = 0, False

    def add(self, lines: Iterable[Line], lane: tuple[int, int] | None) -> None:
        """The lines of one more piece, which is in ``lane``."""
        fork = None if lane is None else lane[0]
        if fork != self._fork:
            self._join()
            self._at, self._side, self._fork = len(self._lines), False, fork
            if lane is not None:
                self._lines.append(Line("_fork()"))
        if lane is None or lane[1] == 0:
            self._lines += lines
            return
        if not self._side:
            self._lines.append(Line("with _side():"))
            self._side = True
        self._lines += [replace(line, depth=line.depth + 1) for line in lines]

    def joined(self) -> list[Line]:
        """All of them."""
        self._join()
        return self._lines

    def _join(self) -> None:
        if self._fork is None:
            return
        before, inside = self._lines[: self._at], self._lines[self._at :]
        there = frozenset[str]().union(*(line.locals for line in before))
        used = frozenset[str]().union(*(line.locals for line in inside))
        self._lines.append(Line("_join()", there & used))
        self._fork = None
