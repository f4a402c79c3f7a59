"""Work that takes a good while, however fast the device is."""

from __future__ import annotations

import time

import torch

from piecewise_core.testing.conformance.case import Case

__all__ = ["Work"]

_SIDE = 1024


class Work:
    """Called, it gives the current stream about ``seconds`` of work, without waiting.

    ``calls``: how often it was called.
    """

    def __init__(self, case: Case, seconds: float) -> None:
        self.calls = 0
        self._factor, self._product = (case.zeros(_SIDE, _SIDE) for _ in range(2))
        self._products = self._enough(case, seconds)

    def __call__(self) -> None:
        self.calls += 1
        self._multiply(self._products)

    def _enough(self, case: Case, seconds: float) -> int:
        """How many products take that long; the first ones load kernels."""
        count, took = 1, 0.0
        self._multiply(count)
        case.device.synchronize()
        while took < seconds:
            count *= 2
            began = time.perf_counter()
            self._multiply(count)
            case.device.synchronize()
            took = time.perf_counter() - began
        return count

    def _multiply(self, products: int) -> None:
        for _ in range(products):
            torch.mm(self._factor, self._factor, out=self._product)
