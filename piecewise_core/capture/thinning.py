"""Which sizes are captured where there is not room for all."""

from __future__ import annotations

from piecewise_core.ranges import Sizes

__all__ = ["thinned"]


def thinned(sizes: list[Sizes], room: int) -> list[Sizes]:
    """``room`` of ``sizes``, evenly spread, the first and last always among them."""
    if room >= len(sizes):
        return sizes
    if room <= 1:
        return sizes[:room]
    step = (len(sizes) - 1) / (room - 1)
    return [sizes[round(i * step)] for i in range(room)]
