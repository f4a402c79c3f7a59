"""What all forms of calls of one callable share: compiled pieces, graph memory, the lock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch

from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.output_ownership import Methods
from piecewise_core.compile.scheduler import Scheduler
from piecewise_core.config import Config
from piecewise_core.counters import Counters, process_counters
from piecewise_core.events import name_of
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.building import Builds, Unready
from piecewise_core.frontend.calllock import CallLock
from piecewise_core.frontend.drift import Drift
from piecewise_core.frontend.fan import Fan
from piecewise_core.frontend.naming import model_name
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.tracestore import TraceStore
from piecewise_core.graph.contracts import Contracts
from piecewise_core.graph.layouts import Layouts
from piecewise_core.graph.names import Matcher
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.store.protocol import Store

__all__ = ["Shared"]

Result = TypeVar("Result")


class Shared:
    """``fn``: the callable as the user wrote it. ``setup``: config, platform and compiler.

    ``front``: where compiled pieces are looked for first. ``session()``: whose this is.
    ``sealed``: "error" or "warn" once nothing may be traced, compiled or captured any more.
    ``kept``: whether traces may come from the compile store, and go there. ``matcher``: the
    splitting ops. ``memory``: of static graphs; None where there are none. ``retraced``: why it was
    last traced anew, or "".
    ``methods``: of the model, that now call it.
    ``locked``: locks that the model takes at every call. ``ranks``: the processes that serve the
    model with this one.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        setup: Setup,
        front: Store | None,
        session: Callable[[], object],
    ) -> None:
        self.fn = fn
        self.setup = setup
        self.config: Config = setup.config
        self.counters = Counters(self.config.on_event, name_of(fn))
        process_counters.watch(self.counters)
        self.drift = Drift(self.config, self.counters)
        self.artifact_cache = cache = setup.artifact_cache(front)
        cache.model = model_name(fn)
        cache.ledger.counters = self.counters
        self.scheduler = Scheduler(
            setup.compiler, self.config, self.counters, setup.rewrites, setup.is_capturing, cache
        )
        self.scheduler.helpers = self._fan = Fan(setup, cache)
        in_background = self.config.compile_mode == "background"
        self.background = Background(setup, cache, self.counters.deliver) if in_background else None
        self._session = session
        facts = {"platform": setup.selected.info.name, "graphs": setup.graph_mode}
        self.ranks = Ranks(self.config, fn, facts, setup.rewrites.sharing)
        self.methods = Methods()
        self.begin_memory()
        self.matcher = Matcher(self.config.splitting_ops, setup.unsafe_ops)
        self.splits = setup.splits(self.matcher)
        self.layouts = Layouts(self.config.dims, auto=self.config.regions == "auto")
        self.contracts = Contracts((*self.config.captures, *self.config.sizes))
        self.traces = TraceStore(cache.store, fn, self.config, cache.run)
        self.lock = setup.call_lock() if setup.graph_mode != "none" else CallLock()
        self.builds = Builds(self.lock, self.ranks.busy.working)
        self.sealed: str | None = None
        self.kept = True
        self.retraced = ""
        self.locked: set[str] = set()
        self._numbers: set[int] = set()

    def follow(self) -> None:
        """Take the forward that a module's class has by now: it, or the class, was replaced.

        One that was set on the module itself is called in place of the compiled one, by Python.
        """
        owner = getattr(self.fn, "__self__", None)
        if isinstance(owner, torch.nn.Module) and self.fn.__name__ == "forward":
            self.fn = self.traces.fn = MethodType(type(owner).forward, owner)

    def begin_memory(self) -> None:
        """Have the memory of graphs, with none in it yet."""
        self.memory: GraphMemory | None = None
        if self.setup.graph_mode != "none":
            name = self.artifact_cache.model
            self.memory = self.setup.graph_memory(self.counters, self._session(), name)
            self.memory.callers.methods = self.methods

    def once_ready(self, step: Callable[[], Result]) -> Result:
        """``step()`` under the call lock, made again whenever it lacks something."""
        while True:
            with self.lock:
                try:
                    return step()
                except Unready as missing:
                    unready = missing.with_traceback(None)
            self.builds.have(unready)

    def begin_workers(self) -> None:
        """Before a trace: start the processes that will compile its pieces, if they are known."""
        owner = getattr(self.fn, "__self__", None)
        first = self.background is None and not self.scheduler.artifacts
        if first and isinstance(owner, torch.nn.Module):
            self._fan.begin(owner)

    def number(self) -> int:
        """The first number that no region has. Call it under the building lock."""
        found = next(n for n in itertools.count() if n not in self._numbers)
        self._numbers.add(found)
        return found

    def give_back(self, number: int) -> None:
        """A region with this number is no more."""
        self._numbers.discard(number)
