"""One region of sizes: its program, its targets, and the plans that serve them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from piecewise_core.capture.parts import addresses_inputs
from piecewise_core.capture.recorder import Recorder
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.frontend.frozenpieces import FrozenPieces
from piecewise_core.frontend.piececode import PieceCode, Runnable, as_it_is
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.padding.program import Paddable, paddable
from piecewise_core.graph.randomness import draws
from piecewise_core.graph.split import Program
from piecewise_core.ranges import Box, Sizes
from piecewise_core.ranks.program import described
from piecewise_core.runtime.laid import Laid
from piecewise_core.runtime.plan import Plan, PlanCode
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target
from piecewise_core.torch_compat.profiling import named_runs

__all__ = ["Region"]


class Region(PieceCode):
    """A program, and for each of its targets a plan that is made on first need.

    ``served``: whether a call was. ``met``: whether other ranks have the same one.
    """

    def __init__(self, index: int, program: Program, *args: Any, **kwargs: Any) -> None:
        super().__init__(index, program, *args, **kwargs)
        self.code = PlanCode(program, self._scheduler.count_relaid)
        self.served = self.met = False
        self._drifting: dict[tuple[int, Box], Laid] = {}
        self._plans: dict[Box, Plan] = {}
        self._written: Plan | None = None
        self._compiler, self._count = self._scheduler.compiler, len(program.compilable)
        self._checking: dict[int, Laid] = {}
        self._frozen = FrozenPieces(program, self._scheduler, self.code.lay_piece)

    # Plans -------------------------------------------------------------------------

    def plan(self, box: Box) -> Plan:
        """The plan that serves ``box``, compiled now if it is not yet."""
        plan = self._plans.get(box)
        if plan is None:
            runs = [self._laid(i, box, run) for i, run in self.runnables(box)]
            if self._config.profiler_names:
                name = f"piecewise region {self.index} piece"
                runs = [named_runs(run, f"{name} {i} {box}") for i, run in enumerate(runs)]
            plan = self.code.plan(runs)
            self._plans[box] = plan
        return plan

    def _laid(self, index: int, box: Box, run: Runnable) -> Runnable:
        """``run``; where it was seen to return other layouts than promised, brought to those."""
        laid, run = self._drifting.get((index, box)), self._frozen.of(index, box, run)
        return run if laid is None else _fitted(run, laid, len(self.general_box.ranges))

    def checking_plan(self, box: Box) -> Plan:
        """The same plan, also checking what splitting ops and compiled code return.

        For a target's first call; ``checked`` ends it.
        """
        dims = len(self.general_box.ranges)
        self._checking = {i: self.code.lay_piece(i, self._compiler) for i in range(self._count)}
        runs = [
            self._checked(self._frozen.begun(i, box, run), self._checking[i], dims)
            for i, run in self.runnables(box)
        ]
        return self.code.plan(runs, check=True)

    def _checked(self, run: Runnable, laid: Laid, dims: int) -> Runnable:
        """``run`` with its results looked at, unless it is the model's own operators."""
        return run if self._compiler == "eager" else _fitted(run, laid, dims)

    def checked(self, box: Box) -> None:
        """The first call of ``box`` is over: pieces whose results it copied are from now on."""
        found = {(i, box): laid for i, laid in self._checking.items() if laid.drifts}
        self._drifting |= found
        if found or self._frozen.has(box):
            self._plans.pop(box, None)
        self._checking = {}

    def written_plan(self) -> Plan:
        """The program with every piece as written: valid for every size, compiles nothing."""
        if self._written is None:
            self._written = self.code.plan([as_it_is(p.graph) for p in self.program.compilable])
        return self._written

    def fallback(self, sizes: Sizes) -> Target:
        """What serves ``sizes`` without static graphs, and of a captured size what graphs hold."""
        if sizes in self.exact:
            return Target("compiled_size", Box.single(sizes))
        place = self.table.find(*sizes)
        if place == TargetTable.miss:
            raise out_of_range(self._config, sizes)
        return self.targets[place]

    def recording_plan(self, sizes: Sizes, recorder: Recorder) -> Plan:
        """The plan that serves ``sizes``, with the recorder around what it calls.

        Where kernels that do not pass torch's dispatcher would be lost, pieces whose code is such
        run as written.
        """
        box, dims = self.fallback(sizes).box, len(self.general_box.ranges)
        noting = recorder.platform.noting
        if not recorder.platform.captures(self._compiler):
            found: Iterable[tuple[int, Runnable]] = enumerate(
                as_it_is(p.graph) for p in self.program.compilable
            )
        elif noting is not None:
            found = [(i, noting(self._compiler, run)) for i, run in self.runnables(box)]
        else:
            found = self.runnables(box)
        runs = [
            recorder.piece(
                self.label(i),
                self._checked(run, self.code.lay_piece(i, self._compiler), dims),
                self.pool_of(i, recorder.pool),
            )
            for i, run in found
        ]
        return self.code.recorded(runs, sizes, recorder.op, recorder.streams)

    @functools.cached_property
    def collectives(self) -> tuple[str, ...]:
        """The collectives of its program, in order."""
        return described(self.program.traced.graph)

    @functools.cached_property
    def addresses_inputs(self) -> str | None:
        """Where as_strided is given an input of the calls; None nowhere."""
        return addresses_inputs(self.program)

    @functools.cached_property
    def draws(self) -> str | None:
        """The first operation that draws random numbers, and where it is; None without one."""
        for node in self.program.traced.graph.graph.nodes:
            if draws(node):
                return f"{op_name(node)} at {source_of(node)}"
        return None

    @functools.cached_property
    def paddable(self) -> Paddable:
        """The dims in which rows of padding cannot reach a call's own."""
        return paddable(self.program.traced)


def _fitted(run: Runnable, laid: Laid, dims: int) -> Runnable:
    """``run`` with its results in the layouts promised; its first ``dims`` arguments are sizes."""

    def fitted(*args: Any) -> Any:
        return laid(run(*args), *args[:dims])

    return fitted
