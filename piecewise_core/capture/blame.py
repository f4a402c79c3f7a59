"""Whose an error is, and what to do about it: of captures that fail and replays that do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed, OutOfGraphMemory, PiecewiseError, PlatformFault
from piecewise_core.plugins import Declared, error_text, raised
from piecewise_core.ranges import Sizes

__all__ = ["blamer", "failed_as"]

logger = logging.getLogger(__name__)


def failed_as(
    platform: Declared, current: str, sizes: Sizes, error: BaseException
) -> BaseException:
    """What a capture that ``error`` ended raises: that, or what explains it.

    ``current``: the piece or operator that was captured.
    """
    if type(error) is CaptureFailed:  # of ours, and complete but for the size
        return CaptureFailed(f"sizes {sizes} cannot be captured: {error}")
    ours = isinstance(error, PiecewiseError) and not isinstance(error, PlatformFault)
    if not isinstance(error, Exception) or ours:
        return error
    return _explained(platform, current, sizes, error)


def _explained(platform: Declared, at: str, sizes: Sizes, error: Exception) -> CaptureFailed:
    """What a failed capture of ``sizes`` raises: what failed, whose it is, and what to do.

    ``at``: the piece or operator that was captured.
    """
    cause = raised(error)
    advice = _advice(platform, cause)
    memory = isinstance(cause, torch.OutOfMemoryError) or "out of memory" in str(cause).lower()
    kind = OutOfGraphMemory if memory else CaptureFailed
    left = _memory(platform) if memory else ""
    return kind(
        f"capturing sizes {sizes} failed at {at}: {error_text(error)}{left}. "
        f"{advice or 'Sizes without a graph are served by compiled ranges'}"
    )


def blamer(
    platform: Declared, sizes: Sizes, replays: Collection[int]
) -> Callable[[Any, Exception], Exception]:
    """Tells errors of replays apart from those of operators between them.

    ``replays``: ids of the steps that are the driver's own. The result takes a step that raised,
    None for staging the inputs, and gives the error to raise.
    """
    by = platform.by

    def blame(step: Any, error: Exception) -> Exception:
        if isinstance(error, PiecewiseError):
            return error
        if id(step) in replays:
            method, what = "GraphDriver.replay", "replayed"
        elif step is None and platform.stages:
            method, what = "GraphDriver.stager", "staged"
        else:
            return error
        return PlatformFault(
            f"{by}: {method} raised {error_text(error)} when sizes {sizes} were {what}; release() "
            "and restore() capture anew, and graph_mode='none' runs without graphs",
            by=by,
            method=method,
        )

    return blame


def _advice(platform: Declared, cause: BaseException) -> str | None:
    """What the driver says about its error; that it cannot say must not hide the error."""
    try:
        return platform.explain(cause)
    except Exception as error:
        logger.warning("%s", error_text(error))
        return None


def _memory(platform: Declared) -> str:
    """What the device has left, for a message; its allocator's counts go to the log."""
    try:
        if platform.memory_stats is not None:
            logger.info("memory ran out; the allocator counts %s", dict(platform.memory_stats()))
        if platform.memory_info is None:
            return ""
        free, total = platform.memory_info()
    except Exception as error:
        logger.warning("%s", error_text(error))
        return ""
    return f" ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are free)"
