"""Sizes, ranges of sizes, boxes of ranges.

Pure Python, no torch: this is what every other stage agrees on.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from piecewise_core import ranges_bits as bits
from piecewise_core.errors import ConfigError

__all__ = ["LISTED", "NO_BOUND", "Box", "Range", "Sizes", "cut"]

Sizes = tuple[int, ...]
"""One size per dynamic dimension, in the order of the dims."""

LISTED = bits.LIMIT
"""Sizes from the first to the last of a range that may be listed one by one."""

NO_BOUND = sys.maxsize - 1
"""The upper end of a size that has none."""

_FEW = 8
"""Parts of a range's text that are written out."""


@dataclass(frozen=True, order=True)
class Range:
    """Sizes from ``start`` to ``end``, in rows, both inclusive; all of them, or some.

    ``residues``: bit ``r`` tells whether sizes with ``size % modulus == r`` are in the range.
    A modulus above ``end`` names each size by itself. There is one way to write each set: ends are
    in it, and of several moduli the least is taken. Raises ConfigError when ``start > end``, or
    when no size is in the range.
    """

    start: int
    end: int
    modulus: int = 1
    residues: int = 1

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ConfigError(
                f"Range({self.start}, {self.end}): start lies above end; "
                "both ends are inclusive, so start <= end"
            )
        if self.modulus == 1 and self.residues == 1:
            return
        shape = bits.normal(self.start, self._mask) if self._listed else bits.thinned(*self._shape)
        if shape is None:
            raise ConfigError(f"Range{self._shape}: no size is in it; widen it")
        names = ("start", "end", "modulus", "residues")
        for name, value in zip(names, shape, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Range | None:
        """The range of exactly ``sizes``; None for none."""
        found = set(sizes)
        if not found:
            return None
        start, end = min(found), max(found)
        digits = "".join("1" if size in found else "0" for size in range(end, start - 1, -1))
        return cls._among(start, end, end + 1, int(digits, 2) << start)

    def __contains__(self, size: object) -> bool:
        return (
            isinstance(size, int)
            and self.start <= size <= self.end
            and bool(self.residues >> (size % self.modulus) & 1)
        )

    def __iter__(self) -> Iterator[int]:
        if self.modulus == 1:
            return iter(range(self.start, self.end + 1))
        if self._listed:
            return bits.members(self.start, self._mask)
        return (size for size in range(self.start, self.end + 1) if size in self)

    @property
    def is_whole(self) -> bool:
        """Whether every size from start to end is in it."""
        return self.modulus == 1

    def is_single_size(self) -> bool:
        """Whether the range holds exactly one size."""
        return self.start == self.end

    def clip(self, low: int, high: int) -> Range | None:
        """Its sizes from ``low`` to ``high``; None for none."""
        if low <= self.start and high >= self.end:
            return self
        return self._among(max(low, self.start), min(high, self.end), self.modulus, self.residues)

    def intersect(self, other: Range) -> Range | None:
        """The sizes in both; None for none."""
        if other.is_whole:
            return self.clip(other.start, other.end)
        if self.is_whole:
            return other.clip(self.start, self.end)
        start, end = max(self.start, other.start), min(self.end, other.end)
        if start > end:
            return None
        if end - start < bits.LIMIT:
            one, two = (bits.mask_of(start, end, r.modulus, r.residues) for r in (self, other))
            return self._among(start, end, end + 1, (one & two) << start)
        modulus = math.lcm(self.modulus, other.modulus)
        one, two = (bits.mask_of(0, modulus - 1, r.modulus, r.residues) for r in (self, other))
        return self._among(start, end, modulus, one & two)

    def without(self, other: Range) -> Range | None:
        """The sizes that are not in ``other``; None for none. ``self`` must be listable."""
        start, end = self.start, self.end
        both = self.intersect(other)
        if both is None:
            return self
        mask = bits.mask_of(start, end, both.modulus, both.residues)
        inside = ((1 << (both.end - start + 1)) - 1) & ~((1 << (both.start - start)) - 1)
        left = self._mask & ~(mask & inside)
        return self._among(start, end, end + 1, left << start)

    def nearest(self, size: int) -> int:
        """The least size in the range from ``size`` on, or its last one."""
        if size <= self.start:
            return self.start
        found = self.clip(size, self.end) if size <= self.end else None
        return self.end if found is None else found.start

    @property
    def plain(self) -> list[int | str]:
        """What JSON can hold, for ``Range.read``."""
        ends: list[int | str] = [self.start, self.end]
        return ends if self.is_whole else [*ends, self.modulus, f"{self.residues:x}"]

    @classmethod
    def read(cls, plain: Sequence[Any]) -> Range:
        """The range that ``plain`` came from. Raises ConfigError, TypeError and ValueError."""
        start, end, *some = plain
        return cls(start, end, some[0], int(some[1], 16)) if some else cls(start, end)

    def __str__(self) -> str:
        text = f"[{self.start}, {'no bound' if self.end >= NO_BOUND else self.end}]"
        if self.is_whole:
            return text
        residues = list(bits.members(0, self.residues)) if self.modulus <= self.end else []
        if residues == [self.start % self.modulus]:
            return f"{text} step {self.modulus}"
        if residues and len(residues) <= _FEW:
            return f"{text} with size % {self.modulus} in {residues}"
        if not self._listed:
            return f"{text} with size % {self.modulus} in {len(residues)} residues"
        mask = self._mask
        found = [f"{a}" if a == b else f"{a}-{b}" for a, b in bits.runs(self.start, mask)]
        if len(found) <= _FEW:
            return f"{{{', '.join(found)}}}"
        digest = hashlib.sha256(f"{mask:x}".encode()).hexdigest()[:12]
        shown = ", ".join([*found[: _FEW - 2], "...", found[-1]])
        return f"{{{shown}}} ({mask.bit_count()} sizes, {digest})"

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self.start, self.end, self.modulus, self.residues

    @property
    def _listed(self) -> bool:
        return self.end - self.start < bits.LIMIT

    @property
    def _mask(self) -> int:
        return bits.mask_of(*self._shape)

    @classmethod
    def _among(cls, start: int, end: int, modulus: int, residues: int) -> Range | None:
        """The range, or None where it would be empty."""
        if start > end or not residues:
            return None
        if modulus == 1:
            return cls(start, end)
        if end - start < bits.LIMIT:
            shape = bits.normal(start, bits.mask_of(start, end, modulus, residues))
        else:
            shape = bits.thinned(start, end, modulus, residues)
        return None if shape is None else cls(*shape)


@dataclass(frozen=True, order=True)
class Box:
    """One Range per dynamic dimension; holds a tuple of sizes when each lies in its Range."""

    ranges: tuple[Range, ...]

    @classmethod
    def single(cls, sizes: Iterable[int]) -> Box:
        """The box that holds exactly ``sizes``."""
        return cls(tuple(Range(size, size) for size in sizes))

    @classmethod
    def of(cls, ranges: Sequence[Range | None]) -> Box | None:
        """The box of ``ranges``; None where one of them is."""
        found = tuple(r for r in ranges if r is not None)
        return cls(found) if len(found) == len(ranges) else None

    def replaced(self, place: int, by: Range) -> Box:
        """The box with ``by`` as the range of the dim at ``place``."""
        return Box((*self.ranges[:place], by, *self.ranges[place + 1 :]))

    def __contains__(self, sizes: object) -> bool:
        return (
            isinstance(sizes, tuple)
            and len(sizes) == len(self.ranges)
            and all(size in r for size, r in zip(sizes, self.ranges, strict=True))
        )

    def is_single_size(self) -> bool:
        """Whether the box holds exactly one tuple of sizes."""
        return all(r.is_single_size() for r in self.ranges)

    def intersect(self, other: Box) -> Box | None:
        """The sizes that lie in both boxes, or None when there are none."""
        found = [a.intersect(b) for a, b in zip(self.ranges, other.ranges, strict=True)]
        return Box.of(found)

    def __str__(self) -> str:
        return " x ".join(str(r) for r in self.ranges) or "(no dynamic dims)"


def cut(bounds: Range, endpoints: Iterable[int]) -> tuple[Range, ...]:
    """Partition ``bounds`` after each endpoint.

    ``cut(Range(1, 8192), [8, 32])`` is ``[1, 8] [9, 32] [33, 8192]``. An endpoint at or above
    the upper bound, or below the lower one, cuts nothing.
    """
    inner = sorted({e for e in endpoints if bounds.start <= e < bounds.end})
    starts = [bounds.start, *(e + 1 for e in inner)]
    found = (bounds.clip(s, e) for s, e in zip(starts, [*inner, bounds.end], strict=True))
    return tuple(r for r in found if r is not None)
