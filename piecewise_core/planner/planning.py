"""``pw.plan``: from the sizes of calls, and what may be spent, to sizes to capture."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from piecewise_core.errors import PlanError
from piecewise_core.planner.boxes import Boxes, padded_rows
from piecewise_core.planner.exact import LAYERS, Runs
from piecewise_core.planner.histogram import Histogram
from piecewise_core.planner.reading import read_histogram
from piecewise_core.planner.sizeplan import SizePlan, WhatIf
from piecewise_core.ranges import Sizes

__all__ = ["plan"]

_SPAN = 8
"""How much larger the largest size of a range may be than the smallest that is captured in it."""

_OFTEN = 0.1
"""Share of the calls from which on a size is worth code of its own."""


def plan(
    histogram: Histogram | str | os.PathLike[str] | Mapping[Any, int] | Iterable[Any],
    *,
    memory_bytes: int | None = None,
    max_graphs: int | None = None,
    max_padding: float | None = 0.02,
    graph_bytes: int | None = None,
    row_bytes: float | None = None,
    max_rows: int | None = None,
) -> SizePlan:
    """The fewest capture sizes that pad no more than ``max_padding``, within what may be spent.

    ``histogram``: from ``compiled.histogram()``, a file, ``{size: calls}``, or sizes of calls.
    ``max_padding``: rows that padding adds, as a share of the rows of the calls; None: as few as
    ``max_graphs`` and ``memory_bytes`` allow. Where these allow too few sizes for it, as many as
    they allow, chosen to pad least. ``graph_bytes``, ``row_bytes``: what one captured size takes,
    and a row of the largest one, where the histogram does not know. ``max_rows``: calls of more
    are not captured: they run without graphs, unpadded. Exact for one dim; for several see
    ``planner.boxes``. Raises PlanError for what is no histogram, and where not one size fits.
    """
    known = _histogram(histogram)
    _check(known, max_padding, graphs=max_graphs, memory=memory_bytes, rows=max_rows)
    notes, calls, larger = _captured(known, max_rows)
    measured = _Memory(
        known.graph_bytes if graph_bytes is None else graph_bytes,
        known.row_bytes if row_bytes is None else row_bytes,
        tuple(map(max, zip(*calls, strict=True))),
    )
    most = measured.most(memory_bytes, max_graphs)
    limit = 0 if max_padding is None else math.floor(max_padding * known.rows)
    chosen, choices = (_one if len(known.dims) == 1 else _several)(calls, limit, most)
    found = _made(known, chosen, choices, measured, larger=larger)
    if max_padding is not None and found.expected_padding > max_padding:
        notes.append(
            f"{len(chosen)} sizes, as many as allowed, pad more than max_padding={max_padding:g}"
        )
    return replace(found, compile_sizes=_plain(known, _frequent(calls, chosen)), notes=tuple(notes))


def _made(
    known: Histogram,
    chosen: list[Sizes],
    choices: list[tuple[int, int]],
    measured: _Memory,
    *,
    larger: bool,
) -> SizePlan:
    rows = known.rows
    return SizePlan(
        known.dims,
        _plain(known, chosen),
        (),
        _endpoints(known.dims, chosen, larger=larger),
        dict(choices)[len(chosen)] / rows,
        known.total,
        rows,
        measured.of(len(chosen)),
        tuple(WhatIf(k, padded / rows, measured.of(k)) for k, padded in choices),
    )


def _plain(known: Histogram, sizes: Iterable[Sizes]) -> tuple[Any, ...]:
    """Ints with one dim, else tuples."""
    return tuple(each[0] if len(known.dims) == 1 else each for each in sizes)


def _histogram(given: Any) -> Histogram:
    if isinstance(given, Histogram):
        return given
    if isinstance(given, (str, os.PathLike)):
        return read_histogram(given)
    if isinstance(given, Iterable):
        return Histogram.of(given)
    raise PlanError(
        f"plan() was given a {type(given).__name__}; pass compiled.histogram(), the path of a "
        "file, {size: calls}, or a list of sizes"
    )


def _captured(known: Histogram, max_rows: int | None) -> tuple[list[str], dict[Sizes, int], bool]:
    """What there is to note, the calls to capture for, and whether larger ones are left out."""
    some = {sizes: count for sizes, count in known.calls.items() if math.prod(sizes)}
    calls = {s: n for s, n in some.items() if max_rows is None or math.prod(s) <= max_rows}
    if not calls:
        above = f" of up to max_rows={max_rows}" if some else ""
        raise PlanError(f"the histogram has no calls with rows{above}: there is nothing to plan")
    empty, larger = (known.total - sum(some.values())), sum(some.values()) - sum(calls.values())
    notes = [f"{empty} calls with a size of 0 run as written and are left out"] if empty else []
    if larger:
        notes.append(f"{larger} calls of more than {max_rows} rows run without graphs, unpadded")
    return notes, calls, larger > 0


def _check(known: Histogram, max_padding: float | None, **most: int | None) -> None:
    if not known.dims:
        raise PlanError("the model has no dims: its one size needs no plan; capture_sizes=((),)")
    names = {"graphs": "max_graphs", "memory": "memory_bytes", "rows": "max_rows"}
    for name, value in most.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise PlanError(f"{names[name]}={value!r}: give a whole number or None")
        if value is not None and value < 1:
            raise PlanError(f"{names[name]}={value} has no room for one size; give 1 or more")
    if max_padding is None and most["graphs"] is None and most["memory"] is None:
        raise PlanError("plan() needs max_padding, max_graphs or memory_bytes: all are None")
    number = isinstance(max_padding, (int, float)) and not isinstance(max_padding, bool)
    if max_padding is not None and not (number and max_padding >= 0 and max_padding < math.inf):
        raise PlanError(f"max_padding={max_padding!r}: give a share of the rows, as 0.02, or None")


@dataclass(frozen=True)
class _Memory:
    """What sizes take: ``graph`` each, and ``row`` for each row of the ``largest``, in a pool."""

    graph: int | None
    row: float | None
    largest: Sizes

    def of(self, graphs: int) -> int | None:
        """What ``graphs`` of them take."""
        if self.graph is None:
            return None
        return graphs * self.graph + math.ceil((self.row or 0) * math.prod(self.largest))

    def most(self, memory: int | None, graphs: int | None) -> int | None:
        """How many sizes there may be."""
        if memory is None:
            return graphs
        one = self.of(1)
        if one is None:
            raise PlanError(
                f"memory_bytes={memory}: it is not known what a graph takes. Take the histogram of "
                "a model with captured sizes, or pass graph_bytes= and row_bytes="
            )
        if one > memory:
            raise PlanError(
                f"memory_bytes={memory} has no room for one size: {self.largest} alone takes {one}"
                "; allow more, or leave such calls out of the histogram"
            )
        if not self.graph:
            return graphs
        room = 1 + (memory - one) // self.graph
        return room if graphs is None else min(graphs, room)


_Choice = tuple[list[Sizes], list[tuple[int, int]]]


def _one(calls: Mapping[Sizes, int], limit: int, most: int | None) -> _Choice:
    """The best sizes of one dim, and (number, rows padded) of other numbers."""
    runs = Runs([size for (size,) in calls], list(calls.values()))
    chosen: list[Sizes] = [(size,) for size in runs.best(limit, most)]
    choices = {k: runs.padded[k - 1] for k in _powers(len(runs.padded))}
    return chosen, sorted({**choices, len(chosen): padded_rows(calls, chosen)}.items())


def _several(calls: Mapping[Sizes, int], limit: int, most: int | None) -> _Choice:
    """Good sizes of several dims, and the same of other numbers."""
    boxes = Boxes(calls)
    high = min(len(boxes), len(boxes) if most is None else most)
    low = 1
    while low < high:  # fewest that pad no more than the limit; more of them pad no more
        middle = (low + high) // 2
        enough = padded_rows(calls, boxes.of(middle)) <= limit
        low, high = (low, middle) if enough else (middle + 1, high)
    chosen = boxes.of(low)
    numbers = {*_powers(min(len(boxes), LAYERS))}
    choices = {len(found := boxes.of(k)): padded_rows(calls, found) for k in numbers}
    return chosen, sorted({**choices, len(chosen): padded_rows(calls, chosen)}.items())


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length())]


def _frequent(calls: Mapping[Sizes, int], chosen: Iterable[Sizes]) -> list[Sizes]:
    """The captured sizes that are called often just as they are."""
    total = sum(calls.values())
    return [sizes for sizes in chosen if calls.get(sizes, 0) >= _OFTEN * total]


def _endpoints(dims: tuple[str, ...], chosen: list[Sizes], *, larger: bool) -> Any:
    """Ends of ranges, such that the sizes captured in one are not too far apart.

    ``larger``: whether there are calls that are larger than all sizes of the one dim.
    """
    found = {}
    for dim, name in enumerate(dims):
        ends, sizes = [], sorted({each[dim] for each in chosen})
        first = sizes[0]
        for before, size in itertools.pairwise(sizes):
            if size > first * _SPAN:
                ends.append(before)
                first = size
        found[name] = (*ends, sizes[-1]) if larger and len(dims) == 1 else tuple(ends)
    return found if len(dims) > 1 else found[dims[0]]
