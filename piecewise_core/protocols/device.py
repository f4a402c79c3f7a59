"""Streams and memory of a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceRuntime", "NoStreams", "RuntimeExtras"]


@runtime_checkable
class DeviceRuntime(Protocol):
    """Streams of one device type. The methods of RuntimeExtras are optional.

    A stream is opaque to core. "Current" is per thread. A device without streams takes
    ``NoStreams``. Called from any thread.
    """

    def current_stream(self) -> Any:
        """The stream that work issued by this thread goes to."""
        ...

    def new_stream(self) -> Any:
        """A fresh stream, for warm-up and capture; core makes one per model and keeps it."""
        ...

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which ``stream`` is current in this thread; the old one is, behind it."""
        ...

    def synchronize(self) -> None:
        """Return when all work issued to the current device, on every stream, is done.

        Never called inside a capture.
        """
        ...


class NoStreams:
    """The DeviceRuntime of a device without streams, whose work is done when a call returns.

    One that has a queue overrides ``synchronize``; methods of RuntimeExtras may be added.
    """

    def current_stream(self) -> None:
        """None stands for the only stream."""

    def new_stream(self) -> None:
        """The same one again."""

    def stream(self, stream: Any) -> AbstractContextManager[None]:
        """Changes nothing."""
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing is ever pending."""


class RuntimeExtras(Protocol):
    """What a DeviceRuntime may have besides; each says what core does without it."""

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of the current device, as its driver sees them.

        Without: messages about memory that ran out, and `piecewise doctor`, leave them out.
        """
        ...

    def memory_stats(self) -> Mapping[str, int]:
        """Counts of the device's allocator by names of its own, bytes where they are sizes.

        Asked when memory ran out in a capture, and logged. Without: nothing is logged.
        """
        ...

    def empty_cache(self) -> None:
        """Give memory that no tensor and no graph uses back. Never called inside a capture.

        Called by ``release()``. Without: that memory stays with the allocator.
        """
        ...

    def rng(self) -> torch.Generator:
        """The generator that operators of the current device draw from by default.

        Registered with graphs, and put back behind a capture. Without: a capture moves the
        device's random state, and no generator is registered.
        """
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """What code compiled for the current device depends on: model, architecture, driver.

        Short strings; equal on every device and machine that can run the same code. Never an
        index, a serial number or a path. Part of the key of every entry of the compile store.
        May initialise the device. Without: only what core finds out about the processor.
        """
        ...

    def stream_order(self) -> Callable[[], None] | None:
        """Make a function that is called before each replay that uses the same buffers.

        Work that the current stream is given behind a call of it begins after all that the stream
        of the last call has been given by then. It costs next to nothing where that is the same
        stream; never waits in a capture. None: work is done when a call returns. Asked for once for
        each pool of graphs, on the device that they are captured on. Without: core compares
        ``current_stream()``, and synchronizes where it has changed.
        """
        ...

    def elapsed(self, run: Callable[[], object]) -> float:
        """Seconds between the start and the end of ``run()``'s work on the current stream.

        ``run`` is called once. By the device's own clock; returns when the work is done. Without:
        by the host's, and ``capture_compile="auto"`` measures nothing.
        """
        ...
