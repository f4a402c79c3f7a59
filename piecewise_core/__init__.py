"""Compile PyTorch models in pieces, per range of input sizes, on any platform with a plugin.

``import piecewise_core as pw`` is cheap: torch is imported with the first name that needs it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from piecewise_core import errors
from piecewise_core.config import Config, ConfigWarning, Dim
from piecewise_core.counters import Stats
from piecewise_core.counters import process_counters as counters
from piecewise_core.events import Event
from piecewise_core.ranges import Box, Range

if TYPE_CHECKING:
    from piecewise_core.api import compile, load, record
    from piecewise_core.backend import PiecewiseBackend
    from piecewise_core.bundle.save import SaveReport
    from piecewise_core.compiled import CompiledFunction
    from piecewise_core.compiled_module import CompiledModule
    from piecewise_core.frontend.door.facts import DynamoGraph
    from piecewise_core.frontend.door.registry import dynamo_graphs
    from piecewise_core.frontend.estimate import Estimate
    from piecewise_core.frontend.explanation import Explanation
    from piecewise_core.frontend.graphcompiler import GraphCompiler
    from piecewise_core.frontend.graphpool import Pool, PoolStatus
    from piecewise_core.frontend.status import Status
    from piecewise_core.frontend.warmup import WarmupReport
    from piecewise_core.planner.histogram import Histogram
    from piecewise_core.planner.planning import plan
    from piecewise_core.planner.sizeplan import SizePlan
    from piecewise_core.protocols import AbstractPiecewiseBackend

__version__ = "0.1.0"

__all__ = [
    "AbstractPiecewiseBackend",
    "Box",
    "CompiledFunction",
    "CompiledModule",
    "Config",
    "ConfigWarning",
    "Dim",
    "DynamoGraph",
    "Estimate",
    "Event",
    "Explanation",
    "GraphCompiler",
    "Histogram",
    "PiecewiseBackend",
    "Pool",
    "PoolStatus",
    "Range",
    "SaveReport",
    "SizePlan",
    "Stats",
    "Status",
    "WarmupReport",
    "compile",
    "counters",
    "dynamo_graphs",
    "errors",
    "load",
    "plan",
    "record",
]

_LAZY = {
    "AbstractPiecewiseBackend": "protocols",
    "CompiledFunction": "compiled",
    "CompiledModule": "compiled_module",
    "DynamoGraph": "frontend.door.facts",
    "Estimate": "frontend.estimate",
    "Explanation": "frontend.explanation",
    "GraphCompiler": "frontend.graphcompiler",
    "Histogram": "planner.histogram",
    "PiecewiseBackend": "backend",
    "Pool": "frontend.graphpool",
    "PoolStatus": "frontend.graphpool",
    "SaveReport": "bundle.save",
    "SizePlan": "planner.sizeplan",
    "Status": "frontend.status",
    "WarmupReport": "frontend.warmup",
    "compile": "api",
    "dynamo_graphs": "frontend.door.registry",
    "load": "api",
    "plan": "planner.planning",
    "record": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)


def _load(name: str) -> Any:
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


class _Package(ModuleType):
    """This package, in which ``compile`` is the function and not the subpackage of that name.

    Importing a subpackage sets it as an attribute of its parent, from then on hiding the function;
    a property is not hidden.
    """

    @property
    def compile(self) -> Any:
        return _load("compile")

    @compile.setter
    def compile(self, subpackage: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
