"""Which runs of a program's groups fall into two parts that are worth a stream each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["Group", "Window", "windows"]

_FORK = 1 << 19
"""What a fork and its join take, in weights read: less than a product does."""

_SHARE = 16
"""Of a fork, the smaller lane is a part like this at least."""

_TRIED = 500_000
"""Pairs of a start and an end that are tried in one program: a few seconds. All are, up to 700
groups; of more, forks are shorter, but for ``_SHORTEST``."""

_SHORTEST = 256
"""Groups that a fork may have in any program."""


@dataclass(frozen=True)
class Group:
    """``before``: places of the groups that it needs. ``weight``: of its product, 0 without one.

    ``given``: what stands for the input of its product.
    """

    before: frozenset[int]
    weight: int = 0
    given: object = None


@dataclass(frozen=True)
class Window:
    """Groups from ``first`` to ``last``. ``lanes``: those that are in one; others join none."""

    first: int
    last: int
    lanes: dict[int, int] = field(default_factory=dict)


def windows(groups: Sequence[Group]) -> list[Window]:
    """The windows that save most together, in order, none over another."""
    best = [0] * (len(groups) + 1)
    begun: list[int | None] = [None] * (len(groups) + 1)
    for first in range(len(groups) + 1):
        if first and best[first] < best[first - 1]:
            best[first], begun[first] = best[first - 1], None
        for last, saved in _saved(groups, first):
            # As long as it may be: what is behind a product alone belongs to its lane.
            if saved > 0 and best[first] + saved > best[last + 1]:
                best[last + 1], begun[last + 1] = best[first] + saved, first
    end = len(groups)
    found: list[Window] = []
    while end > 0:
        start = begun[end]
        if start is not None:
            found.append(Window(start, end - 1, _lanes(groups, start, end - 1)))
        end = end - 1 if start is None else start
    return found[::-1]


def _saved(groups: Sequence[Group], first: int) -> Iterator[tuple[int, int]]:
    """For every end of a window that begins at ``first``, what two streams save there."""
    parts = _Parts(groups, first)
    longest = max(_SHORTEST, _TRIED // len(groups)) if groups else 0
    for last in range(first, min(len(groups), first + longest)):
        parts.add(last)
        yield last, parts.saved


def _lanes(groups: Sequence[Group], first: int, last: int) -> dict[int, int]:
    """Each group's lane: the heaviest part first, to whichever has less."""
    parts = _Parts(groups, first)
    for place in range(first, last + 1):
        parts.add(place)
    weights = [0, 0]
    lane_of: dict[object, int] = {}
    for name, weight in sorted(parts.weights.items(), key=lambda item: -item[1]):
        lane = int(weights[1] < weights[0])
        weights[lane] += weight
        lane_of[name] = lane
    found = {g: lane_of.get(parts.name(g)) for g in range(first, last + 1)}
    return {group: lane for group, lane in found.items() if lane is not None}


class _Parts:
    """The parts of a window that do not depend on each other, as it grows.

    ``weights``: of each, by name. Those of one product each, of one input, are one part.
    """

    def __init__(self, groups: Sequence[Group], first: int) -> None:
        self._groups, self._first = groups, first
        self._above: dict[int, int] = {}
        self._alone: dict[int, tuple[object, int]] = {}
        self.weights: dict[object, int] = {}

    def add(self, place: int) -> None:
        """Have one group more."""
        group = self._groups[place]
        self._above[place] = place
        joined = {self._root(b) for b in group.before if b >= self._first}
        for root in joined:
            self._above[root] = place
        follows = not group.weight and len(joined) == 1 and joined <= self._alone.keys()
        if not joined and group.weight:
            self._stands_alone(place, ("given", group.given), group.weight)
        elif follows:
            self._alone[place] = self._alone.pop(joined.pop())
        else:
            weight = group.weight + sum(map(self._taken, joined))
            if weight:
                self.weights[place] = weight

    def _stands_alone(self, place: int, name: object, weight: int) -> None:
        self._alone[place] = name, weight
        self.weights[name] = self.weights.get(name, 0) + weight

    def _taken(self, root: int) -> int:
        """The weight of a part that is one no more."""
        if root not in self._alone:
            return self.weights.pop(root, 0)
        name, weight = self._alone.pop(root)
        self.weights[name] -= weight
        if not self.weights[name]:
            del self.weights[name]
        return weight

    def name(self, place: int) -> object:
        """The part that a group is of."""
        root = self._root(place)
        return self._alone[root][0] if root in self._alone else root

    @property
    def saved(self) -> int:
        """What two streams save, weighed; 0 or less where they save nothing."""
        if len(self.weights) < 2:
            return 0
        total = sum(self.weights.values())
        less = min(total - max(self.weights.values()), total // 2)
        return less - _FORK if less * _SHARE >= total else 0

    def _root(self, place: int) -> int:
        while self._above[place] != place:
            self._above[place] = place = self._above[self._above[place]]
        return place
