"""What a bisection found, for people and for programs."""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from piecewise_core.graph.names import source_of
from piecewise_core.graph.split import Piece

__all__ = ["BisectReport", "source_lines"]

_STAGES = {
    "split": "the traced program gives other results than the model as it is now",
    "compiled": "its compiled code gives other results than its operators as written",
    "captured": "its static graph gives other results than the code that was captured",
    "padded": "rows of padding change the call's own rows",
}

_LINES = 6
"""Lines of source that are shown of one piece."""


@dataclass(frozen=True)
class BisectReport:
    """Which piece of a call first differs from the model as written.

    ``stage``: "split", "compiled", "captured" or "padded"; "" where nothing differs. ``piece``:
    as messages call it, "" where no single one is to blame. ``ops``: what it runs. ``source``: its
    lines, ``file:line`` and text. ``difference``: how far the results are apart. ``target``: what
    serves such a call. ``runs``: forwards that it took to find out, of either side; a pass that
    compares every piece is one. ``pieces``: how many there are. ``note``: what limits the answer.
    """

    sizes: tuple[int, ...]
    target: str
    stage: str = ""
    piece: str = ""
    ops: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    difference: str = ""
    runs: int = 0
    pieces: int = 0
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether anything differs."""
        return bool(self.stage)

    def to_json(self) -> str:
        """The report as a JSON object."""
        facts: dict[str, Any] = {**asdict(self), "differs": self.differs}
        return json.dumps(facts, indent=2)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"a call of sizes {self.sizes}, served by {self.target}: {self.pieces} pieces compared "
            f"in {self.runs} runs"
        )
        if not self.differs:
            yield "nothing differs from the model as written, but for rounding"
        else:
            where = self.piece or "no single piece"
            yield f"first difference: {where}, stage {self.stage}: {_STAGES[self.stage]}"
            yield f"  {self.difference}"
        if self.ops:
            yield f"  runs {', '.join(self.ops[:_LINES])}{' ...' if len(self.ops) > _LINES else ''}"
        yield from (f"  {line}" for line in self.source)
        if self.note:
            yield f"note: {self.note}"

    @property
    def blamed(self) -> str:
        """The piece, stage and first line of source, for one line of a log."""
        if not self.differs:
            return "no piece differs by itself"
        where = f", from {self.source[0]}" if self.source else ""
        return f"{self.piece or 'no single piece'} differs first, stage {self.stage}{where}"


def source_lines(piece: Piece) -> tuple[str, ...]:
    """The lines of the model that a piece was made of, each once, the first ones."""
    places = dict.fromkeys(p for p in map(source_of, piece.nodes) if p)
    return tuple(_with_text(places))[:_LINES]


def _with_text(places: Iterable[str]) -> Iterator[str]:
    for place in places:
        file, _, line = place.rpartition(":")
        text = linecache.getline(file, int(line)).strip()
        yield f"{place}: {text}" if text else place
