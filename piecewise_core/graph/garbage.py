"""Python's garbage collector, held off while it would do harm or nothing useful."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["no_collection"]


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """No automatic collection in here; afterwards the collector is as it was.

    A compiler makes objects by the million, and every collection that they set off walks all that
    tracing left behind: a tenth of the time, growing with the model. In a capture a collection
    may free a graph or tensor, which breaks the capture.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
