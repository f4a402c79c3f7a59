"""A device with a hundred graph handles, in two makes: one tells, one lets a capture find out."""

import os

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe

HANDLES = 100


def probe():
    return Probe("handles" in os.environ.get("BOARDS", ""), f"{HANDLES} graph handles")


def create():
    from piecewise_core.testing import SimulatedPlatform

    return SimulatedPlatform(max_graphs=HANDLES)


def create_silent():
    platform = create()
    platform.graphs.tells_budget = False
    return platform


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("handles", "cpu", (1, 0), probe, create)
    yield PlatformInfo("handles-silent", "cpu", (1, 0), probe, create_silent)
