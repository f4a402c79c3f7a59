"""Named bytes that machines share: all that a backend of the second level has to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Object", "Objects", "ReadOnly"]


class ReadOnly(Exception):
    """The backend takes nothing: a web server, say."""


@dataclass(frozen=True)
class Object:
    """``name``, ``size`` in bytes, ``made``: Unix time by the backend's clock, 0.0 if unknown."""

    name: str
    size: int
    made: float


class Objects(Protocol):
    """Names are paths of letters, digits, dots, dashes and slashes.

    Methods may be called from several threads. They raise whatever their library raises where the
    backend cannot be reached, and ReadOnly where it takes nothing.
    """

    def where(self) -> str:
        """For messages; shows no secret."""
        ...

    def read(self, name: str, limit: int) -> bytes | None:
        """The first ``limit + 1`` bytes, or all; None where there is none."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Put ``data``, whole or not at all; False where there is something already."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put ``data``, whole or not at all, in place of what is there."""
        ...

    def remove(self, name: str) -> None:
        """Take it away, if it is there."""
        ...

    def listed(self, folder: str) -> Iterator[Object]:
        """Every object below ``folder``. Costs the more, the more there are."""
        ...
