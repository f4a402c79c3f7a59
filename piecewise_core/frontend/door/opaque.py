"""A compiled function that nobody can look into, captured: what Inductor made of a graph."""

from __future__ import annotations

import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.counters import Counters
from piecewise_core.frontend.door.calls import DoorCalls
from piecewise_core.frontend.door.held import Watched, over
from piecewise_core.frontend.door.memory import DoorMemory
from piecewise_core.frontend.door.views import DoorProgram, Views
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.lying import lying_of
from piecewise_core.graph.structure import Structure, TensorLeaf
from piecewise_core.ranges import Sizes
from piecewise_core.replay.replayable import Entry, Facts, PaddedCalls, Recording
from piecewise_core.replay.replays import Replays
from piecewise_core.torch_compat.storages import same_addresses

__all__ = ["OpaqueGraph"]

_MOST = 64
"""Captured shapes and places of one function; those used longest ago go."""

_LARGE = 1 << 20
"""Bytes of an input that the function writes to and reads where it lies."""

_ALIGNED = 16
"""Bytes that Inductor's kernels may read at once."""


class OpaqueGraph:
    """Serves calls of ``model(inputs)``, a list that it may empty.

    ``static``: places of inputs that rarely move; their addresses are compared all the same.
    ``mutated``: of those written to.
    """

    def __init__(
        self,
        model: Callable[[list[Any]], Sequence[Any]],
        static: Sequence[int],
        mutated: Sequence[int],
        setup: Setup,
        counters: Counters,
        memory: DoorMemory,
    ) -> None:
        self._model = model
        self._static, self._mutated = frozenset(static), frozenset(mutated)
        self._setup, self._counters, self._memory = setup, counters, memory
        self._known: OrderedDict[Any, list[_Shaped]] = OrderedDict()
        self._boxed_call = True
        self.uncaptured: tuple[str, ...] = ()
        weakref.finalize(self, _let_go, memory, self._known).atexit = False

    def __call__(self, inputs: list[Any]) -> Sequence[Any]:
        given = list(inputs)
        inputs.clear()
        key = tuple([tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in given])
        with self._memory.lock:
            shaped = self._find(key, given)
            if shaped is None:
                return self.plain(given)
            result: Sequence[Any] = shaped(given)
            return result

    def plain(self, given: Sequence[Any]) -> Sequence[Any]:
        """Serve one call without graphs."""
        self._counters.calls["compiled_range"] += 1
        inputs, back = list(given), []
        for place, x in enumerate(given):
            if isinstance(x, torch.Tensor) and x.data_ptr() % _ALIGNED:
                inputs[place] = x.clone(memory_format=torch.preserve_format)
                if place in self._mutated:
                    back.append((x, inputs[place]))
        result = self._model(inputs)
        for own, copy in back:
            own.copy_(copy)
        return result

    def _find(self, key: Any, given: list[Any]) -> _Shaped | None:
        known = self._known.get(key)
        for shaped in known or ():
            if same_addresses(given, shaped.at, shaped.places):
                return shaped
        if not self._memory.is_free():
            return None
        return self._begin(key, given)

    def _begin(self, key: Any, given: list[Any]) -> _Shaped:
        self._sweep()
        while sum(map(len, self._known.values())) >= _MOST:
            oldest = next(iter(self._known))
            for shaped in self._known.pop(oldest):
                shaped.release()
        held = [i for i, x in enumerate(given) if self._is_held(i, x)]
        made = _Shaped(self, given, held, self._setup, self._counters, self._memory)
        self._known.setdefault(key, []).append(made)
        self._known.move_to_end(key)
        return made

    def gone(self) -> None:
        """A tensor that graphs read is no more: they go at once if nothing is under way."""
        if self._memory.lock.acquire(blocking=False):
            try:
                if self._memory.is_free():
                    self._sweep()
            finally:
                self._memory.lock.release()

    def _sweep(self) -> None:
        self._memory.sweep()
        for known in self._known.values():
            for shaped in [each for each in known if each.is_stale]:
                known.remove(shaped)
                shaped.release()

    def _is_held(self, place: int, value: Any) -> bool:
        if not isinstance(value, torch.Tensor):
            return False
        return place in self._static or (place in self._mutated and value.nbytes >= _LARGE)

    def run(self, given: list[Any]) -> tuple[Any, ...]:
        """What is captured."""
        return tuple(self._model(given))

    def keeps(self, place: int) -> bool:
        """Whether the object at ``place`` lasts, as a parameter does."""
        return place in self._static

    def written(self, places: Sequence[int]) -> tuple[int, ...]:
        """Places among ``places`` that are written to."""
        return tuple(i for i, place in enumerate(places) if place in self._mutated)

    def tell(self, why: str) -> None:
        """Note why calls run without graphs."""
        self.uncaptured = tuple(dict.fromkeys((*self.uncaptured, why)))


def _let_go(memory: DoorMemory, known: OrderedDict[Any, list[_Shaped]]) -> None:
    memory.let_go(shaped for each in known.values() for shaped in each)


class _Shaped:
    """Calls of one set of shapes and of places of what is held: one size, ``()``."""

    def __init__(
        self,
        of: OpaqueGraph,
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
        views: Views = {}
        self._program = DoorProgram(self, views)
        self._entry: Entry = self.replays.pending(self._program, (), self._plain, self._put)

    @property
    def of(self) -> OpaqueGraph:
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
