"""CUDA's calls for graphs that torch has no name for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from ctypes import POINTER, byref, c_int, c_size_t, c_ubyte, c_uint, c_void_p
from typing import Any

import torch

__all__ = ["Calls", "cuda_calls"]

_KERNEL, _ALIKE = 0, (1, 2, 5)
"""Kinds of nodes: a kernel; copies, fills and empty ones. Others hold what no update replaces."""

_OF_LAUNCHES = range(1, 17)
"""CUlaunchAttributeID, up to the last of CUDA 13. Those that only streams have are refused."""

_OF_FUNCTIONS = range(10, 16)
"""CUfunction_attribute of clusters, which a launch that says nothing of them has."""

_RELAXED = 2
"""cudaStreamCaptureModeRelaxed."""


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


class _Edge(ctypes.Structure):
    """CUgraphEdgeData."""

    _fields_ = (("data", c_ubyte * 8),)


class _Info(ctypes.Structure):
    """cudaGraphExecUpdateResultInfo."""

    _fields_ = (("result", c_int), ("node", c_void_p), ("from_node", c_void_p))


class Calls:
    """What torch has no name for. ``runtime``: libcudart, of CUDA 12 on; ``driver``: libcuda, 12.3.

    ``current``: the current device; ``switch``: makes another one that for a while.
    """

    def __init__(
        self,
        runtime: Any,
        driver: Any,
        current: Callable[[], int] = torch.cuda.current_device,
        switch: Callable[[int], AbstractContextManager[Any]] = torch.cuda.device,
    ) -> None:
        self._current, self._switch = current, switch
        self._update, self._clear = runtime.cudaGraphExecUpdate, runtime.cudaGetLastError
        self._exchange = runtime.cudaThreadExchangeStreamCaptureMode
        self._nodes, self._kind = driver.cuGraphGetNodes, driver.cuGraphNodeGetType
        self._edges = driver.cuGraphGetEdges_v2
        self._params = driver.cuGraphKernelNodeGetParams_v2
        self._of_launch = driver.cuGraphKernelNodeGetAttribute
        self._of_function = driver.cuFuncGetAttribute
        self._update.argtypes = (c_void_p, c_void_p, POINTER(_Info))
        self._nodes.argtypes = (c_void_p, c_void_p, POINTER(c_size_t))
        self._edges.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_size_t))
        self._kind.argtypes = (c_void_p, POINTER(c_int))
        self._params.argtypes = (c_void_p, POINTER(_Params))
        self._of_launch.argtypes = (c_void_p, c_int, c_void_p)
        self._of_function.argtypes = (POINTER(c_int), c_int, c_void_p)

    def update(self, executable: int, graph: int, device: int) -> bool:
        """Have ``executable`` launch ``graph`` from now on; False if CUDA will not."""
        if self._current() == device:
            return self._updated(executable, graph)
        with self._switch(device):
            return self._updated(executable, graph)

    def _updated(self, executable: int, graph: int) -> bool:
        mode = c_int(_RELAXED)
        # A capture of another thread, begun for all threads, must not end in an error by this.
        self._exchange(byref(mode))
        refused = self._update(executable, graph, byref(_Info()))
        self._exchange(byref(mode))
        if refused:
            self._clear()  # or torch's next check raises it
        return not refused

    def unchanging(self, graph: int) -> Any:
        """What an update of it leaves as it is; None where that cannot be known."""
        nodes = self._nodes_of(graph)
        edges = None if nodes is None else self._edges_of(graph, nodes)
        found = [self._of_node(node) for node in nodes or ()]
        return None if edges is None or None in found else (tuple(found), edges)

    def _nodes_of(self, graph: int) -> list[int] | None:
        count = c_size_t()
        if self._nodes(graph, None, byref(count)):
            return None
        nodes = (c_void_p * count.value)()
        return None if self._nodes(graph, nodes, byref(count)) else [node or 0 for node in nodes]

    def _edges_of(self, graph: int, nodes: list[int]) -> tuple[Any, ...] | None:
        """From which node to which, and what kind each is."""
        count = c_size_t()
        if self._edges(graph, None, None, None, byref(count)):
            return None
        begin, end = (c_void_p * count.value)(), (c_void_p * count.value)()
        kinds = (_Edge * count.value)()
        if self._edges(graph, begin, end, kinds, byref(count)):
            return None
        place = {node: at for at, node in enumerate(nodes)}
        made = zip(begin, end, kinds, strict=True)
        return tuple(sorted((place[a or 0], place[b or 0], bytes(kind)) for a, b, kind in made))

    def _of_node(self, node: int) -> Any:
        kind, params = c_int(), _Params()
        if self._kind(node, byref(kind)):
            return None
        if kind.value != _KERNEL:
            return kind.value if kind.value in _ALIKE else None
        if self._params(node, byref(params)) or not params.function:
            return None
        return self._attributes(node, params.function)

    def _attributes(self, node: int, function: int) -> tuple[Any, ...]:
        """Each as it is, or why it is refused."""
        found: list[Any] = []
        for which in _OF_LAUNCHES:
            held = (c_uint * 16)()
            found.append(self._of_launch(node, which, held) or bytes(held).rstrip(b"\0"))
        for which in _OF_FUNCTIONS:
            number = c_int()
            found.append((self._of_function(byref(number), which, function), number.value))
        return tuple(found)


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
