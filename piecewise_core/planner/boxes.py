"""Good capture sizes of several dims, for which there is no exact way that is fast.

1. Where there are more than ``MOST`` distinct sizes, those of each dim are rounded up, to the best
   sizes of that dim alone, so that about ``MOST`` points are left.
2. Each point is a box. The two boxes whose union pads least beyond what they do are made one, over
   and over, down to a single box; so there is a choice for every number of boxes.
3. For a number of boxes: each point goes to the smallest box that holds it, and boxes shrink to
   what they hold; then the box that is missed least makes way for the split of another that saves
   most, while that pads less.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from piecewise_core.planner.exact import Runs
from piecewise_core.ranges import Sizes

__all__ = ["Boxes", "padded_rows"]

MOST = 300
"""Points that boxes begin with."""

_TURNS = 40
"""Times that a box makes way for another."""


def padded_rows(calls: Mapping[Sizes, int], boxes: Iterable[Sizes]) -> int:
    """The rows that padding adds to ``calls``, each to the smallest of ``boxes`` that holds it.

    Calls that none holds are not padded.
    """
    ordered = sorted((math.prod(box), box) for box in boxes)
    added = 0
    for sizes, count in calls.items():
        for volume, box in ordered:
            if all(map(int.__le__, sizes, box)):
                added += (volume - math.prod(sizes)) * count
                break
    return added


class Boxes:
    """Choices of capture sizes for ``calls``, none with a size of 0."""

    def __init__(self, calls: Mapping[Sizes, int]) -> None:
        self._calls = calls
        self._points = calls if len(calls) <= MOST else _fewer(calls)
        self._merged = _merged(self._points)
        self._known: dict[int, list[Sizes]] = {}

    def __len__(self) -> int:
        return len(self._points)

    def of(self, number: int) -> list[Sizes]:
        """At most ``number`` boxes."""
        found = self._known.get(number)
        if found is None:
            chosen = self._merged[min(number, len(self._merged)) - 1]
            found = self._known[number] = self._fitted(self._improved(chosen))
        return found

    def _fitted(self, boxes: Sequence[Sizes]) -> list[Sizes]:
        """Boxes that hold every call, shrunk to the calls that they hold."""
        held = _held(self._calls, boxes)
        return sorted(_union(inside) for inside in held.values() if inside)

    def _improved(self, boxes: list[Sizes]) -> list[Sizes]:
        points = self._points
        boxes = [_union(inside) for inside in _held(points, boxes).values() if inside]
        least = padded_rows(points, boxes)
        for _ in range(_TURNS if len(boxes) > 1 else 0):
            tried = _swapped(points, boxes)
            padded = padded_rows(points, tried)
            if padded >= least:
                break
            boxes, least = tried, padded
        return boxes


def _held(points: Mapping[Sizes, int], boxes: Sequence[Sizes]) -> dict[Sizes, list[Sizes]]:
    """The points in each box, each in the smallest that holds it."""
    ordered = sorted(set(boxes), key=math.prod)
    held: dict[Sizes, list[Sizes]] = {box: [] for box in ordered}
    for point in points:
        held[next(box for box in ordered if all(map(int.__le__, point, box)))].append(point)
    return held


def _union(points: Iterable[Sizes]) -> Sizes:
    return tuple(map(max, zip(*points, strict=True)))


def _swapped(points: Mapping[Sizes, int], boxes: list[Sizes]) -> list[Sizes]:
    """One box less and one more: without the one that is missed least, a split of another."""
    top = _union(boxes)
    without = ([*{top, *boxes} - {box}, top] for box in boxes if box != top)
    rest = min(without, key=lambda some: padded_rows(points, some), default=boxes)
    held = _held(points, rest)
    gain = 0
    split: Sizes = ()
    for box, inside in held.items():
        saved, small = _best_split(points, box, inside)
        if saved > gain:
            gain, split = saved, small
    return [*held, split] if split and len(held) < len(boxes) else list(held)


def _best_split(
    points: Mapping[Sizes, int], box: Sizes, inside: Sequence[Sizes]
) -> tuple[int, Sizes]:
    """The box in ``box`` that saves most rows, of those below a size of one dim, and how many."""
    best, found = 0, box
    for dim in range(len(box)):
        calls, at, ordered = 0, [0] * len(box), sorted(inside, key=lambda p: p[dim])
        for place, point in enumerate(ordered):
            calls += points[point]
            at = list(map(max, at, point))
            if place + 1 < len(ordered) and ordered[place + 1][dim] == point[dim]:
                continue
            saved = (math.prod(box) - math.prod(at)) * calls
            if saved > best:
                best, found = saved, tuple(at)
    return best, found


def _merged(points: Mapping[Sizes, int]) -> list[list[Sizes]]:
    """Boxes around all points: one, two, and so on, by merging from the most."""
    boxes, numbers = dict(enumerate(points)), itertools.count(len(points))
    calls = dict(enumerate(points.values()))

    def cost(a: int, b: int) -> tuple[int, int, int]:
        both = math.prod(map(max, boxes[a], boxes[b]))
        more = (both - math.prod(boxes[a])) * calls[a] + (both - math.prod(boxes[b])) * calls[b]
        return more, a, b

    costs = [cost(a, b) for b in boxes for a in range(b)]
    heapq.heapify(costs)
    choices = [list(boxes.values())]
    while len(boxes) > 1:
        _, a, b = heapq.heappop(costs)
        if a not in boxes or b not in boxes:
            continue
        new = next(numbers)
        boxes[new] = tuple(map(max, boxes.pop(a), boxes.pop(b)))
        calls[new] = calls.pop(a) + calls.pop(b)
        for other in [each for each in boxes if each != new]:
            heapq.heappush(costs, cost(other, new))
        choices.append(list(boxes.values()))
    return choices[::-1]


def _fewer(calls: Mapping[Sizes, int]) -> dict[Sizes, int]:
    """``calls`` with the sizes of each dim rounded up to a few."""
    dims, room = len(next(iter(calls))), MOST
    counts: list[dict[int, int]] = [{} for _ in range(dims)]
    for sizes, count in calls.items():
        for size, of in zip(sizes, counts, strict=True):
            of[size] = of.get(size, 0) + count
    steps: list[dict[int, int]] = [{} for _ in range(dims)]
    for left, dim in enumerate(sorted(range(dims), key=lambda d: len(counts[d]))):
        alone = sorted(counts[dim])
        few = max(min(len(alone), int(room ** (1 / (dims - left)))), 1)
        room //= few
        ends = iter(Runs(alone, [counts[dim][size] for size in alone]).best(0, few))
        end = 0
        for size in alone:
            end = end if size <= end else next(ends)
            steps[dim][size] = end
    points: dict[Sizes, int] = {}
    for sizes, count in calls.items():
        at = tuple(up[size] for up, size in zip(steps, sizes, strict=True))
        points[at] = points.get(at, 0) + count
    return points
