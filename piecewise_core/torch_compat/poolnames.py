"""Names of graph pools, for functions of torch that lose references to the numbers in them.

``torch.cuda.memory_snapshot`` of one pool gives up a reference to each number of the pool's name
that it never took (seen in torch 2.11). Python keeps small numbers for good; one above 256 is freed
while the name still has it, and who reads the name next reads freed memory. How many are lost is
measured once, on numbers that nobody else has, and is nothing where torch does it right.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["PoolQuestion"]


class PoolQuestion:
    """``ask`` of a pool by its name, a pair of numbers, which keep the references that they had."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        self._ask = ask
        # Small numbers are shared, and what they lose cannot be seen; these are made here.
        made = int("1" + "0" * 12), int("1" + "0" * 13)
        spare = made * 8
        before = _references(made)
        try:
            ask(made)
        except TypeError:
            raise
        except Exception:  # a device that knows no such pool: what it loses stays unknown
            self._lost = [0, 0]
        else:
            after = _references(made)
            self._lost = [max(0, a - b) for a, b in zip(before, after, strict=True)]
        for number, lost in zip(made, self._lost, strict=True):
            _take(number, lost)
        del spare

    def __call__(self, name: Any) -> Any:
        """What ``ask(name)`` returns; references are given before, so that no number dies in it."""
        for number, lost in zip(name, self._lost, strict=False):
            _take(number, lost)
        return self._ask(name)


def _references(numbers: tuple[int, int]) -> tuple[int, int]:
    return sys.getrefcount(numbers[0]), sys.getrefcount(numbers[1])


def _take(number: Any, count: int) -> None:
    for _ in range(count):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(number))
