"""A compiled function that nobody can look into, captured: what Inductor made of a graph."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.counters import Counters
from piecewise_core.frontend.door.memory import DoorMemory
from piecewise_core.frontend.door.shaped import Shaped
from piecewise_core.frontend.setup import Setup
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
        self._known: OrderedDict[Any, list[Shaped]] = OrderedDict()
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
        self._counters.unsized["compiled_range"] += 1
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

    def _find(self, key: Any, given: list[Any]) -> Shaped | None:
        known = self._known.get(key)
        for shaped in known or ():
            if same_addresses(given, shaped.at, shaped.places):
                return shaped
        if not self._memory.is_free():
            return None
        return self._begin(key, given)

    def _begin(self, key: Any, given: list[Any]) -> Shaped:
        self._sweep()
        while sum(map(len, self._known.values())) >= _MOST:
            oldest = next(iter(self._known))
            for shaped in self._known.pop(oldest):
                shaped.release()
        held = [i for i, x in enumerate(given) if self._is_held(i, x)]
        made = Shaped(self, given, held, self._setup, self._counters, self._memory)
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


def _let_go(memory: DoorMemory, known: OrderedDict[Any, list[Shaped]]) -> None:
    memory.let_go(shaped for each in known.values() for shaped in each)
