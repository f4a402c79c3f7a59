"""The default backend of one compilable piece: which compiled graph serves which size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from piecewise_core.errors import OutOfRange
from piecewise_core.graph.closing import closing
from piecewise_core.ranges import Box, Range, Sizes
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target

if TYPE_CHECKING:
    import torch

    from piecewise_core.config import Config

__all__ = ["PieceOwner", "PiecewiseBackend", "RangeEntry", "range_key"]

Runnable = Callable[..., Any]


class PieceOwner(Protocol):
    """What a piece's backend may ask of the model that owns it."""

    targets: tuple[Target, ...]
    table: TargetTable

    def compile_piece(self, index: int, box: Box) -> Runnable:
        """The compiled graph of piece ``index`` for the sizes in ``box``; shared where equal."""
        ...

    def end_compilation(self) -> None:
        """Called once, when the last piece has nothing left to compile."""
        ...


@dataclass
class RangeEntry:
    """One range, or box of several dims, and the compiled graph that serves it."""

    compile_range: Range | Box
    compiled: bool = False
    runnable: Runnable | None = None


def range_key(box: Box) -> Range | Box:
    """A one-dimensional box is just its Range to the user."""
    return box.ranges[0] if len(box.ranges) == 1 else box


class PiecewiseBackend:
    """Runs one piece: general graph first, then what was compiled for the size.

    Attributes, as in vLLM's class of the same name: ``graph``, ``compile_ranges``,
    ``compile_sizes``, ``range_entries``, ``to_be_compiled_ranges``, ``sym_shape_indices``,
    ``is_first_graph``, ``is_last_graph``, ``is_full_graph``. Whole forwards take ``runnable``
    for a target once and do not come back here; ``__call__`` is for a piece called alone.
    """

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        config: Config,
        graph_pool: Any,
        piecewise_compile_index: int,
        total_piecewise_compiles: int,
        sym_shape_indices: list[int],
        compiled_graph_for_general_shape: Callable[[], Runnable],
        backend: PieceOwner,
        **kwargs: Any,
    ) -> None:
        self.graph = graph
        self.config = config
        self.graph_pool = graph_pool
        self.piecewise_compile_index = piecewise_compile_index
        self.total_piecewise_compiles = total_piecewise_compiles
        self.sym_shape_indices = sym_shape_indices
        self.compiled_graph_for_general_shape = compiled_graph_for_general_shape
        self.backend = backend
        self.is_first_graph = piecewise_compile_index == 0
        self.is_last_graph = piecewise_compile_index == total_piecewise_compiles - 1
        self.is_full_graph = self.is_first_graph and self.is_last_graph
        boxes = [(t.kind, t.box) for t in backend.targets]
        self.compile_ranges = [range_key(b) for k, b in boxes if k == "compiled_range"]
        self.compile_sizes = [_sizes(b) for k, b in boxes if k == "compiled_size"]
        self.range_entries = {range_key(b): RangeEntry(range_key(b)) for _, b in boxes}
        self.to_be_compiled_ranges = set(self.range_entries)
        self._first = True

    def runnable(self, box: Box) -> Runnable:
        """The compiled graph that serves ``box``, compiled now if it is not yet."""
        entry = self.range_entries[range_key(box)]
        if entry.runnable is None:
            entry.runnable = self.backend.compile_piece(self.piecewise_compile_index, box)
            entry.compiled = True
            self.to_be_compiled_ranges.discard(entry.compile_range)
            self.check_for_ending_compilation()
        return entry.runnable

    def check_for_ending_compilation(self) -> None:
        """Tell the owner when the last piece is done: it saves the store and stops the clock."""
        if self.is_last_graph and not self.to_be_compiled_ranges:
            self.backend.end_compilation()

    def __call__(self, *args: Any) -> Any:
        """Run the piece alone.

        The first call runs the general graph, later ones what is compiled for their size. Sizes
        that no range covers go by ``Config.out_of_range``; raises OutOfRange.
        """
        sizes = tuple(args[i] for i in self.sym_shape_indices)
        found = self.backend.table.find(*sizes)
        if found == TargetTable.miss:
            return self._uncovered(sizes)(*args)
        if self._first:
            self._first = False
            return self.compiled_graph_for_general_shape()(*args)
        return self.runnable(self.backend.targets[found].box)(*args)

    def _uncovered(self, sizes: Sizes) -> Runnable:
        """What runs sizes outside the bounds; the general graph has no upper one."""
        bounds, rule = self.backend.table.bounds, self.config.out_of_range
        if rule == "eager":
            return closing(self.graph)
        inside = all(size >= r.start for size, r in zip(sizes, bounds.ranges, strict=True))
        if rule == "general" and inside:
            return self.compiled_graph_for_general_shape()
        raise OutOfRange(
            f"piece {self.piecewise_compile_index}: sizes {sizes} lie outside {bounds}; widen "
            'Dim(min, max), or set out_of_range="general" (above the bounds) or "eager"'
        )


def _sizes(box: Box) -> int | tuple[int, ...]:
    sizes = tuple(r.start for r in box.ranges)
    return sizes[0] if len(sizes) == 1 else sizes
