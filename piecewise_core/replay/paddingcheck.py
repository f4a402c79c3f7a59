"""The second look at padding: a padded call is compared with one of its own size, by zeros and by
large random values in the rows of padding.

The first look, the rules of ``graph.padding``, has found that no row sees another; here a rule
that is wrong, or a compiler, would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.errors import PlatformFault
from piecewise_core.ranges import Sizes
from piecewise_core.replay.agreement import Difference, difference

__all__ = ["PaddingCheck", "disturb", "leak"]

_LARGE = 1e4
"""How large the random floats in rows of padding are, where their dtype can hold it."""


class PaddingCheck:
    """Compares padded calls of one captured size.

    ``stage(tensors, sizes)``: puts a call's inputs into ``buffers``, zeros behind them. ``replay``:
    runs the graphs. ``results(sizes)``: what they gave, cut to a call's sizes. ``wild``: whether
    the padding of floats may be anything; else it is made of a call's own elements, for programs
    that make indices of floats. ``alike``: what to go by, where others compare too.
    """

    def __init__(
        self,
        buffers: Sequence[torch.Tensor],
        stage: Callable[[Any, Sizes], None],
        replay: Callable[[], None],
        results: Callable[[Sizes], Sequence[Any]],
        *,
        wild: bool,
        alike: Callable[[Difference | None], Difference | None] = lambda found: found,
    ) -> None:
        self._alike = alike
        self._buffers = buffers
        self._stage = stage
        self._replay = replay
        self._results = results
        self._wild = wild

    def __call__(
        self, tensors: Sequence[torch.Tensor], sizes: Sizes, wanted: Sequence[Any]
    ) -> Difference | None:
        """What padding changed in one call; ``wanted``: its results without padding."""
        for noise in (False, True):
            self._stage(tensors, sizes)
            if noise:
                disturb(self._buffers, tensors, wild=self._wild)
            found = self._alike(self._replayed(sizes, wanted))
            if found is not None:
                return found
        return None

    def _replayed(self, sizes: Sizes, wanted: Sequence[Any]) -> Difference | None:
        try:
            self._replay()
        except PlatformFault as fault:  # an index or a divisor made of zeros, for example
            return Difference(0, f"rows of padding fail: {fault.__cause__}")
        return difference(self._results(sizes), wanted)


def disturb(
    buffers: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], *, wild: bool
) -> None:
    """Fill what ``buffers`` hold behind a call's own elements with random values.

    Whole numbers may be indices: they become some of the call's own.
    """
    draw = torch.Generator().manual_seed(0)
    for buffer, tensor in zip(buffers, tensors, strict=True):
        for part in _behind(buffer, tensor):
            part.copy_(_noise(part, tensor, draw, wild=wild))


def _behind(buffer: torch.Tensor, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    inner = buffer
    for axis, size in enumerate(tensor.shape):
        if size < inner.shape[axis]:
            yield inner.narrow(axis, size, inner.shape[axis] - size)
            inner = inner.narrow(axis, 0, size)


def _noise(
    part: torch.Tensor, own: torch.Tensor, draw: torch.Generator, *, wild: bool
) -> torch.Tensor:
    kind = part.dtype.to_real() if part.dtype.is_complex else part.dtype
    if wild and kind.is_floating_point:
        large = min(_LARGE, torch.finfo(kind).max / 4)
        made = (torch.rand(part.shape, generator=draw) * 2 - 1) * large
        return made.to(part.dtype)
    if not own.numel():
        return torch.zeros(part.shape, dtype=part.dtype)
    places = torch.randint(own.numel(), (part.numel(),), generator=draw)
    return own.reshape(-1)[places.to(own.device)].reshape(part.shape)


def leak(sizes: Sizes, captured: Sizes, found: object, line: str) -> str:
    """The message for results that padding has changed. ``line``: where the first one is made."""
    made = f", made at {line}" if line else ""
    return (
        f"a call of sizes {sizes}, padded to {captured}, gave other results than without padding "
        f"({found}{made}). Such calls are served without padding from now on; list their sizes in "
        "capture_sizes"
    )
