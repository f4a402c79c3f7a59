"""What a call's sizes map to, and which of these there are for given bounds, ends and sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Box, Range, Sizes, cut

__all__ = ["Target", "capture_targets", "check_factor", "plan_targets"]

TargetKind = Literal["replayed", "compiled_size", "compiled_range", "general", "eager"]


@dataclass(frozen=True)
class Target:
    """What a call's sizes map to: how the call is counted, and the box that its plan serves.

    ``capture``: the sizes that are replayed, for targets of kind "replayed".
    """

    kind: TargetKind
    box: Box
    capture: Sizes | None = None

    def __str__(self) -> str:
        padded = self.capture is not None and not self.box.is_single_size()
        return f"{self.kind} {self.box}{f' padded to {self.capture}' if padded else ''}"


def plan_targets(
    bounds: Box, endpoints: Sequence[Iterable[int]], sizes: Iterable[Sizes]
) -> tuple[Target, ...]:
    """Every target inside ``bounds``: the exact sizes first, then the grid of ranges.

    ``endpoints`` holds the inclusive range ends of each dim. A size outside ``bounds`` is left
    out (it belongs to another region); a range of one size that is also an exact size is that
    exact size.
    """
    exact = sorted({s for s in sizes if s in bounds})
    targets = [Target("compiled_size", Box.single(s)) for s in exact]
    grid = [cut(r, e) for r, e in zip(bounds.ranges, endpoints, strict=True)]
    singles = {t.box for t in targets}
    targets += [
        Target("compiled_range", box)
        for box in (Box(cell) for cell in itertools.product(*grid))
        if box not in singles
    ]
    return tuple(targets)


def capture_targets(
    bounds: Box,
    sizes: Iterable[Sizes],
    *,
    padded: Collection[int] = (),
    uneven: Range | None = None,
    factor: float | None = None,
) -> tuple[Target, ...]:
    """One target per capture size in ``bounds``.

    ``padded``: places of dims; each capture size also serves what is smaller in these, by no more
    than ``factor``, and equal in all others. The smallest capture size that holds a call's sizes
    wins, since it comes first.
    ``uneven``: sizes of a lone dim that are legal only where they are padded: to the next of
    ``sizes``, in these bounds or not.
    """
    every = sorted(set(sizes))
    inside = sorted((s for s in every if s in bounds), key=lambda s: (math.prod(s), s))
    exact = [Target("replayed", Box.single(s), s) for s in inside]
    if not padded:
        return tuple(exact)
    below = [Target("replayed", _below(bounds, s, padded, factor), s) for s in inside]
    for (size,) in inside if uneven is not None else ():
        before = max((s for (s,) in every if s < size), default=-1)
        between = uneven.clip(before + 1, size) if uneven is not None else None
        if between is not None:
            below.append(Target("replayed", Box((between,)), (size,)))
    return (*exact, *below)


def check_factor(value: object) -> float | None:
    """Return ``Config.max_padding_factor``: at least 1, or None for no limit."""
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 1 <= value < math.inf:  # type: ignore[operator]
        raise ConfigError(
            f"Config.max_padding_factor: {value!r} is no factor; give how many times its own size "
            "a call may be padded to, such as 2.0, or None for no limit"
        )
    return float(value)  # type: ignore[arg-type]


def _below(bounds: Box, sizes: Sizes, padded: Collection[int], factor: float | None) -> Box:
    ranges = []
    for place, (span, size) in enumerate(zip(bounds.ranges, sizes, strict=True)):
        least = size if place not in padded else 0 if factor is None else math.ceil(size / factor)
        ranges.append(span.clip(max(span.start, least), size))
    return Box(tuple(r for r in ranges if r is not None))  # none is: they hold ``sizes``
