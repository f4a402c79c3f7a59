"""Which stream is current, asked at every replay; known in 2.11 to 2.13, with a fallback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["current_stream_of"]


def current_stream_of(module: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What tells the current stream of a module's current device from others, and the stream.

    Both go on speaking of that device. Torch makes an object of a stream at every question, which
    takes ten times as long as the question: where it has a number too, that is asked for.
    """
    kind = str(getattr(module, "__name__", "")).removeprefix("torch.")
    raw: Any = getattr(torch._C, f"_{kind}_getCurrentRawStream", None)
    if raw is None:
        return module.current_stream, module.current_stream
    index = module.current_device()
    return partial(raw, index), partial(module.current_stream, index)
