"""A platform on the CPU, without graphs, whose pieces are run by a class of its own."""

from piecewise_core.building_blocks import InductorCompiler
from piecewise_core.protocols import Capabilities, NoStreams
from piecewise_tally.backend import TallyBackend


class TallyPlatform:
    """Inductor's code, dispatched by `TallyBackend`."""

    name = "tally"
    device_type = "cpu"
    piecewise_backend = TallyBackend
    graphs = None
    capabilities = Capabilities(alignment=1)

    def __init__(self):
        self.device = NoStreams()
        self.compiler = InductorCompiler()
