"""L2, seventh part: graphs that one executable launches in turn."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level2_replay import FRESH
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows

__all__ = ["Sharing"]

TURNS = "test_graphs_that_share_take_turns"

_LIKE = "GraphDriver.graph_like"
_SIZES = (4, 3, 2)


class Sharing(Conformance):
    """graph_like, executables."""

    @conformance("L2", _LIKE, claims=(_LIKE,), relies_on=(FRESH,))
    def test_graphs_that_share_take_turns(self, case: Case) -> None:
        """Graphs made like one another compute their own, in any order, from any thread."""
        graphs = _shared(case)
        calls = [graph.replays(case) for graph in graphs]

        def turns() -> None:
            for order in itertools.permutations(range(len(graphs))):
                for i in (*order, order[-1]):
                    for replay in calls[i]:
                        graphs[i].check(case, replay)

        turns()
        failed: list[BaseException] = []
        thread = threading.Thread(target=_into(failed, turns))
        thread.start()
        thread.join()
        for error in failed:
            raise error

    @conformance("L2", "GraphDriver.reset", claims=(_LIKE,), relies_on=(TURNS,))
    def test_a_reset_leaves_those_that_share(self, case: Case) -> None:
        """Of graphs made like one another any may be reset; the others compute on."""
        for gone in range(len(_SIZES)):
            graphs = _shared(case)
            case.reset(graphs.pop(gone).graph)
            graphs.append(_One(case, _SIZES[gone], graphs[0].graph))
            for one in (*graphs, *reversed(graphs)):
                one.check(case)
            case.reset(graphs.pop(0).graph)
            for one in graphs:
                one.check(case)

    @conformance("L2", _LIKE, claims=(_LIKE,), relies_on=(TURNS,))
    def test_graphs_of_other_work_share_nothing(self, case: Case) -> None:
        """A graph made like one of other operators leaves both as they would be alone."""
        first = _One(case, 4, None)
        others = [
            _One(case, 4, first.graph, lambda x: (x * 3).cos()),
            _One(case, 2, first.graph, lambda x: x.sum(1)),
            _One(case, 2, first.graph),
        ]
        for one in (first, *others, *reversed(others), first):
            one.check(case)

    @conformance(
        "L2",
        "GraphDriver.executables",
        claims=("GraphDriver.executables",),
        relies_on=(FRESH,),
    )
    def test_executables_are_counted(self, case: Case) -> None:
        """There are executables while there are graphs, as many as those at most; else none."""
        x = rows(case, 4)
        graphs = [case.capture(lambda: x + 1)[0] for _ in range(3)]
        seen = [case.driver.executables(case.pool)]
        for graph in graphs:
            case.reset(graph)
        seen.append(case.driver.executables(case.pool))
        case.require(
            1 <= seen[0] <= len(graphs) and not seen[1],
            "asked for executables with three graphs in the pool, and when they were reset",
            "1 to 3, and 0",
            seen,
            "count what launches the graphs of that pool now; leave the method out if unknown",
        )


def _work(x: torch.Tensor) -> torch.Tensor:
    return (x * 3 + 1).relu() - x


class _One:
    """A graph of ``work`` on ``size`` rows, made like ``other``."""

    def __init__(
        self,
        case: Case,
        size: int,
        other: Any,
        work: Callable[[torch.Tensor], torch.Tensor] = _work,
    ) -> None:
        self._x, self._work, self._size = rows(case, size), work, size
        self._start = 0.0
        work(self._x)  # first calls load kernels
        like = case.new_graph(lambda: case.driver.graph_like(other))
        self.graph, self._out = case.capture(lambda: work(self._x), like)

    def replays(self, case: Case) -> list[Callable[[], None]]:
        """Both ways to replay it."""
        if not case.has("GraphDriver.replayer"):
            return [lambda: case.driver.replay(self.graph)]
        return [lambda: case.driver.replay(self.graph), case.driver.replayer(self.graph)]

    def check(self, case: Case, replay: Callable[[], None] | None = None) -> None:
        """Replay it on other values, and compare."""
        self._start += 1.0
        self._x.copy_(rows(case, self._size, start=self._start))
        case.announce(self.graph)
        (replay or self.replays(case)[0])()
        case.equal(
            self._out,
            self._work(self._x),
            f"made graphs like one another, replayed some, and then that of {self._size} rows",
            "bring the executable up to date whenever it launched another graph last; share none "
            "between graphs of other operators; keep it until the last that it launches is reset",
            exact=True,
        )


def _shared(case: Case) -> list[_One]:
    """A graph of each size, made like the one before."""
    made: list[_One] = []
    for size in _SIZES:
        made.append(_One(case, size, made[-1].graph if made else None))
    return made


def _into(failed: list[BaseException], run: Callable[[], None]) -> Callable[[], None]:
    def guarded() -> None:
        try:
            with torch.inference_mode():  # as the thread is in that waits for this one
                run()
        except BaseException as error:
            failed.append(error)

    return guarded
