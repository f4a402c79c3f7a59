"""What a torch device module has of what core's driver and runtime call, and what to do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from piecewise_core.errors import TorchUnsupported

__all__ = ["GRAPHS", "STREAMS", "function_of", "graph_class_of", "need", "offered"]

GRAPHS = ("graph_pool_handle", "current_stream", "stream")
STREAMS = ("current_stream", "Stream", "stream", "synchronize")


def need(module: Any, names: Sequence[str], by: str, otherwise: str) -> None:
    """Raise TorchUnsupported unless ``module`` has all of ``names``."""
    lacking = [name for name in names if not hasattr(module, name)]
    if lacking:
        raise TorchUnsupported(
            f"{_title(module)} has no {', '.join(lacking)}, which {by} calls; {otherwise}"
        )


def graph_class_of(module: Any, device_type: str) -> Any:
    """Its graphs' class, named like torch's own: CUDAGraph, XPUGraph. Raises TorchUnsupported."""
    name = f"{device_type.upper()}Graph"
    found = getattr(module, name, None)
    if found is None:
        raise TorchUnsupported(
            f"{_title(module)} has no {name}; give TorchGraphDriver the class of its graphs "
            "(graph_class=), use AcceleratorGraphDriver, or set Platform.graphs to None"
        )
    return found


def function_of(module: Any, name: str) -> Callable[..., Any]:
    """Its function of that name; where it has none, one that does nothing."""
    found: Callable[..., Any] = getattr(module, name, lambda *given: None)
    return found


class offered:  # noqa: N801 -- a decorator
    """A method that is there where its object's ``_module`` has all of ``names``."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._method: Callable[..., Any] = bool

    def __call__(self, method: Callable[..., Any]) -> offered:
        """Take the method."""
        self._method, self.__doc__ = method, method.__doc__
        return self

    def __get__(self, thing: Any, kind: type | None = None) -> Any:
        """The method, bound. Raises AttributeError."""
        if thing is None:
            return self._method
        lacking = [name for name in self._names if not hasattr(thing._module, name)]
        if lacking:
            raise AttributeError(f"{_title(thing._module)} has no {', '.join(lacking)}")
        return self._method.__get__(thing)


def _title(module: Any) -> str:
    return str(getattr(module, "__name__", module))
