"""Static graphs of a device: captured once, replayed with one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from piecewise_core.protocols.values import BudgetContext, ReplayCall

__all__ = ["GraphDriver", "GraphExtras"]


class GraphDriver(Protocol):
    """Static graphs: capture once, replay with one call. GraphExtras' methods are optional.

    Calls come from one thread at a time; captures of one model come one after the other, on one
    stream, into one pool. For every size, in this order: the forward is run once as it is, then
    for each piece ``new_graph``, ``register_generator``, ``capture_begin``, the piece's
    operators, ``capture_end``; later ``replay`` any number of times, and ``reset``. Raise
    anything on failure: core leaves the capture, drops that size and keeps the others.
    """

    def new_pool(self) -> Any:
        """An opaque memory-pool handle; core keeps it as long as a graph captured into it.

        Called once per model, and again after ``release()``. Two pools share no memory.
        """
        ...

    def new_graph(self) -> Any:
        """An empty graph object; opaque to core, which owns it until ``reset``."""
        ...

    def capture_begin(self, graph: Any, pool: Any, stream: Any) -> None:
        """Start recording what ``stream``, which is current, is given into ``graph``.

        Memory allocated until ``capture_end`` comes from ``pool`` and stays at its address as
        long as the graph. Must neither synchronise nor empty caches: it is called once per piece
        and size.
        """
        ...

    def capture_end(self, graph: Any) -> None:
        """Stop recording and make ``graph`` replayable; same thread and stream as its begin.

        Raise if anything spoiled the capture: a graph that lost operators must not replay.
        """
        ...

    def replay(self, graph: Any) -> None:
        """Run the graph on the current stream; returns without waiting.

        It reads and writes the memory it was captured over. Called only when ``capture_end``
        succeeded and ``reset`` was not called.
        """
        ...

    def reset(self, graph: Any) -> None:
        """Free what the graph holds, its share of the pool too; twice is once.

        Also called for a graph whose capture failed.
        """
        ...

    def is_capturing(self) -> bool:
        """Whether the current stream of this thread is recording, whoever began it."""
        ...


class GraphExtras(Protocol):
    """What a GraphDriver may have besides; each says what core does without it.

    ``runs_captures``, a bool, may be set too: whether a capture also runs what it records, as no
    device's does. Then operators between captures run too while capturing. Without: False.
    """

    def replayer(self, graph: Any) -> Callable[[], None]:
        """The cheapest callable that replays ``graph``; made once, behind ``capture_end``.

        Without: ``functools.partial(driver.replay, graph)``.
        """
        ...

    def weak_ref(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor over the same memory that does not keep it alive.

        Same shape, strides, dtype and device; ``tensor`` itself where no pool owns that memory.
        Without: the tensor itself, so that a pool cannot reuse memory between sizes.
        """
        ...

    def register_generator(self, graph: Any, generator: torch.Generator) -> None:
        """Let replays of ``graph`` advance ``generator``; called before ``capture_begin``.

        Without: operators that draw random numbers are splitting ops.
        """
        ...

    def graph_like(self, other: Any | None) -> Any:
        """An empty graph that the executable of ``other`` may launch, to save the driver's memory.

        In place of ``new_graph``'s with ``Config(graph_executables="shared")``. ``other``: one of
        these, of the same place in another size, captured into the same pool; None for the first.
        From ``capture_end`` on one executable may launch both, and any that were made like them:
        ``replay`` and ``replayer`` bring it up to date whenever another of them was launched last.
        Only where that cannot change results; a reset of one leaves the others as they are. Not
        asked for programs that draw random numbers, nor with other ranks. Without: a graph has an
        executable of its own.
        """
        ...

    def executables(self, pool: Any) -> int:
        """How many executables launch the graphs of ``pool``. Without: as many as graphs."""
        ...

    def wait_stream(self, stream: Any, other: Any) -> None:
        """Have work that ``stream`` is given from now on begin behind all that ``other`` was given.

        ``other`` may be capturing: then ``stream`` is drawn into that capture. So core forks a side
        stream from the capturing one and joins it again, with ``Config(graph_streams="two")`` or
        "auto". What either stream allocates in a capture must come from its pool, and serve that
        stream alone once it is free. Called outside of captures too, in the run before; never
        waits. Without: a graph is captured on one stream.
        """
        ...

    def resource_budget(self, ctx: BudgetContext) -> int | None:
        """How many more graphs may be captured; asked once per warm-up, before it captures.

        Core then thins the sizes out, keeping the largest and the smallest. Without, and for
        None: no bound.
        """
        ...

    def explain(self, exc: BaseException) -> str | None:
        """What the user should do about a driver's error, in a sentence or two.

        Called after the capture has been left; look at the causes of ``exc`` as well. Without,
        and for None: the error's own text.
        """
        ...

    def unsafe_ops(self) -> Iterable[str]:
        """Operators that cannot be captured, as "namespace::name" ("aten::nonzero").

        ``splitting_ops="auto"`` cuts at them. Called once per compiled model. Without: none.
        """
        ...

    def capture_context(self) -> AbstractContextManager[Any]:
        """Entered around one size's first run and captures, with the side stream current.

        Without: nothing is entered.
        """
        ...

    def abort_capture(self, graph: Any) -> None:
        """Leave capture mode after a failure, with the device usable.

        Nothing if ``graph`` is not being captured. Without: ``capture_end``, its error ignored.
        """
        ...

    def before_replay(self, graph: Any, call: ReplayCall) -> None:
        """Change ``graph`` for this call, on the host: a length, a pointer, a scalar.

        Called for every graph of a forward, in order, before the first is replayed and before
        the inputs are copied; must not wait for the device. Without: nothing in a graph changes.
        """
        ...

    def pool_bytes(self, pool: Any) -> int:
        """Device memory that ``pool`` holds, in use or not. Without: 0."""
        ...

    def driver_bytes(self, pool: Any) -> int:
        """An estimate of what the driver holds for the graphs of ``pool`` beyond ``pool_bytes``.

        Without: 0.
        """
        ...

    def live_bytes(self, pool: Any) -> int:
        """Bytes of ``pool`` that tensors keep from being reused.

        What a capture leaves there beyond what core holds was cached by a library, and the user
        is told. Asked only of a driver that has ``weak_ref``. Without: not looked at.
        """
        ...

    def stager(
        self, buffers: Sequence[torch.Tensor]
    ) -> Callable[[Sequence[torch.Tensor]], None] | None:
        """A function that fills ``buffers`` from one tensor each, on the current stream.

        Each tensor has its buffer's dtype and memory order, is dense and no longer than it; what
        of the buffer it does not reach is zeroed. Made once per size; called once per forward.
        Without, and for None: copied one by one.
        """
        ...

    def dump(self, graph: Any, path: Path) -> None:
        """Write ``graph`` to file ``path``, which does not exist, for a person to look at.

        Called by ``dump_graphs()``. Without: that is a CaptureFailed which says so.
        """
        ...
