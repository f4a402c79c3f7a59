"""Values on the host that belong to a caller's calls, for drivers that change graphs by them.

Some devices keep host values in a captured graph, the lengths of sequences in attention say, and
must be told each call's own before it replays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

__all__ = ["current_host_values", "host_values"]

_VALUES: ContextVar[Mapping[str, Any]] = ContextVar(
    "piecewise_host_values", default=MappingProxyType({})
)


@contextmanager
def host_values(**values: Any) -> Iterator[None]:
    """Inside, calls of this thread or task carry ``values`` to ``before_replay``, by name.

    They are the caller's, are not copied, and add to those of a block around.
    """
    token = _VALUES.set(MappingProxyType({**_VALUES.get(), **values}))
    try:
        yield
    finally:
        _VALUES.reset(token)


def current_host_values() -> Mapping[str, Any]:
    """Those of the call that is being made."""
    return _VALUES.get()
