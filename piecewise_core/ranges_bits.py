"""Sets of sizes as whole numbers: bit ``i`` tells whether size ``start + i`` is in the set."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["LIMIT", "mask_of", "members", "normal", "runs", "thinned"]

LIMIT = 1 << 18
"""Sizes from the first to the last of a set that can be listed; larger sets must repeat."""

_LONGEST = 4096
"""The longest period that is looked for."""

Shape = tuple[int, int, int, int]
"""``start``, ``end``, ``modulus``, ``residues``."""


def mask_of(start: int, end: int, modulus: int, residues: int) -> int:
    """The sizes from ``start`` to ``end`` whose residue is among the bits of ``residues``."""
    count = end - start + 1
    first = start % modulus
    once = (residues >> first) | ((residues & ((1 << first) - 1)) << (modulus - first))
    whole = (1 << modulus) - 1
    times = -(-count // modulus)
    return (once & whole) * (((1 << (modulus * times)) - 1) // whole) & ((1 << count) - 1)


def normal(start: int, mask: int) -> Shape | None:
    """The one way to write the set of ``mask``: None where it is empty."""
    if not mask:
        return None
    low = (mask & -mask).bit_length() - 1
    mask, start = mask >> low, start + low
    count = mask.bit_length()
    end = start + count - 1
    if mask == (1 << count) - 1:
        return start, end, 1, 1
    for modulus in range(2, min(count // 2, _LONGEST) + 1):
        if not (mask ^ (mask >> modulus)) & ((1 << (count - modulus)) - 1):
            once, first = mask & ((1 << modulus) - 1), start % modulus
            turned = (once << first) | (once >> (modulus - first))
            return start, end, modulus, turned & ((1 << modulus) - 1)
    return start, end, end + 1, mask << start


def thinned(start: int, end: int, modulus: int, residues: int) -> Shape | None:
    """The set with ends that are in it: one that is too long to be listed. None if empty."""
    residues &= (1 << modulus) - 1
    if residues == (1 << modulus) - 1:
        return start, end, 1, 1
    steps = range(modulus)
    first = next((i for i in steps if residues >> ((start + i) % modulus) & 1), None)
    if first is None:
        return None
    last = next(i for i in steps if residues >> ((end - i) % modulus) & 1)
    return start + first, end - last, modulus, residues


def members(start: int, mask: int) -> Iterator[int]:
    """The sizes in order."""
    for place, digit in enumerate(reversed(bin(mask)[2:])):
        if digit == "1":
            yield start + place


def runs(start: int, mask: int) -> Iterator[tuple[int, int]]:
    """The first and last of each run of sizes in order."""
    while mask:
        low = (mask & -mask).bit_length() - 1
        mask, start = mask >> low, start + low
        length = (~mask & (mask + 1)).bit_length() - 1
        yield start, start + length - 1
        mask, start = mask >> length, start + length
