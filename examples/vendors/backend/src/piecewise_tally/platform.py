"""A platform on the CPU, without graphs, whose pieces are run by a class of its own."""

from contextlib import nullcontext

from piecewise_core.building_blocks import InductorCompiler
from piecewise_core.protocols import Capabilities
from piecewise_tally.backend import TallyBackend


class Runtime:
    """A CPU has no streams."""

    def current_stream(self):
        """None."""

    def new_stream(self):
        """None."""

    def stream(self, stream):
        """Nothing to make current."""
        return nullcontext()

    def synchronize(self):
        """Nothing to wait for."""


class TallyPlatform:
    """Inductor's code, dispatched by `TallyBackend`."""

    name = "tally"
    device_type = "cpu"
    piecewise_backend = TallyBackend
    graphs = None
    capabilities = Capabilities(alignment=1)

    def __init__(self):
        self.device = Runtime()
        self.compiler = InductorCompiler()
