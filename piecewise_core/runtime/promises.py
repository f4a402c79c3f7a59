"""What results of a plan's operations and pieces must be: dtypes, shapes and strides at sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from piecewise_core.graph.effects import addressed, written_by_layout
from piecewise_core.graph.memory import memory_of, storages, tensor_inputs, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.split import Piece, Program
from piecewise_core.runtime.laid import Laid, Promise
from piecewise_core.runtime.planvalues import PlanValues

__all__ = ["Promises"]


class Promises:
    """Makes what checks results of one program, and brings them to the layout promised.

    ``dims``: the variables of sizes. ``count``: called for each result that is copied.
    ``addressed``: memory of which the program takes elements by where they lie.
    """

    def __init__(
        self, program: Program, values: PlanValues, dims: Sequence[str], count: Callable[[], None]
    ) -> None:
        self._program = program
        self._values = values
        self._dims = dims
        self._count = count
        self._reported: set[str] = set()
        self._of_pieces: dict[int, tuple[Promise, list[bool], str]] = {}
        # Where the layout decides what is computed, a copy in another one is no way out.
        self._decided = written_by_layout(program.traced.graph.graph)
        self.addressed, self._needed = addressed(program.traced.graph.graph)

    def _promise(self, tensors: Sequence[torch.Tensor]) -> Promise:
        """What ``tensors`` are at sizes."""
        size, name = self._values.size, self._values.name
        each = [f"({name(t.dtype)}, {size(tuple(t.shape))}, {size(t.stride())}), " for t in tensors]
        source = f"lambda {', '.join(self._dims)}: ({''.join(each)})"
        made: Promise = eval(compile(source, "<piecewise promise>", "eval"), self._values.names)
        return made

    def lay_op(self, node: torch.fx.Node, piece: Piece) -> Laid | None:
        """What checks a splitting op's results; None where the program reshapes them in place."""
        if storages(node) & self._program.reshaped:
            return None
        tensors = [v for v in values(node.meta.get("example_value")) if isinstance(v, torch.Tensor)]
        given = frozenset().union(*map(storages, tensor_inputs(node)))
        own = [False] * len(tensors) if node in self._needed else self._own(tensors, given)
        return self._laid(piece, node, tensors, own)

    def lay_varying(self, node: torch.fx.Node, piece: Piece) -> Laid | None:
        """The same for a tensor that leaves a piece in which sizes depend on data."""
        if storages(node) & self._program.reshaped:
            return None
        given = frozenset().union(*map(storages, piece.inputs))
        tensors = [node.meta["example_value"]]
        return self._laid(piece, node, tensors, self._own(tensors, given))

    def _laid(
        self,
        piece: Piece,
        node: torch.fx.Node,
        tensors: Sequence[torch.Tensor],
        own: Sequence[bool],
    ) -> Laid:
        where = f"piece {piece.index}{', ' + source_of(node) if source_of(node) else ''}"
        return Laid(
            f"splitting op {op_name(node)} ({where})",
            "its fake kernel",
            "correct its register_fake, or return .contiguous()",
            self._promise(tensors),
            own,
            self._count,
            exact=self._program.traced.reads_layout,
            reported=self._reported,
        )

    def lay_piece(self, piece: Piece, compiler: str) -> Laid:
        """What checks the results of a compilable piece's code, made by ``compiler``."""
        if piece.index not in self._of_pieces:  # asked again for every size that is captured
            tensors = [n.meta["example_value"] for n in piece.outputs]
            given = frozenset().union(*map(storages, piece.inputs))
            where = f"piece {piece.index}{', ' + piece.source if piece.source else ''}"
            promise, own = self._promise(tensors), self._own(tensors, given)
            self._of_pieces[piece.index] = promise, own, where
        promise, own, where = self._of_pieces[piece.index]
        return Laid(
            f"the code of compiler {compiler!r} for {where}",
            "the traced graph",
            "the compiler must keep what that gives",
            promise,
            own,
            self._count,
            several=True,
            reported=self._reported,
        )

    def _own(self, tensors: Sequence[torch.Tensor], given: frozenset[int]) -> list[bool]:
        """Per tensor, whether a copy does: nobody shares its memory or asks how it lies."""
        memory = [memory_of(t) for t in tensors]
        if self._program.traced.reads_layout:
            return [False] * len(tensors)
        taken = given | self._decided
        return [m not in taken and memory.count(m) == 1 for m in memory]
