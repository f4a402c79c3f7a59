"""What tests of piecewise, and of what is built on it, stand on.

``SimulatedPlatform``: a device without hardware. ``PlatformConformance``: the tests that a
platform must pass, to be subclassed; it needs pytest (extra ``testing``). ``overrides``: states
why a subclass replaces one of them. ``CompilerUnderTest``: a compiler by its name, in place of a
platform. Each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piecewise_core.testing.conformance.compilers import CompilerUnderTest
    from piecewise_core.testing.conformance.marks import overrides
    from piecewise_core.testing.conformance.suite import PlatformConformance
    from piecewise_core.testing.simulated.platform import SimulatedPlatform

__all__ = ["CompilerUnderTest", "PlatformConformance", "SimulatedPlatform", "overrides"]

_HOMES = {
    "CompilerUnderTest": "piecewise_core.testing.conformance.compilers",
    "PlatformConformance": "piecewise_core.testing.conformance.suite",
    "SimulatedPlatform": "piecewise_core.testing.simulated.platform",
    "overrides": "piecewise_core.testing.conformance.marks",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
