"""CUDA graphs that one executable launches in turn: most of the driver's memory for them is that.

``cudaGraphExecUpdate`` replaces functions, grids and arguments. It says success, and keeps the
rest, where a launch has other attributes; the kernel may then never end (sgl-project/sglang#37657).
So only graphs share that have the same edges and whose launches have the same attributes, node by
node. Blackwell's may have some that nobody can read back, and nothing is shared there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from piecewise_cuda.graphcalls import Calls

__all__ = ["LAST", "Family", "SharedGraph"]

LAST = 9
"""The last compute capability whose launches have no attribute that cannot be read back."""


class Executable:
    """What launches some graphs, in turn. Made of the first, which lives until all are reset.

    ``holds``: the graph that it launches now.
    """

    def __init__(self, graph: Any, family: Family) -> None:
        self._family = family
        self._made_of = graph
        self._users = 0
        self._make()
        self.launch = family.bare(graph)

    def _make(self) -> None:
        self._made_of.instantiate()
        self._handle = self._made_of.raw_cuda_graph_exec()
        self.holds: Any = self._made_of

    def join(self) -> Executable:
        """One more graph is launched by it."""
        self._users += 1
        return self

    def take(self, graph: Any) -> bool:
        """Hold ``graph``; False if CUDA will not."""
        self.holds = None  # unknown, should it fail
        family = self._family
        if family.calls.update(self._handle, graph.raw_cuda_graph(), family.device):
            self.holds = graph
        return self.holds is graph

    def launch_alone(self, graph: Any) -> None:
        """Launch what it holds no more, though it did: the device may be out of memory."""
        if graph is self._made_of:
            self._make()
            self.launch()
        else:
            graph.replay()  # by an executable of its own, which torch makes

    def leave(self, graph: Any) -> None:
        """``graph`` is launched no more. What it was made of stays in the pool with its users."""
        self._users -= 1
        if self.holds is graph:
            self.holds = None
        if graph is not self._made_of:
            graph.reset()
        if not self._users:
            self._made_of.reset()


class Family:
    """The executables of graphs that were made like one another, on ``device``.

    ``bare``: gives torch's launch of a graph.
    """

    def __init__(
        self, calls: Calls, bare: Callable[[Any], Callable[[], None]], device: int
    ) -> None:
        self.calls, self.bare, self.device = calls, bare, device
        self._known: WeakValueDictionary[Any, Executable] = WeakValueDictionary()

    def executable(self, graph: Any, pool: Any) -> Executable:
        """What is to launch ``graph``, just captured into ``pool``, and holds it."""
        like = self.calls.unchanging(graph.raw_cuda_graph())
        found = None if like is None else self._known.get((pool, like))
        if found is None or not found.take(graph):
            found = Executable(graph, self)
            if like is not None:
                self._known.setdefault((pool, like), found)
        return found.join()


class SharedGraph:
    """Stands for ``graph``, of torch, which an executable of its ``family`` launches."""

    def __init__(self, graph: Any, family: Family) -> None:
        self._graph = graph
        self._gone = False
        self._pool: Any = None
        self.family = family
        self.executable: Executable | None = None
        self.register_generator_state = graph.register_generator_state
        self.debug_dump = graph.debug_dump

    def capture_begin(self, pool: Any, **mode: Any) -> None:
        """As torch's."""
        self._pool = pool
        self._graph.capture_begin(pool=pool, **mode)

    def capture_end(self) -> None:
        """As torch's; then find an executable, or make one."""
        self._graph.capture_end()
        self.executable = self.family.executable(self._graph, self._pool)

    def replay(self) -> None:
        """Launch the graph, whatever the executable launched last."""
        executable = self.executable
        if executable is None:
            raise RuntimeError("the graph holds nothing; capture it first")
        if executable.holds is self._graph or executable.take(self._graph):
            executable.launch()
        else:
            executable.launch_alone(self._graph)

    def reset(self) -> None:
        """Empty for good. Those that share its executable stay as they are."""
        executable, self.executable = self.executable, None
        if executable is not None:
            executable.leave(self._graph)
            self._gone = True
        elif not self._gone:
            self._graph.reset()
