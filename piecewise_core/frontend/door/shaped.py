"""Calls of a compiled function at one set of shapes, captured as one piece."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from piecewise_core.counters import Counters
from piecewise_core.frontend.door.calls import DoorCalls
from piecewise_core.frontend.door.held import Watched, over
from piecewise_core.frontend.door.memory import DoorMemory
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.lying import lying_of
from piecewise_core.graph.structure import Structure, TensorLeaf
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Entry, Facts, PaddedCalls, Recording
from piecewise_core.replay.replays import Replays

__all__ = ["Shaped"]


class Of(Protocol):
    """The function whose calls these are."""

    def plain(self, given: Sequence[Any]) -> Sequence[Any]:
        """Serve one call without graphs."""
        ...

    def run(self, given: list[Any]) -> tuple[Any, ...]:
        """What is captured."""
        ...

    def keeps(self, place: int) -> bool:
        """Whether the object at ``place`` lasts."""
        ...

    def written(self, places: Sequence[int]) -> tuple[int, ...]:
        """Places among ``places`` that are written to."""
        ...

    def tell(self, why: str) -> None:
        """Note why calls run without graphs."""
        ...

    def gone(self) -> None:
        """A tensor that lasts is no more."""
        ...


class Shaped:
    """Calls of one set of shapes and of places of what is held: one size, ``()``."""

    def __init__(
        self,
        of: Of,
        given: list[Any],
        held: list[int],
        setup: Setup,
        counters: Counters,
        memory: DoorMemory,
    ) -> None:
        self._of, self.places = weakref.ref(of), held
        self.at = [x.data_ptr() if i in held else None for i, x in enumerate(given)]
        self._own = [
            i for i, x in enumerate(given) if isinstance(x, torch.Tensor) and i not in held
        ]
        self._rest = [None if isinstance(x, torch.Tensor) else x for x in given]
        leaves = tuple(_leaf(i, given[place]) for i, place in enumerate(self._own))
        calls = DoorCalls(Structure(inspect.Signature(), {}, leaves, ()))
        bound = [given[i] for i in held]
        with torch.inference_mode(False):
            self._bound = tuple(map(over, bound))
        lasting = [x for i, x in zip(held, bound, strict=True) if of.keeps(i)]
        self._watched = Watched(lasting, of.gone)
        self.replays = Replays(memory.graphs, setup.config, counters, setup.graph_mode)
        self.replays.begin(calls)
        self._entry: Entry = self.replays.pending(self, (), self._plain, self._put)

    @property
    def of(self) -> Of:
        """Whose calls these are; not kept alive from here, or nobody would see it go."""
        of = self._of()
        if of is None:
            raise ReferenceError("the compiled function is gone")
        return of

    def __call__(self, given: list[Any]) -> Any:
        own = tuple([given[i] for i in self._own])
        held = tuple([given[i] for i in self.places])
        return self._entry(own, self._bound, (), (own, held), {})

    def _put(self, sizes: Sizes, entry: Entry) -> None:
        self._entry = entry
        for why in self.replays.dropped():
            self.of.tell(why)

    def _plain(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        return self.of.plain(self._ordered(t, args[1]))

    def _ordered(self, t: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        given = list(self._rest)
        for places, values in ((self._own, t), (self.places, b)):
            for place, value in zip(places, values, strict=True):
                given[place] = value
        return given

    @property
    def is_stale(self) -> bool:
        """Whether a held tensor is gone, or lies elsewhere by now."""
        return self._watched.is_stale

    def release(self) -> None:
        """Free the graph, and let the tensors go."""
        self.replays.release()
        self._bound = ()

    # As a Replayable -------------------------------------------------------------------

    graphs_per_size = 1

    def recording(
        self, captured: Sizes, inputs: tuple[torch.Tensor, ...], bound: Sequence[torch.Tensor]
    ) -> Recording:
        """One piece: all of it."""
        written = tuple(bound[i] for i in self.of.written(self.places))

        def build(recorder: Any) -> Any:
            piece = recorder.piece("what Inductor compiled", lambda *xs: self.of.run(list(xs)))
            return lambda t, b, *sizes: piece(*self._ordered(t, b))

        return Recording(build, tuple(bound), written)

    def facts(self, captured: Sizes) -> Facts:
        """By what Inductor says that it writes to."""
        written, held = self.of.written(self._own), self.of.written(self.places)
        return Facts(lambda o, t, b: o, False, written, held)

    def captured(self) -> None:
        """Nothing to note."""

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """Never: nobody knows its rows."""
        return None


def _leaf(index: int, value: torch.Tensor) -> TensorLeaf:
    lying, strides = lying_of(value), tuple(value.stride())
    own = (lambda sizes: strides) if lying.gaps else None
    shape = tuple(value.shape)
    return TensorLeaf(
        f"input {index}", index, value.dtype, value.device, shape, {}, lying.order, lying.gaps, own
    )
