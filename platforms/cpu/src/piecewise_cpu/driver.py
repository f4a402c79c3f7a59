"""Static plans on a CPU: what graphs are on other devices, as lists of bound kernel calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from piecewise_cpu.arena import Arena
from piecewise_cpu.native import Native
from piecewise_cpu.ops import UNSAFE
from piecewise_cpu.recording import DependsOnValues, Recording

__all__ = ["CpuGraph", "CpuGraphDriver"]


class CpuGraph:
    """Steps to repeat. ``recording``: while it is captured."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.steps: tuple[Callable[[], Any], ...] | None = None

    def replay(self) -> None:
        """Do the steps. Raises RuntimeError when there are none to do."""
        if self.steps is None:
            raise RuntimeError("the graph holds nothing: it was not captured, or was reset")
        if torch.is_inference_mode_enabled():
            for step in self.steps:
                step()
            return
        # The plan's memory was made in inference mode, where alone it may be written to.
        with torch.inference_mode():
            for step in self.steps:
                step()


class _OfThread(threading.local):
    """``recording``: the capture that runs. ``begins``: whether the next one begins a size."""

    recording: Recording | None = None
    begins: bool = True


class CpuGraphDriver:
    """The GraphDriver of the CPU. Capturing runs what it captures; each thread may."""

    runs_captures = True
    operators_only = True

    def __init__(self, native: Native | None = None) -> None:
        self._here = _OfThread()
        self._native = Native() if native is None else native

    @property
    def recording(self) -> Recording | None:
        """What notes down the capture that this thread runs."""
        return self._here.recording

    def noting(self, compiler: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, a piece's code, which captures repeat as a whole.

        Operators are seen, and Inductor's code here tells of itself.
        """
        if compiler in ("eager", "inductor"):
            return run

        def piece(*args: Any) -> Any:
            recording = self.recording
            return run(*args) if recording is None else recording.piece(run, args)

        return piece

    def new_pool(self) -> Arena:
        """Memory that all sizes share."""
        return Arena()

    def new_graph(self) -> CpuGraph:
        """An empty graph."""
        return CpuGraph()

    @contextlib.contextmanager
    def capture_context(self) -> Iterator[None]:
        """Around one size: its buffers begin where every size's do."""
        self._here.begins = True
        yield

    def capture_begin(self, graph: CpuGraph, pool: Arena, stream: Any) -> None:
        """Start to note what this thread does."""
        if self._here.recording is not None:
            raise RuntimeError("a capture is running already")
        if self._here.begins:
            pool.rewind()
            self._here.begins = False
        self._here.recording = graph.recording = Recording(pool)
        graph.recording.start()

    def capture_end(self, graph: CpuGraph) -> None:
        """Stop, and make the graph replayable."""
        graph.steps = self._native.together(self._leave(graph).steps)

    def abort_capture(self, graph: CpuGraph) -> None:
        """Leave a capture that went wrong; nothing if ``graph`` is not captured."""
        if graph.recording is not None:
            self._leave(graph)

    def replay(self, graph: CpuGraph) -> None:
        """Run the graph; done when it returns."""
        graph.replay()

    def replayer(self, graph: CpuGraph) -> Callable[[], None]:
        """The bound method."""
        return graph.replay

    def reset(self, graph: CpuGraph) -> None:
        """Let go of the graph's steps and memory."""
        self.abort_capture(graph)
        graph.steps = None

    def is_capturing(self) -> bool:
        """Whether this thread runs a capture."""
        return self._here.recording is not None

    def register_generator(self, graph: CpuGraph, generator: torch.Generator) -> None:
        """Nothing to do: a replay draws as any call does."""

    def pool_bytes(self, pool: Arena) -> int:
        """Bytes of the buffers of compiled pieces."""
        return pool.nbytes

    def explain(self, exc: BaseException) -> str | None:
        """What to do about operators that cannot be in a plan."""
        if isinstance(exc, DependsOnValues):
            return 'Add the operator to splitting_ops, or set splitting_ops="auto"'
        return None

    def unsafe_ops(self) -> Iterable[str]:
        """Operators that a static plan cannot hold."""
        return UNSAFE

    def _leave(self, graph: CpuGraph) -> Recording:
        recording = graph.recording
        if recording is None:
            raise RuntimeError("the graph is not being captured; call capture_begin first")
        recording.stop()
        self._here.recording = graph.recording = None
        return recording
