"""CUDA graphs: the driver of every torch device, and inputs staged by one kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.building_blocks import TorchGraphDriver
from piecewise_cuda.executables import LAST, Family, SharedGraph
from piecewise_cuda.graphcalls import Calls, cuda_calls
from piecewise_cuda.ops import UNSAFE

__all__ = ["CudaGraphDriver"]

logger = logging.getLogger(__name__)


class CudaGraphDriver(TorchGraphDriver):
    """The GraphDriver of the current CUDA device. ``debug``: makes ``dump`` possible.

    ``module``: in place of ``torch.cuda``; ``calls``: in place of the libraries that torch loaded.
    """

    def __init__(
        self, module: Any = torch.cuda, *, debug: bool = False, calls: Calls | None = None
    ) -> None:
        super().__init__(module, unsafe_ops=UNSAFE, debug=debug)
        self._unstaged: set[int] = set()
        self._calls = calls or cuda_calls(torch.version.cuda, self._class)
        if self._calls is not None:
            self.graph_like = self._graph_like

    def _graph_like(self, other: Any | None) -> Any:
        """An empty graph that shares an executable with those whose launches are alike."""
        if self._calls is None or self._module.get_device_capability()[0] > LAST:
            return self.new_graph()
        family = getattr(other, "family", None)
        if family is None:
            family = Family(self._calls, self.replayer, self._module.current_device())
        return SharedGraph(self._class(keep_graph=True), family)

    def executables(self, pool: Any) -> int:
        """How many executables launch the graphs of ``pool``: fewer where they are shared."""
        graphs = [graph for graph, own in self._pools.items() if own is pool]
        return len({id(getattr(graph, "executable", graph)) for graph in graphs})

    def wait_stream(self, stream: Any, other: Any) -> None:
        """Have ``stream`` go on behind what ``other`` was given, by an event; nobody waits.

        Torch's allocator has streams that a capture took in allocate from its pool, each from
        memory of its own, and its library of products keeps a workspace for each.
        """
        stream.wait_stream(other)

    def stager(
        self, buffers: Sequence[torch.Tensor]
    ) -> Callable[[Sequence[torch.Tensor]], None] | None:
        """One launch for all inputs; None without Triton or for buffers elsewhere.

        None too, with one warning, where Triton cannot make or launch the kernel.
        """
        if not buffers or any(b.device != buffers[0].device for b in buffers):
            return None
        if buffers[0].device.type != "cuda" or len(buffers) in self._unstaged:
            return None
        try:
            return _copier(buffers)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._give_up(len(buffers), error)
            return None

    def _give_up(self, count: int, error: Exception) -> None:
        """Stage ``count`` buffers no more: every size of a model would try, and fail, again."""
        level = logging.DEBUG if self._unstaged else logging.WARNING
        self._unstaged.add(count)
        logger.log(
            level,
            "inputs are copied one by one, which takes the host longer at every replay: Triton "
            "cannot make the kernel that copies all at once (%s: %s); install a C compiler with "
            "Python's headers, or load a bundle that was saved after its sizes were captured",
            type(error).__name__,
            error,
        )


def _copier(buffers: Sequence[torch.Tensor]) -> Callable[[Sequence[torch.Tensor]], None] | None:
    try:
        from piecewise_cuda.staging import Stager
    except ImportError as exc:
        logger.info("inputs are copied one by one: %s", exc)
        return None
    copy = Stager(buffers).copier()
    # Onto themselves, which changes nothing: a launch that another Triton refuses is refused
    # now, and not in a call that somebody waits for.
    copy(buffers)
    return copy
