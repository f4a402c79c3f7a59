"""One Dynamo graph at torch.compile's door: its calls, by replay where they may be."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from piecewise_core.capture.resting import MOST_RESTING
from piecewise_core.counters import Stats
from piecewise_core.errors import GradNeeded
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.calllock import is_mine
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.door.held import Held
from piecewise_core.frontend.door.made import Made
from piecewise_core.frontend.door.memory import DoorMemory
from piecewise_core.frontend.suspects import GraphSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat.storages import same_addresses

__all__ = ["DoorGraph", "TellingGraph"]

logger = logging.getLogger(__name__)

_MOST = 256
"""Sets of addresses with graphs, and in a row that came once only before they are given up."""


class DoorGraph:
    """Dynamo calls it with the graph's inputs, in order."""

    def __init__(self, made: Made) -> None:
        self.made = made
        self._read, self._places = made.read, list(made.places)
        self._memory, self._lock = made.memory, made.memory.lock
        setup = made.setup
        verifier = None
        if setup.config.check == "verify":
            verifier = Verifier(setup.config, made.counters, GraphSubject(setup))
        self._dispatch = Dispatch(
            setup.config, made.counters, made.background, made.miss, verifier=verifier
        )
        self._dispatch.install(setup.config.bounds, [made.region])
        self._held: OrderedDict[tuple[int, ...], Held] = OrderedDict()
        self._once: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._last: Held | None = None
        self._moved = 0
        self._stale = self._freeing = False
        self._captures = made.calls is not None
        self.told_of: dict[str, None] = {}
        # Not when this is collected: what is captured lies on cycles.
        weakref.finalize(self, _let_go, made.memory, self._held).atexit = False

    def __call__(self, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in inputs):
            return self._without_grad(inputs)
        t, b, sizes = self._read(inputs)
        while True:
            with self._lock:
                try:
                    if not self._captures:
                        return self._without(t, b, sizes)
                    held = self._last
                    if (
                        held is None
                        or self._stale
                        or not same_addresses(list(inputs), held.at, self._places)
                    ):
                        held = self._find(b, sizes)
                    if held is not None:
                        return held.serve(t, held.bound, sizes, (t, b), {})
                    result = self._without(t, b, sizes)
                    self._note(b)  # not before: a call that lacks code comes again
                    return result
                except Unready as missing:
                    unready = missing.with_traceback(None)
            self._memory.builds.have(unready)

    def _without_grad(self, inputs: Sequence[Any]) -> Any:
        """Serve a graph whose own code turns gradients off, if that is all of it."""
        if self.made.differentiable:
            raise GradNeeded(
                "called with gradients enabled on tensors that require them; backend='piecewise' "
                "is for inference: call under torch.inference_mode() or torch.no_grad()"
            )
        with torch.no_grad():
            return self(*inputs)

    def _without(self, t: Any, b: Any, sizes: Sizes) -> Any:
        dispatch = self._dispatch
        return dispatch.serving[dispatch.find(*sizes)](t, b, sizes, (), {})

    # Where held tensors lie ------------------------------------------------------------

    def _find(self, bound: Sequence[torch.Tensor], sizes: Sizes) -> Held | None:
        """The graphs of these addresses; None where the call is served without."""
        if not self._memory.is_free():
            return None
        self._sweep()
        key = tuple([t.data_ptr() for t in bound])
        found = self._held.get(key)
        if found is not None and found.rests and not found.wake(bound):
            self._drop(key)  # what rests makes room for captures
            found = None
        if found is None:
            found = self._begin(key, bound, sizes)
        self._last = found or self._last
        return found

    def _begin(
        self, key: tuple[int, ...], bound: Sequence[torch.Tensor], sizes: Sizes
    ) -> Held | None:
        made = self.made
        moves = len(made.marked) < len(bound)
        if moves and made.setup.config.capture == "lazy" and key not in self._once:
            return None
        if len(self._held) >= _MOST:
            if not moves:
                self._tell(f"graphs are kept for {_MOST} sets of parameters")
                return None
            self._drop(next(iter(self._held)))
        self._moved = 0
        calls = made.calls
        if calls is not None:
            self._held[key] = held = Held(made, calls, bound, made.marked, self._gone)
            if key in self._once:
                held.capturing.plans.called.add(sizes)
        return self._held.get(key)

    def _note(self, bound: Sequence[torch.Tensor]) -> None:
        """Addresses that may never come again: memory of the caller's that is written to."""
        if len(self.made.marked) == len(bound):
            return
        self._once[tuple([t.data_ptr() for t in bound])] = None
        self._moved += 1
        while len(self._once) > _MOST:
            self._once.popitem(last=False)
        if self._moved > _MOST:
            self._captures = False
            self._tell(
                f"what it writes to lay elsewhere at each of {self._moved} calls. Write to memory "
                "that stays: torch._dynamo.mark_static_address(tensor) says so"
            )

    def _tell(self, why: str) -> None:
        if why not in self.told_of:
            self.told_of[why] = None
            logger.info("%s: calls are served without static graphs: %s", self.made.name, why)

    def _gone(self) -> None:
        """A held tensor is no more: its graphs go at once if nothing is under way."""
        self._stale = True
        if self._lock.acquire(blocking=False):
            try:
                if self._memory.is_free() and not self._freeing:
                    self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        """Let go of graphs whose held tensors are gone or moved, of this graph and others.

        A few rest instead, until others lie there.
        """
        self._memory.sweep()
        self._stale = True
        while self._stale:
            self._stale = False
            with self._alone():
                self._look()

    def _look(self) -> None:
        for key in [key for key, held in self._held.items() if held.is_stale]:
            if self._held[key].rest():
                self._held.move_to_end(key)
                self._last = None
            else:
                self._drop(key)
        for key in [key for key, held in self._held.items() if held.rests][:-MOST_RESTING]:
            self._drop(key)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Held tensors that go meanwhile are seen to behind it: it goes through what there is."""
        self._freeing = True
        try:
            yield
        finally:
            self._freeing = False

    def _drop(self, key: tuple[int, ...], *, collect: bool = False) -> None:
        held = self._held.pop(key)
        if held is self._last:
            self._last = None
        held.release(collect=collect)

    # Books -----------------------------------------------------------------------------

    def release(self) -> None:
        """Free all static graphs."""
        with self._lock, self._alone():
            for key in list(self._held):
                self._drop(key, collect=True)
            self._once.clear()

    @property
    def held(self) -> list[Held]:
        """What there is for each set of addresses."""
        return list(self._held.values())

    @property
    def memory(self) -> DoorMemory:
        """What its graphs lie in, with those of others."""
        return self._memory

    def stats(self) -> Stats:
        """The counters of this graph."""
        return self.made.counters.stats()


class TellingGraph(DoorGraph):
    """One that hands out events behind its calls."""

    def __call__(self, *inputs: Any) -> Any:
        try:
            return super().__call__(*inputs)
        finally:
            for counters in (self.made.counters, self._memory.counters):
                counters.deliver(lambda: is_mine(self._lock))


def _let_go(memory: DoorMemory, held: OrderedDict[tuple[int, ...], Held]) -> None:
    memory.let_go(held.values())
