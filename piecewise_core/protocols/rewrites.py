"""A change to graphs that keeps their numbers, by a name that a user can switch off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from typing_extensions import runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["Rewrite"]


@runtime_checkable
class Rewrite(Protocol):
    """One change to graphs, which ``piecewise_rewrites`` gives.

    ``name``: as in ``Config(rewrites_off=...)``; best a word or two that say what it does.
    ``level``: "program" changes the traced graph before it is cut, "piece" every compilable piece
    before it is compiled. ``key``: a short string that changes whenever what it does changes;
    what is kept under another one is not found.
    ``lowered``: optional, a bool. True for a piece's rewrite that wants ATen operators with
    ``meta["val"]``, as Inductor does; it is left out where pieces run as written. Without: it is
    given torch functions and methods with ``meta["example_value"]``, as traced.
    """

    name: str
    level: Literal["program", "piece"]
    key: str

    def apply(
        self, graph: torch.fx.GraphModule, is_splitting: Callable[[torch.fx.Node], bool]
    ) -> None:
        """Change ``graph`` in place, or leave it as it is where nothing fits.

        ``is_splitting``: whether the program will be cut at a node; never true in a piece. Every
        new node that calls something needs the ``meta`` entry named above: the fake tensors that
        it gives. What a program's rewrite leaves unused is dropped. Inputs, outputs, order and kind
        of writes to memory stay as they are. Raise anything on failure: core adds who brought the
        rewrite, and its name.
        """
        ...
