"""The best capture sizes of one dim: fewest for a padding, least padding for a number.

A call goes to the next size that is captured, so those of a plan cut the sorted sizes into runs,
and only sizes that are called are worth one. Dynamic programming over the ends of runs: the rows
that ``k`` runs pad, of the first sizes. A run's cost is a line in the size at its end, so one sweep
over the sizes takes, at each, the lowest of lines that come by falling slope (the convex hull
trick). What ``k`` runs pad is convex in ``k``: so many runs are had by a price per run, found by
bisection, and between two numbers that the same price gives by joining their cuts, which the
inequality of Monge allows (Aggarwal, Schieber and Tokuyama 1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["LAYERS", "Runs"]

LAYERS = 64
"""Numbers of runs that are gone through one by one; more are had by a price."""


class Runs:
    """Runs of ``sizes``, ascending and each above 0, that were called ``counts`` times, above 0.

    ``padded[k - 1]``: the rows that the best ``k`` runs pad, for up to ``LAYERS`` of them.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int]) -> None:
        self._sizes = sizes
        self._calls = [0, *accumulate(counts)]
        self._rows = [0, *accumulate(s * c for s, c in zip(sizes, counts, strict=True))]
        self._starts: list[list[int]] = []
        self.padded: list[int] = []
        values: list[int] = [0]
        while len(self.padded) < min(LAYERS, len(sizes)):
            values, starts = self._sweep(values, 1, 0)
            self._starts.append(starts)
            self.padded.append(values[-1])

    def best(self, limit: int, most: int | None = None) -> list[int]:
        """The ends of the fewest runs that pad no more than ``limit`` rows, 0 or more.

        Where these are more than ``most``: of the ``most`` runs that pad least.
        """
        found = next((k for k, padded in enumerate(self.padded, 1) if padded <= limit), None)
        if found is None and (most is None or most > len(self.padded)):
            cuts = self._by_price(limit, most)
        else:
            cuts = self._cuts(min(k for k in (found, most) if k is not None))
        return [self._sizes[end - 1] for end in cuts[1:]]

    def _cuts(self, runs: int) -> list[int]:
        """Where the best ``runs`` runs begin and end, in places."""
        cuts = [len(self._sizes)]
        for starts in reversed(self._starts[:runs]):
            if cuts[-1]:
                cuts.append(starts[cuts[-1]])
        return cuts[::-1]

    def _by_price(self, limit: int, most: int | None) -> list[int]:
        """The cuts of more runs than ``LAYERS``."""

        def enough(cuts: list[int]) -> bool:
            return self._pads(cuts) <= limit or (most is not None and len(cuts) > most)

        low, high = 0, self.padded[0] + 1
        while high - low > 1:
            price = (low + high) // 2
            low, high = (price, high) if enough(self._priced(price, -1)) else (low, price)
        few, many = self._priced(low, 1), self._priced(low, -1)
        runs = len(few) - 1
        if low and self._pads(few) > limit:
            runs += -(-(self._pads(few) - limit) // low)
        runs = min(runs, len(many) - 1, len(many) - 1 if most is None else most)
        more = runs - (len(few) - 1)
        for place in range(len(few) - 1):
            inside = few[place] <= many[place + more]
            if inside and many[place + more + 1] <= few[place + 1]:
                return many[: place + more + 1] + few[place + 1 :]
        return few

    def _priced(self, price: int, tie: int) -> list[int]:
        """The cuts that cost least where a run costs ``price``; of equal ones the fewest (``tie``
        is 1) or the most (-1).
        """
        scale = len(self._sizes) + 1
        _, starts = self._sweep(None, scale, price * scale + tie)
        cuts = [len(self._sizes)]
        while cuts[-1]:
            cuts.append(starts[cuts[-1]])
        return cuts[::-1]

    def _pads(self, cuts: list[int]) -> int:
        """The rows that runs pad."""
        sizes, calls = self._sizes, self._calls
        filled = (sizes[end - 1] * (calls[end] - calls[start]) for start, end in pairwise(cuts))
        return sum(filled) - self._rows[-1]

    def _sweep(
        self, before: list[int] | None, scale: int, price: int
    ) -> tuple[list[int], list[int]]:
        """The least cost of the first sizes with one run more, and where that run begins.

        ``before``: the same without it, as far as there is any; None: with as many as it pays.
        Rows cost ``scale`` each, and a run ``price``.
        """
        calls, rows, sizes = self._calls, self._rows, self._sizes
        values, starts = [0], [0]
        known = values if before is None else before
        count = len(sizes) if before is None else min(len(before), len(sizes))
        slopes, heights, lines = ([0] * (len(sizes) + 1) for _ in range(3))
        head, last = 0, -1
        for start, size in enumerate(sizes):
            if start < count:
                slope = -scale * calls[start]
                height = known[start] + scale * rows[start]
                while last > head:
                    ahead = slopes[last - 1]
                    fall = (height - heights[last - 1]) * (ahead - slopes[last])
                    if fall > (heights[last] - heights[last - 1]) * (ahead - slope):
                        break
                    last -= 1
                last += 1
                slopes[last], heights[last], lines[last] = slope, height, start
            lowest = slopes[head] * size + heights[head]
            while head < last:
                other = slopes[head + 1] * size + heights[head + 1]
                if other > lowest:
                    break
                lowest = other
                head += 1
            values.append(lowest + scale * (size * calls[start + 1] - rows[start + 1]) + price)
            starts.append(lines[head])
        return values, starts
