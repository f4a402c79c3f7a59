"""What a platform supplies and what core hands it: the vendor contract.

Core owns all control flow; a vendor supplies primitives. Methods of the classes called
``...Extras`` are *optional*: each has a correct default in core and may be left out.
``import piecewise_core.protocols`` imports no torch, so a plugin module may import it freely.

The smallest platform is a compiler and nothing else::

    class AcmePlatform:
        device = NoStreams()            # DeviceRuntime
        graphs = None                   # no static graphs
        compiler = AcmeCompiler()       # CompilerAdaptor
        capabilities = Capabilities()
"""

from __future__ import annotations

from piecewise_core.protocols.compiler import CompilerAdaptor, CompilerExtras, Passes
from piecewise_core.protocols.device import DeviceRuntime, NoStreams, RuntimeExtras
from piecewise_core.protocols.graphs import GraphDriver, GraphExtras
from piecewise_core.protocols.platform import (
    AbstractPiecewiseBackend,
    Platform,
    PlatformExtras,
    PlatformInfo,
)
from piecewise_core.protocols.rewrites import Rewrite
from piecewise_core.protocols.symmetric import SymmetricMemory
from piecewise_core.protocols.values import (
    BudgetContext,
    Capabilities,
    CompiledGraph,
    Probe,
    ReplayCall,
)
from piecewise_core.ranges import Box, Range

__all__ = [
    "API_VERSION",
    "AbstractPiecewiseBackend",
    "Box",
    "BudgetContext",
    "Capabilities",
    "CompiledGraph",
    "CompilerAdaptor",
    "CompilerExtras",
    "DeviceRuntime",
    "GraphDriver",
    "GraphExtras",
    "NoStreams",
    "Passes",
    "Platform",
    "PlatformExtras",
    "PlatformInfo",
    "Probe",
    "Range",
    "ReplayCall",
    "Rewrite",
    "RuntimeExtras",
    "SymmetricMemory",
]

API_VERSION = (1, 1)
"""(major, minor) of these Protocols, of the hooks and of `piecewise_core.building_blocks`.

Core serves plugins of its major and of no newer minor.
"""
