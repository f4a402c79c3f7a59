"""One distinct piece that is to be had for one box: what to look for, and what to compile."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from piecewise_core.compile.artifact import Artifact
from piecewise_core.graph.split import Piece
from piecewise_core.protocols import CompiledGraph
from piecewise_core.ranges import Box
from piecewise_core.store.entry import Ticket

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """``piece`` for ``box``, a box over its own dims.

    ``symbols``: of the trace, with their dims. ``key``: the piece's canonical one. ``whole``: what
    else its code depends on. ``label``: names the piece in errors and books. ``ticket``: what to
    look for in the compile store first, and keep the code under; None for nothing, and ``unkept``
    says why where somebody may wonder.
    """

    piece: Piece
    symbols: dict[sympy.Symbol, int]
    box: Box
    key: str
    whole: str
    label: str
    ticket: Ticket | None = None
    unkept: str = ""

    @property
    def name(self) -> str:
        """What the compiler, and caches of its own, know the code by."""
        return f"{self.key}-{self.box}-{self.whole}"

    def made(
        self, compiled: CompiledGraph, by: str, seconds: float, serves: Box | None, note: str
    ) -> Artifact:
        """What the compiler called ``by`` made of it. It holds for ``serves`` only."""
        return Artifact(
            self.key,
            self.box,
            compiled.run,
            by,
            seconds,
            self.label,
            serves,
            note,
            ticket=self.ticket,
            unkept=self.unkept,
            compiled=compiled,
        )
