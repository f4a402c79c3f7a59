"""A compiled piece whose generated function can be seen, and put in again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from piecewise_core.compile.native_code import Call

__all__ = ["NativePiece"]


class NativePiece:
    """Runs one compiled piece.

    ``call``: Inductor's generated function. ``around``: puts torch's wrappers around one; None
    where they would do nothing.
    """

    __slots__ = ("_around", "_run", "call")

    def __init__(self, call: Call, around: Callable[[Call], Call] | None) -> None:
        self.call = call
        self._around = around
        self._run = call if around is None else around(call)

    def __call__(self, *args: Any) -> Sequence[Any]:
        """Run the piece."""
        return self._run(list(args))

    def with_call(self, call: Call) -> NativePiece:
        """The same piece around another generated function."""
        return NativePiece(call, self._around)
