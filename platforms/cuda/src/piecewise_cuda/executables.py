"""CUDA graphs that one executable launches in turn: most of the driver's memory for them is that.

``cudaGraphExecUpdate`` says success, and keeps attributes of a launch that nobody can read back,
where a node gets another function; the kernel may then never end (sgl-project/sglang#37657). So
only graphs share whose nodes run the same functions, in the same order. Blackwell's launches may
have such attributes even so, and nothing is shared there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from ctypes import POINTER, byref, c_int, c_size_t, c_uint, c_void_p
from typing import Any
from weakref import WeakValueDictionary

import torch

__all__ = ["LAST", "Calls", "Family", "SharedGraph", "cuda_calls"]

_KERNEL, _ALIKE = 0, (1, 2, 5)
"""Kinds of nodes: a kernel; copies, fills and empty ones. Others hold what no update replaces."""

_RELAXED = 2
"""cudaStreamCaptureModeRelaxed."""

LAST = 9
"""The last compute capability whose launches have no attribute that cannot be read back."""


class _Params(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS of version 2."""

    _fields_ = (
        ("function", c_void_p),
        ("launch", c_uint * 7),
        ("arguments", c_void_p),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    )


class _Info(ctypes.Structure):
    """cudaGraphExecUpdateResultInfo."""

    _fields_ = (("result", c_int), ("node", c_void_p), ("from_node", c_void_p))


class Calls:
    """What torch has no name for. ``runtime``: libcudart, of CUDA 12 on; ``driver``: libcuda.

    ``switch``: makes a device current.
    """

    def __init__(
        self,
        runtime: Any,
        driver: Any,
        switch: Callable[[int], AbstractContextManager[Any]] = torch.cuda.device,
    ) -> None:
        self._switch = switch
        self._update, self._clear = runtime.cudaGraphExecUpdate, runtime.cudaGetLastError
        self._nodes, self._kind = driver.cuGraphGetNodes, driver.cuGraphNodeGetType
        self._params = driver.cuGraphKernelNodeGetParams_v2
        self._exchange = runtime.cudaThreadExchangeStreamCaptureMode
        self._update.argtypes = (c_void_p, c_void_p, POINTER(_Info))
        self._nodes.argtypes = (c_void_p, c_void_p, POINTER(c_size_t))
        self._kind.argtypes = (c_void_p, POINTER(c_int))
        self._params.argtypes = (c_void_p, POINTER(_Params))

    def update(self, executable: int, graph: int, device: int) -> bool:
        """Have ``executable`` launch ``graph`` from now on; False if CUDA will not."""
        mode = c_int(_RELAXED)
        with self._switch(device):
            # A capture of another thread, begun for all threads, must not end in an error by this.
            self._exchange(byref(mode))
            refused = self._update(executable, graph, byref(_Info()))
            self._exchange(byref(mode))
            if refused:
                self._clear()  # or torch's next check raises it
        return not refused

    def functions(self, graph: int) -> tuple[Any, ...] | None:
        """What each node runs; None where that is not all that tells whether graphs may share."""
        count = c_size_t()
        if self._nodes(graph, None, byref(count)):
            return None
        nodes = (c_void_p * count.value)()
        if self._nodes(graph, nodes, byref(count)):
            return None
        found = [self._function(node or 0) for node in nodes]
        return None if None in found else tuple(found)

    def _function(self, node: int) -> Any:
        kind, params = c_int(), _Params()
        if self._kind(node, byref(kind)):
            return None
        if kind.value != _KERNEL:
            return kind.value if kind.value in _ALIKE else None
        if self._params(node, byref(params)) or not (params.function or params.kernel):
            return None
        return params.function, params.kernel


def cuda_calls(
    version: str | None, graph_class: Any, load: Callable[[str], Any] = ctypes.CDLL
) -> Calls | None:
    """The libraries that torch has loaded, of CUDA ``version``; None where something is missing."""
    major = int((version or "0").partition(".")[0])
    if major < 12 or not hasattr(graph_class, "raw_cuda_graph_exec"):
        return None
    try:
        return Calls(load(f"libcudart.so.{major}"), load("libcuda.so.1"))
    except (OSError, AttributeError):
        return None


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
        functions = self.calls.functions(graph.raw_cuda_graph())
        found = None if functions is None else self._known.get((pool, functions))
        if found is None or not found.take(graph):
            found = Executable(graph, self)
            if functions is not None:
                self._known.setdefault((pool, functions), found)
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
