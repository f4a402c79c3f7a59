"""A device whose kernels read how many rows are real from a register that the host sets.

A graph keeps the value it was captured with, so the driver writes the call's own before every
replay: ``before_replay``.
"""

import os

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe


def probe():
    return Probe("registers" in os.environ.get("BOARDS", ""), "kernels read a row register")


def create():
    import torch

    from piecewise_core.testing import SimulatedPlatform
    from piecewise_core.testing.simulated.driver import SimulatedDriver

    register = []

    # Tagged: with its register set, it never looks at rows of padding.
    @torch.library.custom_op("registers::center", mutates_args=(), tags=(torch.Tag.pointwise,))
    def center(x: torch.Tensor) -> torch.Tensor:
        rows = (register and register[-1]) or x.shape[0]
        return x - x[:rows].mean(0)

    center.register_fake(torch.empty_like)

    class Driver(SimulatedDriver):
        def __init__(self, like):
            vars(self).update(vars(like))

        def before_replay(self, graph, call):
            graph.rows = call.sizes[0] if call.sizes else None

        def replayer(self, graph):
            def replay():
                register.append(graph.rows)
                try:
                    graph.replay()
                finally:
                    register.pop()

            return replay

    platform = SimulatedPlatform()
    platform.graphs = Driver(platform.graphs)
    return platform


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("registers", "cpu", (1, 0), probe, create)
