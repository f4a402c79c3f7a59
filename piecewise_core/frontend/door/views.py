"""Results that are views of a call's own tensors: made of those, never of what graphs read.

Dynamo takes such a result for a view: what is written to it later is written to the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Facts, PaddedCalls, Recording, Replayable
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["DoorProgram", "Views"]

Views = dict[Sizes, dict[int, "View"]]
"""Captured size -> place of an output -> what it is."""


@dataclass(frozen=True)
class View:
    """Output of a captured size: a view of the tensor at ``place``, or that itself.

    ``place``: among the call's tensors and, behind them, the held ones. ``offset``: from that
    tensor's first element, in elements. ``size``: None for the tensor itself.
    """

    place: int
    size: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0

    def of(self, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """The view of a call's own tensor."""
        base = given[self.place]
        if self.size is None:
            return base
        return base.as_strided(self.size, self.stride, base.storage_offset() + self.offset)


class DoorProgram:
    """``inner``, a region, with such results left out of its graphs and put in at each call.

    ``views``: filled by captures, and outlives this object as the graphs do.
    """

    def __init__(self, inner: Replayable, views: Views) -> None:
        self._inner = inner
        self._views = views

    @property
    def graphs_per_size(self) -> int:
        """As many as the region's."""
        return self._inner.graphs_per_size

    def recording(
        self, captured: Sizes, inputs: tuple[torch.Tensor, ...], bound: Sequence[torch.Tensor]
    ) -> Recording:
        """That of the region, without results that are views of what is given."""
        made = self._inner.recording(captured, inputs, bound)

        def build(recorder: Any) -> Any:
            plan = made.build(recorder)

            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                outs = plan(t, b, *sizes)
                found = views_of(outs, (*t, *b[: len(bound)]))
                if self._views.setdefault(captured, found) != found:
                    raise CaptureFailed(
                        "a result is a view of an input in one run and none in the next; such "
                        "calls run without graphs"
                    )
                return tuple(None if place in found else out for place, out in enumerate(outs))

            return run

        return replace(made, build=build)

    def facts(self, captured: Sizes) -> Facts | None:
        """Those of the region; results are made of the call's own tensors where there are views."""
        facts, views = self._inner.facts(captured), self._views.get(captured)
        if facts is None or not views:
            return facts

        def rebuild(outs: Sequence[Any], given: Sequence[Any], bound: Sequence[Any]) -> Any:
            return [views[i].of(given) if i in views else out for i, out in enumerate(outs)]

        return replace(facts, rebuild=rebuild, uses_inputs=True)

    def captured(self) -> None:
        """Tell the region."""
        self._inner.captured()

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """None where a result is a view, which would be of the size that was captured."""
        return None if self._views.get(captured) else self._inner.padded(captured, outputs)


def views_of(outs: Sequence[Any], given: Sequence[torch.Tensor]) -> dict[int, View]:
    """Which of ``outs`` lie in memory of ``given``. Raises CaptureFailed for what is no view."""
    places: dict[int, int] = {}
    for place, tensor in enumerate(given):
        places.setdefault(memory_key(tensor), place)
    found = {}
    for i, out in enumerate(outs):
        if not isinstance(out, torch.Tensor) or memory_key(out) not in places:
            continue
        own = next((p for p, t in enumerate(given) if t is out), None)
        found[i] = _view(out, given, places[memory_key(out)]) if own is None else View(own)
    return found


def _view(out: torch.Tensor, given: Sequence[torch.Tensor], place: int) -> View:
    base = given[place]
    odd = out.is_conj() != base.is_conj() or out.is_neg() != base.is_neg()
    if out.dtype != base.dtype or odd:
        raise CaptureFailed(
            f"a result of dtype {out.dtype} is a view of an input of dtype {base.dtype}; graphs "
            "cannot give it to the caller. Such calls run without graphs: return a copy"
        )
    offset = int(out.storage_offset()) - int(base.storage_offset())
    return View(place, tuple(out.shape), tuple(out.stride()), offset)
