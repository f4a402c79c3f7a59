"""Values of a captured plan that are other objects at every call: their sizes depend on data."""

from __future__ import annotations

from typing import Any

__all__ = ["Loose"]


class Loose:
    """Stands between steps, and among outputs, for the value of the last call.

    It takes a value as a buffer takes an operator's result. ``given``: what the value was made of,
    of which it may be a view: no later piece may have that memory, until ``release``.
    """

    def __init__(self, value: Any = None, given: Any = None) -> None:
        self.value = value
        self.given = given

    def release(self) -> None:
        """Let go of what the capture left."""
        self.value = self.given = None

    def copy_(self, other: Loose) -> Loose:
        """Take the value of ``other``."""
        self.value = other.value
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loose)  # one is as good as another to graphs, which read none

    __hash__ = object.__hash__
