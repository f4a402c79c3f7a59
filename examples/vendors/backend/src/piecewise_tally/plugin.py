"""What the entry point names: announces the platform and imports nothing heavy."""

import os

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe


@hookimpl
def piecewise_platforms():
    """An example stands back: it is there where it is asked for."""
    yield PlatformInfo("tally", "cpu", (1, 0), probe, create)


def probe():
    """Say whether it was asked for."""
    if os.environ.get("PIECEWISE_TALLY") == "1":
        return Probe(True, "asked for by PIECEWISE_TALLY=1")
    return Probe(False, "an example; PIECEWISE_TALLY=1 turns it on")


def create():
    """Import torch and make the platform."""
    from piecewise_tally.platform import TallyPlatform

    return TallyPlatform()
