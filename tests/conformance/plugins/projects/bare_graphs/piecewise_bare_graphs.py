"""A device with graphs and nothing else: no weak references, generators or memory statistics."""

import os

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Capabilities, PlatformInfo, Probe


class Runtime:
    """The four methods that a DeviceRuntime must have."""

    def __init__(self, board):
        self._board = board

    def current_stream(self):
        return self._board.current_stream()

    def new_stream(self):
        return self._board.new_stream()

    def stream(self, stream):
        return self._board.stream(stream)

    def synchronize(self):
        self._board.synchronize()


class Driver:
    """The seven methods that a GraphDriver must have."""

    def __init__(self, board):
        self._board = board

    def new_pool(self):
        return self._board.new_pool()

    def new_graph(self):
        return self._board.new_graph()

    def capture_begin(self, graph, pool, stream):
        self._board.capture_begin(graph, pool, stream)

    def capture_end(self, graph):
        self._board.capture_end(graph)

    def replay(self, graph):
        self._board.replay(graph)

    def reset(self, graph):
        self._board.reset(graph)

    def is_capturing(self):
        return self._board.is_capturing()


class Platform:
    def __init__(self):
        from piecewise_core.compile.eager import EagerCompiler
        from piecewise_core.testing import SimulatedPlatform

        board = SimulatedPlatform(weak_refs=False, generators=False)
        self.device = Runtime(board.device)
        self.graphs = Driver(board.graphs)
        self.compiler = EagerCompiler()
        self.capabilities = Capabilities()


def probe():
    return Probe("bare-graphs" in os.environ.get("BOARDS", ""), "graphs and nothing else")


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("bare-graphs", "cpu", (1, 0), probe, Platform)
