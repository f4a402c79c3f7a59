"""Numbers as they are at several sizes at once, and the dims of tensors made of them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Axes",
    "Axis",
    "Extent",
    "Value",
    "Varies",
    "added",
    "axes_of",
    "extent",
    "joined",
    "regroup",
    "total",
    "varies",
    "within",
]


class Varies(tuple[Any, ...]):
    """A number that depends on the padded dims: what it is at each of the sizes looked at."""

    __slots__ = ()


Extent = int | Varies
"""A number of elements: the same at all sizes, or not."""

Axis = tuple[Extent, ...]
"""One dim of a tensor as a product, outermost factor first; ones are left out.

Of a factor that varies, the first elements are a call's own and padding lies behind them. Factors
of one dim are kept apart (batch and length flattened together): its own elements are those whose
place in every factor is.
"""

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """A tensor as the rules see it.

    ``axes``: None where nobody knows which elements are a call's own. ``narrow``: whether it is
    the beginning of a tensor that does not vary: what is written to its padding stays there.
    ``below``: its own elements are whole numbers from 0 up to this one, exclusive; None where that
    is not known. ``span``: what its padding may be, as of ``padvalues``.
    """

    axes: Axes | None
    dtype: Any = None
    narrow: bool = False
    below: Extent | None = None
    span: Any = None

    @property
    def dims(self) -> int:
        """How many dims it has."""
        return len(self.axes or ())


def extent(numbers: Sequence[Any]) -> Any:
    """The number that is ``numbers`` at the sizes looked at."""
    first = numbers[0]
    alike = all(type(n) is type(first) and (n == first or n != n) for n in numbers)
    return first if alike else Varies(numbers)


def varies(value: Any) -> bool:
    """Whether a number, an axis, or anything made of them depends on the padded dims."""
    if isinstance(value, Varies):
        return True
    if isinstance(value, Value):
        return value.axes is None or varies(value.axes)
    return isinstance(value, (tuple, list)) and any(map(varies, value))


def axes_of(shape: Iterable[Extent]) -> Axes:
    """Dims of one factor each."""
    return tuple(_plain((size,)) for size in shape)


def total(axis: Axis) -> Extent:
    """The number of elements of an axis."""
    found: Extent = functools.reduce(functools.partial(_each, operator.mul), axis, 1)
    return found


def added(a: Extent, number: int) -> Extent:
    """``a`` and a fixed number."""
    found: Extent = _each(operator.add, a, number)
    return found


def within(a: Extent, b: Extent) -> bool:
    """Whether ``a`` is never more than ``b``."""
    return _each(operator.le, a, b) is True


def regroup(axes: Axes, shape: Sequence[Extent]) -> Axes | None:
    """The dims of the same elements in row-major order viewed as ``shape``.

    None where a factor that varies would be torn apart.
    """
    left = [factor for axis in axes for factor in axis]
    if 0 in left:
        return axes_of(shape)  # of no elements, none is torn apart
    made = []
    for size in shape:
        taken = _taken(left, size)
        if taken is None:
            return None
        made.append(taken)
    return None if left else tuple(made)


def joined(axes: Axes) -> Axis:
    """Several dims as one, as ``flatten`` makes it."""
    return _plain(tuple(factor for axis in axes for factor in axis))


def _taken(left: list[Extent], size: Extent) -> Axis | None:
    """The first factors of ``left``, taken from it, that make up ``size``."""
    taken: list[Extent] = []
    while size != 1:
        if not left:
            return None
        first = left[0]
        rest = _divided(size, first)
        if rest is not None:
            taken.append(left.pop(0))
            size = rest
            continue
        if isinstance(first, Varies) or isinstance(size, Varies):
            # A fixed factor may be shared out between this dim and the next.
            common = _common(first, size)
            if common == 1 or isinstance(first, Varies):
                return None
            taken.append(common)
            left[0] = first // common
            size = _each(operator.floordiv, size, common)
            continue
        common = math.gcd(first, size)
        if common != size and common != first:
            return _across(left, size, taken)
        taken.append(size)
        left[0] = first // size
        size = 1
    return _plain(tuple(taken))


def _across(left: list[Extent], size: int, taken: list[Extent]) -> Axis | None:
    """Fixed factors that do not divide one another are shared out if they stand side by side."""
    run = 1
    while left and isinstance(left[0], int):
        run *= left[0]
        left.pop(0)
    if run % size:
        return None
    if run != size:
        left.insert(0, run // size)
    return _plain((*taken, size))


def _common(first: Extent, size: Extent) -> int:
    numbers = [*(first if isinstance(first, Varies) else (first,))]
    numbers += size if isinstance(size, Varies) else (size,)
    return math.gcd(*numbers)


def _plain(axis: Axis) -> Axis:
    """Without ones, and with fixed factors side by side made one."""
    made: list[Extent] = []
    for factor in axis:
        if factor == 1:
            continue
        if made and not isinstance(factor, Varies) and not isinstance(made[-1], Varies):
            made[-1] *= factor
        else:
            made.append(factor)
    return tuple(made)


def _divided(a: Extent, b: Extent) -> Extent | None:
    """``a / b`` where that leaves no remainder anywhere."""
    if _each(lambda x, y: y != 0 and x % y == 0, a, b) is not True:
        return 1 if a == b else None
    found: Extent = _each(operator.floordiv, a, b)
    return found


def _each(function: Callable[..., Any], *numbers: Extent) -> Any:
    """``function`` of ``numbers``; at each of the sizes looked at where one of them varies."""
    count = next((len(n) for n in numbers if isinstance(n, Varies)), 0)
    if not count:
        return function(*numbers)
    columns = [n if isinstance(n, Varies) else (n,) * count for n in numbers]
    return extent(list(map(function, *columns)))
