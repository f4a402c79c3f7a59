"""L2: executables that several graphs share badly."""

from __future__ import annotations

from mutants.base import device
from piecewise_core.testing.simulated.driver import SimulatedDriver

__all__ = ["SHARING"]


class NeverSwitches(SimulatedDriver):
    """An executable launches what it launched last."""

    def replayer(self, graph):
        shared = graph.executable
        return graph.replay if shared is None else lambda: shared.launch(graph.generators)

    def replay(self, graph):
        self.replayer(graph)()


class TakesOthersAlong(SimulatedDriver):
    """A reset of a graph that shares ends all with which it does."""

    def reset(self, graph):
        shared = graph.executable
        super().reset(graph)
        for other in list(self._shared):
            if shared is not None and other.executable is shared:
                other.executable.update = lambda recording: True


class TakesAnything(SimulatedDriver):
    """Whatever is made like another graph is launched by its executable, as that is."""

    def capture_end(self, graph):
        super().capture_end(graph)
        for known in (graph.family or {}).values():
            graph.executable = known
            return


class NeverFewer(SimulatedDriver):
    """Executables of graphs that are gone count on."""

    most = 0

    def __init__(self, *args, **knobs):
        super().__init__(*args, **knobs)
        self.executables = self.counted

    def counted(self, pool):
        self.most = max(self.most, self._executables(pool))
        return self.most


SHARING = (
    device(
        "executables that launch what they launched last",
        "test_graphs_that_share_take_turns",
        driver=NeverSwitches,
    ),
    device(
        "a reset that ends those that share",
        "test_a_reset_leaves_those_that_share",
        driver=TakesOthersAlong,
    ),
    device(
        "an executable of graphs with other operators",
        "test_graphs_of_other_work_share_nothing",
        driver=TakesAnything,
    ),
    device("executables that are never fewer", "test_executables_are_counted", driver=NeverFewer),
)
