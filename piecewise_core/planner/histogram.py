"""How often which sizes were called."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piecewise_core.errors import PlanError
from piecewise_core.ranges import Sizes

__all__ = ["Histogram", "count_of", "sizes_of"]


@dataclass(frozen=True)
class Histogram:
    """Calls by their sizes.

    ``dims``: what the sizes are of. ``calls``: sizes -> how many calls, in ascending order.
    ``graph_bytes``: device memory that one captured size takes besides the shared pool, measured;
    ``row_bytes``: that the pool takes per row of the largest one. Both are None where nothing is
    captured. ``str()`` is a table.
    """

    dims: tuple[str, ...]
    calls: Mapping[Sizes, int] = field(default_factory=dict)
    graph_bytes: int | None = None
    row_bytes: float | None = None

    def __post_init__(self) -> None:
        found: dict[Sizes, int] = {}
        for sizes, count in self.calls.items():
            key = sizes_of(sizes, len(self.dims))
            if count_of(count):
                found[key] = found.get(key, 0) + count_of(count)
        object.__setattr__(self, "calls", dict(sorted(found.items())))

    @classmethod
    def of(cls, calls: Mapping[Any, int] | Iterable[Any], dims: Iterable[str] = ()) -> Histogram:
        """A histogram of ``{size: calls}``, or of sizes of which each is one call.

        A size is an int, or a tuple of them with several dims. Raises PlanError.
        """
        if not isinstance(calls, Mapping):
            single: dict[Any, int] = {}
            for each in calls:
                key = tuple(each) if isinstance(each, list) else each
                single[key] = single.get(key, 0) + 1
            calls = single
        keys = [key if isinstance(key, tuple) else (key,) for key in calls]
        names = tuple(dims) or _names(len(keys[0]) if keys else 1)
        return cls(names, dict(zip(keys, calls.values(), strict=True)))

    @property
    def total(self) -> int:
        """All calls."""
        return sum(self.calls.values())

    @property
    def rows(self) -> int:
        """The rows of all calls; those of one are the product of its sizes."""
        return sum(count * math.prod(sizes) for sizes, count in self.calls.items())

    def __add__(self, other: Histogram) -> Histogram:
        calls = dict(self.calls)
        for sizes, count in other.calls.items():
            calls[sizes] = calls.get(sizes, 0) + count
        known = [h for h in (self, other) if h.graph_bytes is not None] or [self]
        return Histogram(self.dims, calls, known[-1].graph_bytes, known[-1].row_bytes)

    def to_json(self) -> str:
        """What ``pw.plan`` and ``piecewise plan`` read back."""
        return json.dumps(
            {
                "piecewise_histogram": 1,
                "dims": list(self.dims),
                "calls": [[list(sizes), count] for sizes, count in self.calls.items()],
                "graph_bytes": self.graph_bytes,
                "row_bytes": self.row_bytes,
            }
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_json()`` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    def __str__(self) -> str:
        names = ", ".join(self.dims) or "no dims"
        lines = [f"{self.total} calls of {len(self.calls)} sizes ({names})"]
        most = sorted(self.calls.items(), key=lambda item: (-item[1], item[0]))[:10]
        lines += [
            f"  {'x'.join(map(str, sizes)) or '-'}: {count} ({count / self.total:.1%})"
            for sizes, count in most
        ]
        left = len(self.calls) - len(most)
        return "\n".join([*lines, f"  and {left} more sizes"] if left else lines)


def sizes_of(given: object, dims: int) -> Sizes:
    """``given`` as ``dims`` sizes. Raises PlanError."""
    parts = given if isinstance(given, (tuple, list)) else (given,)
    if len(parts) != dims:
        raise PlanError(f"size {_short(given)} has {len(parts)} dims, and others have {dims}")
    return tuple(_whole(part, "a size") for part in parts)


def count_of(given: object) -> int:
    """``given`` as a number of calls. Raises PlanError."""
    return _whole(given, "a number of calls")


def _whole(given: object, what: str) -> int:
    try:
        if isinstance(given, bool):
            raise TypeError
        number = operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        raise PlanError(f"{_short(given)} is not {what}: give a whole number, 0 or more") from None
    if number < 0:
        raise PlanError(f"{number} is not {what}: give a whole number, 0 or more")
    return number


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _names(count: int) -> tuple[str, ...]:
    return ("size",) if count == 1 else tuple(f"size {place}" for place in range(count))
