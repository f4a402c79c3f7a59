"""One of two plugins that claim the same device, and bring a platform of the same name."""

import os

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe


def probe():
    return Probe("rival-two" in os.environ.get("BOARDS", ""), "claims the CPU")


def create():
    from piecewise_core.testing import SimulatedPlatform

    platform = SimulatedPlatform()
    platform.maker = "rival-two"
    return platform


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("rival-two", "cpu", (1, 0), probe, create)
    yield PlatformInfo("rival", "cpu", (1, 0), probe, create)
