"""What a scaffold is told about a device's module: which parts of a platform it can carry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["DeviceFacts", "look"]


@dataclass(frozen=True)
class DeviceFacts:
    """``looked``: whether the module could be imported; all that CUDA's has is assumed if not.

    ``streams``, ``graphs``: whether TorchRuntime and TorchGraphDriver can be made of it.
    ``graph_class``: its name, where it is not the one that the driver looks for. ``synchronize``:
    whether the module has that. ``why``: what it lacks, or why it was not imported.
    """

    looked: bool = False
    streams: bool = True
    graphs: bool = True
    graph_class: str | None = None
    synchronize: bool = True
    why: str = ""


def look(name: str, attribute: str | None, device_type: str) -> DeviceFacts:
    """Import module ``name`` and see what it has; torch's ``attribute`` of it, if there is one."""
    from piecewise_core.capture.device_module import GRAPHS, STREAMS

    try:
        module: Any = import_module(name)
        if attribute is not None:
            module = getattr(import_module("torch"), attribute, module)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return DeviceFacts(why=f"{name} could not be imported: {type(error).__name__}: {error}")
    lacking = [n for n in dict.fromkeys((*STREAMS, *GRAPHS)) if not hasattr(module, n)]
    graphs = _graph_class(module, device_type)
    if graphs is None:
        lacking.append("a class of graphs")
    streams = not set(STREAMS) & set(lacking)
    usual = f"{device_type.upper()}Graph"
    return DeviceFacts(
        looked=True,
        streams=streams,
        graphs=streams and not lacking,
        graph_class=None if graphs in (None, usual) else graphs,
        synchronize=hasattr(module, "synchronize"),
        why=f"{name} has no {', '.join(lacking)}" if lacking else "",
    )


def _graph_class(module: Any, device_type: str) -> str | None:
    """The name of what can be captured into; the usual one first."""
    names = [f"{device_type.upper()}Graph", *sorted(n for n in dir(module) if n.endswith("Graph"))]
    return next((n for n in names if hasattr(getattr(module, n, None), "capture_begin")), None)
