"""One distinct piece compiled for one box: what runs, and how it came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from piecewise_core.errors import StoreError
from piecewise_core.graph.closing import closing
from piecewise_core.graph.split import Piece
from piecewise_core.protocols import CompiledGraph, CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.store.entry import Ticket

__all__ = ["NO_CODE", "Artifact", "Runnable", "guarded", "load_code", "written"]

Runnable = Callable[..., Sequence[Any]]


def _no_code(*args: object) -> list[object]:
    raise StoreError("code that serves no size was run")


NO_CODE = CompiledGraph(_no_code, lambda: b"")
"""What a piece has that runs as written at every size."""


@dataclass
class Artifact:
    """One distinct piece compiled for one box.

    ``box``: over the piece's own dims. ``seconds``: to compile it, or to load it when ``stored``,
    that is, taken from the compile store. ``owner``: the piece it was made for, as a label.
    ``serves``: the part of the box that the compiled code holds for; the piece runs as written
    elsewhere. ``note``: why it runs as written, if it does. ``ticket``: what the store was asked
    for, None when it was not. ``unkept``: why it is not kept, where somebody may wonder.
    ``compiled``: as the compiler gave it, None where there was none. ``shared_by``: labels of
    equal pieces.
    """

    key: str
    box: Box
    run: Runnable
    compiler: str
    seconds: float
    owner: str
    serves: Box | None
    note: str = ""
    stored: bool = False
    ticket: Ticket | None = None
    unkept: str = ""
    compiled: CompiledGraph | None = None
    shared_by: list[str] = field(default_factory=list)


def written(piece: Piece) -> Runnable:
    """The code of a compilable piece as the model has it."""
    if piece.graph is None:
        raise ValueError("a splitting piece is not compiled")
    return closing(piece.graph)


def guarded(run: Runnable, piece: Piece, serves: Box | None) -> Runnable:
    """``run`` where it holds, the piece as written elsewhere; sizes are the first arguments."""
    as_written = written(piece)
    if serves is None:
        return as_written
    ranges = [(d, r.start, r.end) for d, r in zip(piece.dims, serves.ranges, strict=True)]

    def choose(*args: Any) -> Sequence[Any]:
        inside = all(lo <= args[d] <= hi for d, lo, hi in ranges)
        return run(*args) if inside else as_written(*args)

    return choose


def load_code(adaptor: CompilerAdaptor, handle: bytes, serves: Box | None) -> CompiledGraph:
    """What ``adaptor`` makes of ``handle``; nothing is asked of it where no size is served."""
    if serves is None:
        return NO_CODE
    loaded: CompiledGraph = adaptor.load(handle)  # type: ignore[attr-defined]
    return loaded
