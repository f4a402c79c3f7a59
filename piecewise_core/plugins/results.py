"""What a platform's methods promise to return, checked where a wrong answer has an author."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from piecewise_core.protocols import Box, CompiledGraph

__all__ = ["RESULTS", "functions_of"]


def _strings(found: Any) -> tuple[str, ...]:
    names = tuple(found)
    if isinstance(found, str) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"expected operators' names, got {found!r}")
    return names


def functions_of(found: Any) -> tuple[Callable[..., Any], ...]:
    """Graph passes, checked to be callable. Raises TypeError."""
    passes = tuple(found)
    if not all(callable(p) for p in passes):
        raise TypeError(f"expected callables that take a GraphModule, got {passes!r}")
    return passes


def _compiled(found: Any) -> CompiledGraph:
    if not isinstance(found, CompiledGraph):
        raise TypeError(f"expected a CompiledGraph, got {found!r}")
    if not callable(found.run) or not (found.handle is None or callable(found.handle)):
        raise TypeError(f"expected callables run and handle, got {found!r}")
    if not (found.serves is None or isinstance(found.serves, Box)):
        raise TypeError(f"expected a Box, or None, as serves, got {found.serves!r}")
    return found


def _short_strings(found: Any) -> dict[str, str]:
    if not isinstance(found, Mapping):
        raise TypeError(f"expected a mapping of short strings, got {found!r}")
    return {str(name): str(value) for name, value in found.items()}


def _whole(found: Any) -> int:
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"expected a whole number, got {found!r}")
    return found


def _pair(found: Any) -> tuple[int, int]:
    free, total = found
    return _whole(free), _whole(total)


def _context(found: Any) -> Any:
    if not isinstance(found, AbstractContextManager):
        raise TypeError(f"expected a context manager, got {found!r}")
    return found


def _callable(found: Any) -> Any:
    if not callable(found):
        raise TypeError(f"expected a callable, got {found!r}")
    return found


def _or_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: None if found is None else convert(found)


RESULTS: Mapping[str, Callable[[Any], Any]] = {
    "capture_context": _context,
    "compile": _compiled,
    "driver_bytes": _whole,
    "elapsed": float,
    "executables": _whole,
    "fingerprint": _short_strings,
    "hash_factors": _short_strings,
    "is_capturing": bool,
    "live_bytes": _whole,
    "load": _compiled,
    "memory_info": _pair,
    "memory_stats": dict,
    "passes": functions_of,
    "pool_bytes": _whole,
    "replayer": _callable,
    "resource_budget": _or_none(_whole),
    "stager": _or_none(_callable),
    "stream": _context,
    "stream_order": _or_none(_callable),
    "unsafe_ops": _strings,
}
"""What core makes of a method's result, so that a malformed one is attributed too."""
