"""What to do about the errors that CUDA, HIP and torch give during a capture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch

__all__ = ["Advice", "advice_on"]

Advice = tuple[str, str]
"""A regular expression over an error's text, and what to do, as one or two sentences."""

_SPLIT = "add the op that does it to splitting_ops"

_KNOWN: tuple[Advice, ...] = (
    (
        r"Cannot copy between CPU and \w+ tensors during \w+ graph capture",
        "Host memory is copied in the captured piece: make that tensor on the device once, before "
        f"the call, or pin it; or {_SPLIT}.",
    ),
    (
        r"legacy stream depend on a capturing|StreamCaptureImplicit",
        "Something issues work to the default stream instead of the current one: make it use the "
        f"current stream, or {_SPLIT}.",
    ),
    (
        r"unjoined work|StreamCaptureUnjoined",
        "An op works on a stream of its own and does not wait for it: let the current stream wait "
        f"for that stream before the op returns, or {_SPLIT}.",
    ),
    (
        r"uncaptured work in another stream|StreamCaptureIsolation",
        "An op waits for work of another stream from before the capture: synchronise before the "
        f"call instead, or {_SPLIT}.",
    ),
    (
        r"merge of separate capture sequences|StreamCaptureMerge",
        "Two captures run at once and one waits for the other: capture one model at a time.",
    ),
    (
        r"different thread|StreamCaptureWrongThread",
        "Another thread touched the capturing stream: call warmup() while no other thread uses "
        "this model's device.",
    ),
    (
        r"generator not in capture mode|unexpected \w+ generator used during capture"
        r"|GeneratorImpl::\w+ during \w+ graph capture",
        "The piece draws from a generator of its own, or reads or sets a generator's state: draw "
        f"from the device's default generator, or {_SPLIT}.",
    ),
    (
        r"not permitted when stream is capturing|StreamCaptureUnsupported"
        r"|not permitted on an event last recorded in a capturing stream|during \w+ graph capture",
        "The piece makes the host wait for the device, or sets a library up, while it is captured "
        "(.item(), .tolist(), nonzero, an index by a mask, a first use of a library): "
        f"{_SPLIT}, or do it before warmup().",
    ),
    (
        r"previous error during capture|StreamCaptureInvalidated|Invalid capture",
        "An earlier operator of the piece broke the capture and its error was swallowed; most "
        f"often the host waited for the device: {_SPLIT}.",
    ),
    (
        r"captured on a non-default stream",
        "The capture was begun on the default stream: make a side stream current first.",
    ),
    (
        r"out of memory|OUT_OF_MEMORY|MemoryAllocation",
        "Capture fewer or smaller sizes (capture_sizes), set memory_limit, or leave the device "
        "more free memory.",
    ),
)


def advice_on(error: BaseException, further: Iterable[Advice] = ()) -> str | None:
    """What to do about ``error`` or the first of its causes that is known; None if none is.

    ``further``: looked at first.
    """
    table = (*further, *_KNOWN)
    for cause in _causes(error):
        text = str(cause)
        for pattern, what in table:
            if re.search(pattern, text, re.IGNORECASE):
                return what
        if isinstance(cause, torch.OutOfMemoryError):
            return _KNOWN[-1][1]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it, the deepest last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
