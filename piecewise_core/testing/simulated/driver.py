"""The GraphDriver of the simulated device, with knobs for each way in which devices fail."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from piecewise_core.protocols import BudgetContext
from piecewise_core.testing.simulated.device import Device, DeviceFault
from piecewise_core.testing.simulated.frozen import Layout, unseen
from piecewise_core.testing.simulated.graph import Family, SimulatedGraph
from piecewise_core.testing.simulated.pool import Pool, storage_at
from piecewise_core.testing.simulated.recorder import Capture
from piecewise_core.testing.simulated.recording import Recording
from piecewise_core.testing.simulated.staging import stager
from piecewise_core.testing.simulated.waits import UNSAFE

__all__ = ["SimulatedDriver"]

_BYTES_PER_GRAPH, _BYTES_PER_EXECUTABLE = 1024, 3072  # what the driver is said to hold


class SimulatedDriver:
    """Static graphs on CPU tensors. See SimulatedPlatform for what the arguments do.

    ``live_graphs``: how many graphs exist now. ``tells_budget``: whether ``resource_budget``
    knows of ``max_graphs``, or lets a capture find out.
    """

    runs_captures = True

    operators_only = True
    """Inductor's kernels never pass the dispatcher: captures have their pieces as written."""

    def __init__(
        self,
        device: Device,
        *,
        max_graphs: int | None = None,
        fail_capture_at: int | None = None,
        weak_refs: bool = True,
        generators: bool = True,
        drop_op: str | None = None,
        shares: bool = True,
        forks: bool = True,
    ) -> None:
        self._device = device
        self._max_graphs = max_graphs
        self._fail_at = fail_capture_at
        self._drop = drop_op
        self._advances = generators
        self._ends = itertools.count(1)
        self._thread = 0
        self._graphs: dict[int, weakref.finalize[Any, Any]] = {}
        self._shared: weakref.WeakSet[SimulatedGraph] = weakref.WeakSet()
        self.tells_budget = True
        if weak_refs:
            self.weak_ref = self._weak_ref
        if generators:
            self.register_generator = self._register_generator
        if shares:
            self.graph_like, self.executables = self._graph_like, self._executables
        if forks:
            self.wait_stream = self._wait_stream

    # Capture and replay ---------------------------------------------------------------

    def new_pool(self) -> Any:
        """An empty pool."""
        return Pool(self._device.memory)

    def new_graph(self) -> Any:
        """An empty graph."""
        return SimulatedGraph(self._device)

    def capture_begin(self, graph: Any, pool: Any, stream: Any) -> None:
        """Start recording this thread's operators. Raises DeviceFault where a device would."""
        self._device.forbid_in_capture("capture_begin", "Capture one plan at a time.")
        if stream is not self._device.stream:
            raise DeviceFault(
                f"capture_begin on {stream}, which is not current ({self._device.stream} is)",
                "Make the stream current first.",
            )
        if graph.recording is not None:
            raise DeviceFault("capture_begin on a graph that is captured", "Reset it first.")
        if self._max_graphs is not None and self.live_graphs >= self._max_graphs:
            raise DeviceFault(
                f"no graph handle is free ({self._max_graphs} exist)",
                "Capture fewer sizes: shorten capture_sizes.",
            )
        self._enter(graph, pool)
        advanced = graph.generators if self._advances else None
        capture = Capture(self._device, pool, stream, drop=self._drop, generators=advanced)
        graph.capture = self._device.capture = capture
        self._thread = threading.get_ident()
        capture.begin()

    def capture_end(self, graph: Any) -> None:
        """Stop recording; a graph whose capture was spoiled is not replayable."""
        capture = graph.capture
        if capture is None:
            raise DeviceFault("capture_end of a graph that is not capturing", "Begin it first.")
        if threading.get_ident() != self._thread or self._device.stream is not capture.stream:
            raise DeviceFault(
                "capture_end on another thread or stream than capture_begin",
                "End a capture where it began.",
            )
        open_end = capture.order.unjoined()
        recording = self._leave_capture(graph, capture)
        if open_end is not None:
            raise DeviceFault(
                f"the capture ended with work on {open_end} that was not joined",
                "Have the capturing stream wait for every stream that waited for it.",
            )
        if next(self._ends) == self._fail_at:
            raise DeviceFault("the capture failed (fail_capture_at)", "This failure was asked for.")
        if capture.spoiled:
            raise DeviceFault(
                "the capture was invalidated by an earlier error", "Look at the first error."
            )
        graph.captured(recording)

    def replay(self, graph: Any) -> None:
        """Run ``graph``."""
        graph.replay()

    def replayer(self, graph: Any) -> Callable[[], None]:
        """The replay as a bound method."""
        replay: Callable[[], None] = graph.replay
        return replay

    def reset(self, graph: Any) -> None:
        """Free the graph; with its last graph and tensor a pool gives its memory back."""
        if graph.capture is not None:  # whatever abort_capture was replaced by
            self._leave_capture(graph, graph.capture)
        graph.reset()
        if (gone := self._graphs.pop(id(graph), None)) is not None:
            gone()

    def is_capturing(self) -> bool:
        """Whether the current stream of this thread is recording."""
        capture = self._device.capture
        return capture is not None and capture.takes(self._device.stream)

    def abort_capture(self, graph: Any) -> None:
        """Leave a capture that went wrong; nothing if there is none."""
        if graph.capture is not None:
            self._leave_capture(graph, graph.capture)

    # Memory ---------------------------------------------------------------------------

    def pool_bytes(self, pool: Any) -> int:
        """Bytes that ``pool`` holds, in use or not."""
        return int(pool.nbytes)

    def live_bytes(self, pool: Any) -> int:
        """Bytes of ``pool`` that tensors keep from being reused."""
        return int(pool.live_bytes)

    def driver_bytes(self, pool: Any) -> int:
        """1 KiB for each graph in ``pool``, and 3 for each executable."""
        graphs = int(pool.graph_count)
        return _BYTES_PER_GRAPH * graphs + _BYTES_PER_EXECUTABLE * self._executables(pool)

    def _weak_ref(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same memory, which it does not keep alive; itself, where no pool has that memory."""
        storage = tensor.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        segment = self._device.memory.owner_of(address) if nbytes else None
        if segment is None:
            return tensor
        with unseen():
            return Layout.of(tensor).over(storage_at(address, nbytes, segment))

    # Executables ----------------------------------------------------------------------

    def _graph_like(self, other: Any | None) -> Any:
        """An empty graph whose executable launches those that do the same operators, too."""
        graph = SimulatedGraph(self._device, Family() if other is None else other.family)
        self._shared.add(graph)
        return graph

    def _executables(self, pool: Any) -> int:
        """How many there are: those that launch several graphs once."""
        shared = [g for g in self._shared if g.pool is pool and g.executable is not None]
        return int(pool.graph_count) - len(shared) + len({id(g.executable) for g in shared})

    # What else a driver knows ---------------------------------------------------------

    stager = staticmethod(stager)

    def _wait_stream(self, stream: Any, other: Any) -> None:
        """Have ``stream`` go on behind what ``other`` was given."""
        stream.wait_stream(other)

    def _register_generator(self, graph: Any, generator: torch.Generator) -> None:
        """Let operators of ``graph`` draw from ``generator``, and replays advance it."""
        graph.generators.append(generator)

    @property
    def live_graphs(self) -> int:
        """Graphs that exist: begun, and neither reset nor garbage."""
        return sum(1 for graph in self._graphs.values() if graph.alive)

    def resource_budget(self, ctx: BudgetContext) -> int | None:
        """How many more graphs there are handles for."""
        if self._max_graphs is None or not self.tells_budget:
            return None
        return self._max_graphs - self.live_graphs

    def explain(self, exc: BaseException) -> str | None:
        """The advice that goes with the first DeviceFault in the chain of causes."""
        seen: BaseException | None = exc
        while seen is not None:
            if isinstance(seen, DeviceFault):
                return seen.advice
            if isinstance(seen, torch.OutOfMemoryError):
                return "Capture fewer or smaller sizes, or raise memory_bytes."
            seen = seen.__cause__ or seen.__context__
        return None

    def unsafe_ops(self) -> Iterable[str]:
        """Operators that wait for the device."""
        return UNSAFE

    def dump(self, graph: Any, path: Any) -> None:
        """Write the operators of ``graph`` as text."""
        Path(path).write_text(f"{graph.recording}\n", encoding="utf-8")

    # Bookkeeping ----------------------------------------------------------------------

    def _enter(self, graph: SimulatedGraph, pool: Pool) -> None:
        """Count ``graph`` until it is reset or garbage."""
        self._graphs = {key: gone for key, gone in self._graphs.items() if gone.alive}
        if id(graph) not in self._graphs:
            pool.enter(id(graph))
            gone = weakref.finalize(graph, pool.leave, id(graph))
            gone.atexit = False
            self._graphs[id(graph)] = gone
        graph.pool = pool

    def _leave_capture(self, graph: SimulatedGraph, capture: Capture) -> Recording:
        graph.capture = self._device.capture = None
        return capture.end()
