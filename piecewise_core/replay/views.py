"""Results that are views of a call's own tensors: made of those, never of what graphs read.

As written, what a caller does to such a result is done to the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from piecewise_core.capture.loose import Loose
from piecewise_core.errors import CaptureFailed
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Facts, Recording
from piecewise_core.torch_compat.storages import memory_key, negated

__all__ = ["View", "Views", "left_out", "put_in", "shares"]

Views = dict[Sizes, dict[int, "View"]]
"""Captured size -> place of an output -> what it is."""


@dataclass(frozen=True)
class View:
    """Output of a captured size: a view of the tensor at ``place``, or that itself.

    ``place``: among the call's tensors and, behind them, the held ones. ``offset``: from that
    tensor's first element, in bytes. ``size``: None for the tensor itself. ``flags``: its conjugate
    and negative bits.
    """

    place: int
    size: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype | None = None
    flags: tuple[bool, bool] = (False, False)

    def of(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The view of a call's own tensor."""
        base = given[self.place]
        if self.size is None:
            return base
        if base.dtype is self.dtype and _flags(base) == self.flags:
            start = base.storage_offset() + self.offset // base.itemsize
            return base.as_strided(self.size, self.stride, start)
        made = torch.empty(0, dtype=self.dtype, device=base.device)
        start = (base.storage_offset() * base.itemsize + self.offset) // made.itemsize
        made.set_(base.untyped_storage(), start, self.size, self.stride)
        made = made.conj() if self.flags[0] else made
        return negated(made) if self.flags[1] else made


def _flags(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_conj(), tensor.is_neg()


def left_out(made: Recording, captured: Sizes, views: Views, held: int) -> Recording:
    """``made`` without results that are views of what it is given, which are noted in ``views``.

    ``held``: how many of the tensors that it is given besides a call's results may be views of.
    A tensor that is returned itself is noted and left in: callers tell it by its place.
    """
    views.pop(captured, None)

    def build(recorder: Any) -> Any:
        plan = made.build(recorder)

        def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
            outs = plan(t, b, *sizes)
            # Beside results that each call makes anew, views of one input share a copy with those.
            loose = any(isinstance(out, Loose) for out in outs)
            found = {} if loose else views_of(outs, (*t, *b[:held]))
            if views.setdefault(captured, found) != found:
                raise CaptureFailed(
                    "a result is a view of an input in one run and none in the next; such "
                    "calls run without graphs"
                )
            left = {place for place, view in found.items() if view.size is not None}
            return tuple(None if place in left else out for place, out in enumerate(outs))

        return run

    return replace(made, build=build)


def shares(views: dict[int, View]) -> bool:
    """Whether a result is a view of a call's tensor, and not that itself."""
    return any(view.size is not None for view in views.values())


def put_in(facts: Facts, views: dict[int, View]) -> Facts:
    """``facts``, with results made of the call's own tensors where there are ``views``."""
    if not views:
        return facts
    inner = facts.rebuild

    def rebuild(outs: Sequence[Any], given: Sequence[Any], bound: Sequence[Any]) -> Any:
        own = (*given, *bound)
        whole = [views[i].of(own) if i in views else out for i, out in enumerate(outs)]
        return inner(whole, given, bound)

    return replace(facts, rebuild=rebuild, uses_inputs=True)


def views_of(outs: Sequence[Any], given: Sequence[torch.Tensor]) -> dict[int, View]:
    """Which of ``outs`` lie in memory of ``given``."""
    places: dict[int, int] = {}
    for place, tensor in enumerate(given):
        places.setdefault(memory_key(tensor), place)
    found = {}
    for i, out in enumerate(outs):
        if not isinstance(out, torch.Tensor) or out.layout is not torch.strided:
            continue
        first = places.get(memory_key(out))
        if first is not None:
            own = next((p for p, t in enumerate(given) if t is out), None)
            found[i] = _view(out, given[first], first) if own is None else View(own)
    return found


def _view(out: torch.Tensor, base: torch.Tensor, place: int) -> View:
    starts = [int(t.storage_offset()) * t.itemsize for t in (out, base)]
    offset = starts[0] - starts[1]
    return View(place, tuple(out.shape), tuple(out.stride()), offset, out.dtype, _flags(out))
