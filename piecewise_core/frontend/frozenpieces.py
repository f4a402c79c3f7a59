"""Which pieces of a program run code with weights built in, where their compiler offers that."""

from __future__ import annotations

from collections.abc import Callable

from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.graph.split import Piece, Program
from piecewise_core.protocols import CompiledGraph
from piecewise_core.ranges import Box
from piecewise_core.runtime.frozen import Copies, Frozen, Run, can_be_frozen
from piecewise_core.runtime.laid import Laid

__all__ = ["FrozenPieces"]


class FrozenPieces:
    """Makes and keeps a ``Frozen`` per compilable piece and box.

    ``lay``: makes what checks the results of a piece's code.
    """

    def __init__(
        self, program: Program, scheduler: Scheduler, lay: Callable[[int, str], Laid]
    ) -> None:
        self._program = program
        self._scheduler = scheduler
        self._lay = lay
        self._copies: dict[tuple[int, tuple[int, ...]], Copies] = {}
        self._made: dict[tuple[int, Box], Frozen] = {}

    def has(self, box: Box) -> bool:
        """Whether a piece has such code for ``box``."""
        return any(made == box for _, made in self._made)

    def of(self, index: int, box: Box, run: Run) -> Run:
        """What runs piece ``index`` for ``box``: ``run`` where nothing is built in."""
        return self._made.get((index, box), run)

    def begun(self, index: int, box: Box, run: Run) -> Run:
        """The same for a target's first call, behind which weights are built in."""
        piece, dims = self._program.compilable[index], len(self._program.traced.box.ranges)
        artifact = self._scheduler.ready(piece, box)
        # A class of the platform's that dispatches by itself is called at every call.
        if artifact is None or run is not artifact.run or artifact.serves != artifact.box:
            return run
        code = artifact.compiled
        places = () if code is None else self._places(piece, code, dims)
        if code is None or code.freeze is None or not places:
            return run
        copies = self._copies.setdefault((index, places), Copies(places))
        self._made[index, box] = made = Frozen(
            code,
            artifact.compiler,
            copies,
            self._lay(index, artifact.compiler),
            dims,
            lambda: self._scheduler.sealed is not None,
        )
        return made.begin

    def _places(self, piece: Piece, code: CompiledGraph, dims: int) -> tuple[int, ...]:
        """Those of the arguments that ``code`` wants built in which are weights.

        A weight is what the model holds and the program writes to nowhere.
        """
        traced = self._program.traced
        nodes = traced.graph.graph.find_nodes(op="placeholder")
        held = {
            node
            for node, source in zip(nodes, traced.inputs, strict=True)
            if source.bound is not None and source.bound not in self._program.mutated_bound
        }
        return tuple(
            place
            for place, node in enumerate(piece.inputs, dims)
            if place in code.freezes and node in held and can_be_frozen(node.meta["example_value"])
        )
