"""One region of sizes: its program, its targets, and the plans that serve them."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.backend import PiecewiseBackend
from piecewise_core.compile.scheduler import Outside, Scheduler
from piecewise_core.config import Config, Dim
from piecewise_core.errors import OutOfRange
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.coverage import out_of_range
from piecewise_core.graph.effects import writes
from piecewise_core.graph.memory import storages
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.padding.program import Paddable, paddable
from piecewise_core.graph.randomness import draws
from piecewise_core.graph.split import Program
from piecewise_core.graph.torch_private import compile_lock
from piecewise_core.ranges import Box, Sizes
from piecewise_core.runtime.laid import Laid
from piecewise_core.runtime.plan import Plan, PlanCode, WrapOp
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target, plan_targets

__all__ = ["Region", "need", "unbounded"]

logger = logging.getLogger(__name__)

Runnable = Callable[..., Any]

NO_BOUND = sys.maxsize - 1
"""The upper end of a size that has none."""


class Region:
    """A program, and for each of its targets a plan that is made on first need.

    ``box``: the sizes served by targets; None where all of them are out of bounds.
    ``general_box``: those the general graph serves; larger only with ``out_of_range="general"``.
    ``index``: place among the model's regions. ``as_written``: whether nothing is compiled, for a
    size is 0.
    """

    def __init__(
        self,
        index: int,
        program: Program,
        config: Config,
        scheduler: Scheduler,
        bounds: Box,
        sizes: tuple[Sizes, ...],
        backend_class: Callable[..., Any] = PiecewiseBackend,
    ) -> None:
        self.index = index
        self.program = program
        self._config = config
        self.general_box = program.traced.box
        self.box = self.general_box.intersect(bounds)
        endpoints = config.endpoints_by_dim or ((),) * len(bounds.ranges)
        self.targets: tuple[Target, ...] = (
            () if self.box is None else plan_targets(self.box, endpoints, sizes)
        )
        self.table = TargetTable(self.box or bounds, self.targets)
        self.code = PlanCode(program, scheduler.count_relaid)
        self._drifting: dict[tuple[int, Box], Laid] = {}
        # Eager refuses what has no value without elements, a maximum; compiled code makes one up.
        self.as_written = any(span.end == 0 for span in self.general_box.ranges)
        self.served = False
        self._asked: set[tuple[int, Box]] = set()
        self._built: set[Box] = set()
        self._scheduler = scheduler
        self._plans: dict[Box, Plan] = {}
        self._written: Plan | None = None
        self._begun = time.perf_counter()
        for piece in program.compilable:
            scheduler.register(piece)
        pieces = program.compilable
        self._compiler, self._count = scheduler.compiler, len(pieces)
        self._checking: dict[int, Laid] = {}
        self.backends: list[Any] = [
            backend_class(
                piece.graph,
                config,
                None,
                place,
                len(pieces),
                list(range(len(bounds.ranges))),
                self._general_of(place),
                self,
            )
            for place, piece in enumerate(pieces)
        ]

    # What the pieces' backends ask of their owner (PieceOwner) ---------------------

    def compile_piece(self, index: int, box: Box) -> Callable[..., Any]:
        """The compiled graph of compilable piece ``index`` for ``box``."""
        piece = self.program.compilable[index]
        if self.as_written:
            return _forward(piece.graph)
        symbols = self.program.traced.symbols
        return self._scheduler.artifact(piece, symbols, box, self.label(index)).run

    def end_compilation(self) -> None:
        """Log once how long it took from the trace to the last compilation."""
        logger.info(
            "region %d %s: %d pieces compiled for %d ranges and sizes, %.1f s after tracing",
            self.index,
            self.general_box,
            len(self.backends),
            len(self.targets),
            time.perf_counter() - self._begun,
        )

    # Plans -------------------------------------------------------------------------

    def label(self, index: int) -> str:
        """What to call compilable piece ``index`` in messages."""
        return f"region {self.index} piece {self.program.compilable[index].index}"

    def is_ready(self, box: Box) -> bool:
        """Whether every piece has its code for ``box``."""
        return (
            self.as_written
            or box in self._built
            or all(self._scheduler.ready(piece, box) for piece in self.program.compilable)
        )

    @property
    def boxes(self) -> tuple[Box, ...]:
        """What warm-up compiles for: each target, and all sizes at once where a call may ask it."""
        asks = any(not hasattr(backend, "runnable") for backend in self.backends)
        general = (self.general_box,) if asks or self.general_box != self.box else ()
        return tuple(dict.fromkeys((*(t.box for t in self.targets), *general)))

    def compile(self, index: int, box: Box) -> Runnable:
        """The code of compilable piece ``index`` for ``box``, compiled now if it is not yet."""
        backend = self.backends[index]
        if hasattr(backend, "runnable") and any(t.box == box for t in self.targets):
            run: Runnable = backend.runnable(box)
            return run
        return self.compile_piece(index, box)

    def plan(self, box: Box) -> Plan:
        """The plan that serves ``box``, compiled now if it is not yet."""
        plan = self._plans.get(box)
        if plan is None:
            plan = self.code.plan([self._laid(i, box, run) for i, run in self.runnables(box)])
            self._plans[box] = plan
        return plan

    def build(self, box: Box) -> None:
        """Compile what serves ``box``. Call it without the call lock; plans are made under that."""
        with compile_lock:
            for _ in self.runnables(box):
                pass
        self._built.add(box)

    def _laid(self, index: int, box: Box, run: Runnable) -> Runnable:
        """``run``; where it was seen to return other layouts than promised, brought to those."""
        laid = self._drifting.get((index, box))
        return run if laid is None else _fitted(run, laid, len(self.general_box.ranges))

    def checking_plan(self, box: Box) -> Plan:
        """The same plan, also checking what splitting ops and compiled code return.

        For a target's first call; ``checked`` ends it.
        """
        dims = len(self.general_box.ranges)
        self._checking = {i: self.code.lay_piece(i, self._compiler) for i in range(self._count)}
        runs = [self._checked(run, self._checking[i], dims) for i, run in self.runnables(box)]
        return self.code.plan(runs, check=True)

    def _checked(self, run: Runnable, laid: Laid, dims: int) -> Runnable:
        """``run`` with its results looked at, unless it is the model's own operators."""
        return run if self._compiler == "eager" else _fitted(run, laid, dims)

    def checked(self, box: Box) -> None:
        """The first call of ``box`` is over: pieces whose results it copied are from now on."""
        found = {(i, box): laid for i, laid in self._checking.items() if laid.drifts}
        if found:
            self._drifting |= found
            self._plans.pop(box, None)
        self._checking = {}

    def written_plan(self) -> Plan:
        """The program with every piece as written: valid for every size, compiles nothing."""
        if self._written is None:
            self._written = self.code.plan([_forward(p.graph) for p in self.program.compilable])
        return self._written

    def fallback(self, sizes: Sizes) -> Target:
        """What serves ``sizes`` without static graphs."""
        place = self.table.find(*sizes)
        if place == TargetTable.miss:
            raise OutOfRange(out_of_range(self._config, sizes))
        return self.targets[place]

    def recording_plan(
        self,
        sizes: Sizes,
        piece: Callable[[str, Runnable], Runnable],
        op: WrapOp,
        operators_only: bool = False,
    ) -> Plan:
        """The plan that serves ``sizes``, with ``piece`` and ``op`` around what it calls.

        ``operators_only``: whether kernels that do not pass torch's dispatcher would be lost; then
        pieces whose code is such run as written.
        """
        box, dims = self.fallback(sizes).box, len(self.general_box.ranges)
        if operators_only and self._compiler == "inductor":
            found: Iterable[tuple[int, Runnable]] = enumerate(
                _forward(p.graph) for p in self.program.compilable
            )
        else:
            found = self.runnables(box)
        runs = [
            piece(self.label(i), self._checked(run, self.code.lay_piece(i, self._compiler), dims))
            for i, run in found
        ]
        return self.code.recorded(runs, sizes, op)

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

    @functools.cached_property
    def written_bound(self) -> tuple[int, ...]:
        """Places of the model's own tensors that the program writes to."""
        graph = self.program.traced.graph.graph
        written = frozenset().union(*(writes(node) for node in graph.nodes))
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        return tuple(
            source.bound
            for node, source in zip(placeholders, self.program.traced.inputs, strict=True)
            if source.bound is not None and storages(node) & written
        )

    def is_asked(self, box: Box) -> bool:
        """Whether ``request`` was called for ``box``, in this process: a forked one asks anew."""
        return (os.getpid(), box) in self._asked

    def request(self, box: Box, by: Outside) -> None:
        """Have every piece compiled elsewhere for ``box``."""
        for index, piece in enumerate(() if self.as_written else self.program.compilable):
            symbols = self.program.traced.symbols
            self._scheduler.request(piece, symbols, box, self.label(index), by)
        self._asked.add((os.getpid(), box))

    def runnables(self, box: Box) -> Iterator[tuple[int, Callable[..., Any]]]:
        """Each compilable piece's code for ``box``, compiled as it is asked for."""
        targeted = any(t.box == box for t in self.targets)
        for index, backend in enumerate(self.backends):
            # A platform's own class that only has __call__ dispatches by itself.
            alone = targeted and not hasattr(backend, "runnable")
            yield index, backend if alone else self.compile(index, box)

    def _general_of(self, index: int) -> Callable[[], Callable[..., Any]]:
        return lambda: self.compile_piece(index, self.general_box)


def need(region: Region, box: Box) -> None:
    """Raise Unready unless every piece of ``region`` has its code for ``box``."""
    if not region.is_ready(box):
        raise Unready(("compile", region, box), functools.partial(region.build, box))


def _fitted(run: Runnable, laid: Laid, dims: int) -> Runnable:
    """``run`` with its results in the layouts promised; its first ``dims`` arguments are sizes."""

    def fitted(*args: Any) -> Any:
        return laid(run(*args), *args[:dims])

    return fitted


def _forward(graph: torch.fx.GraphModule | None) -> Callable[..., Any]:
    if graph is None:
        raise ValueError("a splitting piece has no graph")
    run: Callable[..., Any] = graph.forward
    return run


def unbounded(dims: Sequence[Dim]) -> Box:
    """The bounds of ``dims`` without upper ends."""
    return Box(tuple(dim.sizes_to(NO_BOUND) for dim in dims))
