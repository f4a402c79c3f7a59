"""Platforms registered in this process, for tests and notebooks, without installing a plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from piecewise_core.errors import PlatformConflict
from piecewise_core.plugins.announce import check_info
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.protocols import PlatformInfo

__all__ = ["in_process", "registered"]

_REGISTERED: ContextVar[tuple[PlatformInfo, ...]] = ContextVar("piecewise_platforms", default=())


@contextmanager
def registered(info: PlatformInfo) -> Iterator[PlatformInfo]:
    """Make ``info`` selectable inside the ``with`` block, ahead of every installed plugin.

    Holds for the calling thread (or asyncio task) only: a new thread starts without it. Raises
    PluginError if ``info`` is malformed, PlatformConflict if its name is registered already.
    """
    check_info(info, _origin(info))
    outer = _REGISTERED.get()
    if any(info.name == other.name for other in outer):
        raise PlatformConflict(
            f"platform {info.name!r} is already registered in this process; leave that "
            "registered(...) block first, or use another name"
        )
    token = _REGISTERED.set((*outer, info))
    try:
        yield info
    finally:
        _REGISTERED.reset(token)


def in_process() -> tuple[tuple[PluginEntry, PlatformInfo], ...]:
    """What is registered where this is called, outermost first, each with a made-up origin."""
    return tuple((_origin(info), info) for info in _REGISTERED.get())


def _origin(info: PlatformInfo) -> PluginEntry:
    module = getattr(info.create, "__module__", None) or "(no module)"
    return PluginEntry("this process", str(info.name), "", module)
