"""Where the model makes a leaf of its result, or writes to memory: ``file:line``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from piecewise_core.graph.effects import writes
from piecewise_core.graph.names import source_of
from piecewise_core.graph.split import Program
from piecewise_core.runtime.compared import kept

__all__ = ["made_at"]


def made_at(
    program: Program,
    rebuild: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any],
    given: tuple[Sequence[Any], Sequence[Any]],
    path: str,
) -> str:
    """The line that makes the leaf at ``path``, as ``kept`` names it; "" where none is known.

    ``rebuild``, ``given``: make a result of the program's outputs, and of a call's tensors. A path
    of no leaf stands for memory that is written to: the last line that writes to any.
    """
    marks = [torch.empty(0) for _ in program.values]
    leaf = kept(rebuild(marks, *given)).get(path)
    for mark, value in zip(marks, program.values, strict=True):
        if mark is leaf and isinstance(value, torch.fx.Node):
            return source_of(value)
    nodes = [n for piece in program.pieces for n in piece.nodes]
    return _last([n for n in nodes if writes(n)]) or _last(nodes)


def _last(nodes: Iterable[torch.fx.Node]) -> str:
    lines = [line for line in map(source_of, nodes) if line]
    return lines[-1] if lines else ""
