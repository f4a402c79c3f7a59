"""Static graphs of every torch device module that has CUDA-style graphs: cuda, hip, xpu, npu.

``torch.cuda.graph`` synchronises, empties the cache and switches streams for every graph; this
drives ``capture_begin`` and ``capture_end`` themselves.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.capture.device_module import GRAPHS, graph_class_of, need
from piecewise_core.capture.torch_advice import Advice, advice_on
from piecewise_core.capture.torch_captures import OpenCapture, TorchCaptures
from piecewise_core.capture.torch_generators import Generators, registration
from piecewise_core.capture.torch_memory import DriverMeter, PoolMemory, TorchPool
from piecewise_core.torch_compat.graphs import bare_replay, weak_tensor_over, workspace_freer

__all__ = ["TorchGraphDriver"]


class TorchGraphDriver:
    """The GraphDriver over one torch device module. Raises TorchUnsupported for half of one.

    ``module``: ``torch.cuda`` or one with the same functions; it is not initialised before the
    first capture. ``device_type``: of its tensors, by default the module's own name.
    ``graph_class``: its graphs' class, by default its CUDAGraph, XPUGraph, ...
    ``error_mode``: where the class takes one; "thread_local" lets other threads use the device.
    ``advice``: error texts of this device and what to do about them. ``unsafe_ops``: operators
    that cannot be captured. ``debug``: keeps what ``dump`` shows, at the cost of memory.

    What torch has for its own devices under private names, another device's module may give:
    ``weak_tensor(tensor)``: a tensor over the same memory that does not keep it alive.
    ``leave_pool(index, handle)``: take back what a capture that never ended told the allocator of
    device ``index``. ``free_workspaces()``: let go of memory that a library keeps per stream.
    ``generators``: "register" tells each graph of the generator (where its class has
    ``register_generator_state``, else as "none"); "automatic": its graphs advance the generator
    by themselves; "none": operators that draw are not captured.
    """

    def __init__(
        self,
        module: Any,
        *,
        device_type: str | None = None,
        graph_class: Callable[[], Any] | None = None,
        error_mode: str = "thread_local",
        advice: Sequence[Advice] = (),
        unsafe_ops: Sequence[str] = (),
        debug: bool = False,
        weak_tensor: Callable[[torch.Tensor], torch.Tensor] | None = None,
        leave_pool: Callable[[int, Any], None] | None = None,
        free_workspaces: Callable[[], None] | None = None,
        generators: Generators = "register",
    ) -> None:
        need(module, GRAPHS, "TorchGraphDriver", "set Platform.graphs to None")
        self._module = module
        self._device_type = device_type or str(module.__name__).rpartition(".")[2]
        self._class: Any = graph_class or graph_class_of(module, self._device_type)
        self._advice = tuple(advice)
        self._unsafe = tuple(unsafe_ops)
        self._debug = debug
        self._captures = TorchCaptures(
            module, self._device_type, self._class, error_mode, leave_pool
        )
        self._weak_tensor = weak_tensor or weak_tensor_over
        self._open: OpenCapture | None = None
        self._pools: weakref.WeakKeyDictionary[Any, TorchPool] = weakref.WeakKeyDictionary()
        self._newest: weakref.ref[TorchPool] | None = None
        self._memory = PoolMemory(module)
        self._known, self._grown = False, False
        self._first = False
        self._free_workspaces = free_workspaces or workspace_freer(self._device_type)
        register = registration(self._class, generators)
        if register is not None:
            self.register_generator = register

    # Capture and replay ---------------------------------------------------------------

    @contextlib.contextmanager
    def capture_context(self) -> Iterator[None]:
        """Around one size: matrix products get workspaces that lie in the pool with all else.

        One from before lies outside, and graphs would read it after it was freed; one that stayed
        would be used by others while graphs use it. So there is none when the first capture begins
        and none when the last has ended; the pool keeps the memory for as long as there are graphs.
        """
        self._first, self._known = True, False
        try:
            yield
        finally:
            self._first = False
            self._free_workspaces()

    def new_pool(self) -> TorchPool:
        """A pool, whose memory goes back whenever all its graphs are gone."""
        return TorchPool(self._module.graph_pool_handle(), DriverMeter(self._module))

    def pool_of(self, handle: Any) -> TorchPool:
        """The pool that the module knows by ``handle``, for as long as it has graphs."""
        return TorchPool(handle, DriverMeter(self._module))

    def new_graph(self) -> Any:
        """An empty graph of the module's class."""
        return self._class(keep_graph=True) if self._debug else self._class()

    def capture_begin(self, graph: Any, pool: Any, stream: Any) -> None:
        """Start recording the current stream, which must be ``stream``."""
        if self._open is not None or self.is_capturing():
            raise RuntimeError(f"{stream} or another stream is capturing already")
        if self._module.current_stream() != stream:
            raise RuntimeError(f"{stream} is not the current stream; make it current to capture")
        self._captures.keep(pool, stream)
        if self._first:
            self._free_workspaces()
            self._first = False
        pool.meter.open()
        self._open = OpenCapture(graph, pool, stream)
        try:
            self._captures.begin(self._open)
        except BaseException:
            self._open = None
            raise

    def capture_end(self, graph: Any) -> None:
        """Stop recording. When it fails the device is usable and the graph empty."""
        running = self._running(graph)
        if self._module.current_stream() != running.stream:
            raise RuntimeError(f"end the capture on {running.stream}, where it began")
        try:
            self._captures.end(graph)
        except BaseException:
            self._known = False
            self._captures.recover(running)
            raise
        finally:
            self._open = None
        self._grown = True
        if self._newest is None or self._newest() is not running.pool:
            self._newest, self._known = weakref.ref(running.pool), False
        self._pools[graph] = running.pool
        running.pool.captured += 1
        running.pool.live += 1

    def replay(self, graph: Any) -> None:
        """Launch the graph on the current stream."""
        graph.replay()

    def replayer(self, graph: Any) -> Callable[[], None]:
        """The launch without a Python frame."""
        return bare_replay(graph)

    def reset(self, graph: Any) -> None:
        """Free the graph; its memory serves the other graphs of its pool, or goes back."""
        self.abort_capture(graph)
        graph.reset()
        self._known = False
        pool = self._pools.pop(graph, None)
        if pool is not None:
            pool.live -= 1
            if not pool.live and (self._open is None or self._open.pool is not pool):
                # Pieces go on holding the pool. What the allocator forgot takes no capture again.
                pool.anchor, pool.handle = None, self._module.graph_pool_handle()

    def is_capturing(self) -> bool:
        """Whether the current stream is recording."""
        ask = getattr(self._module, "is_current_stream_capturing", None)
        ours = self._open is not None and self._module.current_stream() == self._open.stream
        return bool(ours if ask is None else ask())

    def abort_capture(self, graph: Any) -> None:
        """Leave the capture of ``graph``, on whichever stream it runs; nothing if it does not."""
        running = self._open
        if running is None or running.graph is not graph:
            return
        self._known = False
        with self._module.stream(running.stream):
            try:
                self._captures.end(graph)
            except RuntimeError:  # an error has invalidated the capture
                self._captures.recover(running)
            else:
                graph.reset()
            finally:
                self._open = None

    # Memory ---------------------------------------------------------------------------

    def weak_ref(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same memory, not kept alive; the tensor itself where no pool has that memory."""
        if tensor.device.type != self._device_type or type(tensor) is not torch.Tensor:
            return tensor
        address = tensor.untyped_storage().data_ptr()
        if not self._in_pool(address) or tensor.is_conj() or tensor.is_neg():
            return tensor
        return self._weak_tensor(tensor)

    def pool_bytes(self, pool: Any) -> int:
        """Bytes of device memory that ``pool`` holds, in use or not."""
        return self._memory.nbytes(pool.handle)

    def live_bytes(self, pool: Any) -> int:
        """Bytes of ``pool`` that tensors keep from being reused."""
        return self._memory.live_bytes(pool.handle)

    def driver_bytes(self, pool: Any) -> int:
        """What the device lost, beyond torch's memory, while graphs that live were captured."""
        total = pool.meter.close()
        return int(total * pool.live / pool.captured) if pool.captured else 0

    def explain(self, exc: BaseException) -> str | None:
        """What the user should do about an error in a capture."""
        return advice_on(exc, self._advice)

    def unsafe_ops(self) -> Iterable[str]:
        """Operators that cannot be captured."""
        return self._unsafe

    def dump(self, graph: Any, path: Any) -> None:
        """Write the graph as Graphviz text; it must have been made by a driver with ``debug``."""
        if not self._debug:
            raise RuntimeError("make the driver with debug=True to dump its graphs")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it dumps
            graph.debug_dump(str(path))

    def _running(self, graph: Any) -> OpenCapture:
        if self._open is None or self._open.graph is not graph:
            raise RuntimeError("the graph is not being captured; call capture_begin first")
        return self._open

    def _in_pool(self, address: int) -> bool:
        """Whether ``address`` lies in the newest pool; asking the allocator takes long.

        Captures let a pool grow, and only resets let it shrink.
        """
        pool = self._newest() if self._newest is not None else None
        if pool is None:
            return False
        held = self._known and self._memory.holds(address)
        if not held and (self._grown or not self._known):
            self._memory.read(pool.handle)
            self._known, self._grown = True, False
            held = self._memory.holds(address)
        return held
