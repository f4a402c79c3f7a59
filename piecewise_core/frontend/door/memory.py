"""The graph memory that the Dynamo graphs of one platform share, and the lock of their calls."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Any

from piecewise_core.afterfork import after_fork
from piecewise_core.capture.graphmemory import graph_memory
from piecewise_core.counters import Counters, process_counters
from piecewise_core.frontend.building import Builds
from piecewise_core.frontend.calllock import CallLock
from piecewise_core.frontend.setup import Setup
from piecewise_core.plugins import Selected, select

__all__ = ["DoorMemories", "DoorMemory"]


class DoorMemory:
    """``counters``: of the memory; calls are counted by each graph.

    Results are copied before callers get them (``clone_outputs``), or one graph's replay would
    overwrite what another's gave in the same call; else each graph has a memory of its own.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup  # which keeps a platform that was given as an object
        self.lock = after_fork.frees(CallLock(), self._forked)
        self.builds = Builds(self.lock)
        self.counters = Counters(setup.config.on_event, "torch.compile")
        process_counters.watch(self.counters)
        self.graphs: Any = None
        self._left: list[Any] = []
        if setup.graph_mode != "none":
            self.graphs = graph_memory(setup.platform.declared, setup.config, self.counters)
            self.graphs.open_pool()

    def _forked(self, lost: bool) -> None:
        """In a forked process, where no other thread reads results."""
        if lost and self.graphs is not None:
            self.graphs.callers.begin_anew()

    def let_go(self, left: Iterable[Any]) -> None:
        """Have ``release`` called of each, once no call is under way."""
        self._left += left
        self.sweep()

    def sweep(self) -> None:
        """Release what was let go of, if nothing is under way."""
        if not self._left or not self.lock.acquire(blocking=False):
            return
        try:
            if self.is_free():
                while self._left:
                    self._left.pop().release()
        finally:
            self.lock.release()

    def is_free(self) -> bool:
        """Whether graphs may be made and freed now, by whoever holds the lock."""
        graphs = self.graphs
        return bool(graphs.callers.may_overwrite() and not graphs.platform.graphs.is_capturing())


class DoorMemories:
    """Finds the memory of a setup; it lasts as long as a graph uses it."""

    def __init__(self) -> None:
        self._selected: dict[Any, Selected] = {}
        self._known: weakref.WeakValueDictionary[Any, DoorMemory] = weakref.WeakValueDictionary()

    def platform(self, asked: Any, device_type: str | None) -> Any:
        """The platform to prepare a graph for: one object for all graphs in one memory.

        What a driver captures, its own compiler alone knows how to run for that.
        """
        if not (asked is None or isinstance(asked, str)):
            return asked
        key = asked, device_type, os.environ.get("PIECEWISE_PLATFORM")
        if key not in self._selected:
            self._selected[key] = select(asked, device_type)
        return self._selected[key]

    def of(self, setup: Setup, platform: Any, devices: str) -> DoorMemory:
        """The memory for graphs made with ``setup``.

        ``platform``: as it was asked for; an instance is one by itself. ``devices``: of the graph.
        """
        config = setup.config
        if setup.graph_mode == "none" or not config.clone_outputs:
            return DoorMemory(setup)
        own = 0 if platform is None or isinstance(platform, str) else id(platform)
        key = (setup.selected.info.name, own, devices, config.memory_limit, id(config.on_event))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = DoorMemory(setup)
        return found
