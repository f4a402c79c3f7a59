"""The code of a region's pieces: for every target, compiled on first need."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch

from piecewise_core.backend import PiecewiseBackend, range_key
from piecewise_core.compile.artifact import Artifact
from piecewise_core.compile.scheduler import Outside, Scheduler
from piecewise_core.config import Config
from piecewise_core.frontend.building import Unready
from piecewise_core.graph.closing import closing
from piecewise_core.graph.split import Piece, Program
from piecewise_core.ranges import Box, Sizes
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target, plan_targets
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["PieceCode", "Runnable", "as_it_is", "need"]

logger = logging.getLogger(__name__)

Runnable = Callable[..., Any]


class PieceCode:
    """What runs each compilable piece of ``program``: one backend for each, which this one owns.

    ``box``: the sizes served by targets; None where all of them are out of bounds.
    ``general_box``: those the general graph serves; larger only with ``out_of_range="general"``.
    ``index``: place among the model's regions. ``as_written``: whether nothing is compiled, for a
    size is 0. ``pool``: of static graphs; None where there are none. ``exact``: captured sizes
    whose graphs hold code of their own, beside those that are targets; ``verdicts``: what was
    measured of that, by the size that was, ``settled``: whether anybody looked. ``convolutions``:
    why these want code of fixed sizes, and what is said of their weights; None until asked.
    """

    def __init__(
        self,
        index: int,
        program: Program,
        config: Config,
        scheduler: Scheduler,
        backend_class: Callable[..., Any] = PiecewiseBackend,
        pool: Any = None,
    ) -> None:
        self.index = index
        self.program = program
        self._config = config
        self.general_box = program.traced.box
        bounds = config.bounds
        self.box = self.general_box.intersect(bounds)
        endpoints = config.endpoints_by_dim or ((),) * len(bounds.ranges)
        self.targets: tuple[Target, ...] = (
            () if self.box is None else plan_targets(self.box, endpoints, config.sizes)
        )
        self.table = TargetTable(self.box or bounds, self.targets)
        # Eager refuses what has no value without elements, a maximum; compiled code makes one up.
        self.as_written = any(span.end == 0 for span in self.general_box.ranges)
        self.exact: set[Sizes] = set()
        self.settled = False
        self.verdicts: dict[Sizes, str] = {}
        self.convolutions: tuple[str, str] | None = None
        self._asked: set[tuple[int, Box]] = set()
        self._built: set[Box] = set()
        self._failed: dict[Box, str] = {}
        self._at_work: list[Box] = []
        self._pools = [pool] * len(program.compilable)
        self._scheduler = scheduler
        self._begun = time.perf_counter()
        pieces = program.compilable
        for piece in pieces:
            scheduler.register(piece)
        self.backends: list[Any] = [
            backend_class(
                piece.graph,
                config,
                pool,
                place,
                len(pieces),
                list(range(len(bounds.ranges))),
                functools.partial(self.compile_piece, place, self.general_box),
                self,
            )
            for place, piece in enumerate(pieces)
        ]

    # What the pieces' backends ask of their owner (PieceOwner) ---------------------

    def compile_piece(self, index: int, box: Box) -> Callable[..., Any]:
        """The compiled graph of compilable piece ``index`` for ``box``."""
        piece = self.program.compilable[index]
        if self.as_written:
            return as_it_is(piece.graph)
        symbols = self.program.traced.symbols
        self._at_work.append(box)
        try:
            made = self._scheduler.artifact(piece, symbols, box, self.label(index))
        except Exception as error:
            self._failed[box] = str(error).partition("\n")[0]
            raise
        finally:
            self._at_work.remove(box)
        self._failed.pop(box, None)
        return made.run

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

    # Compiling ---------------------------------------------------------------------

    def label(self, index: int) -> str:
        """What to call compilable piece ``index`` in messages."""
        return f"region {self.index} piece {self.program.compilable[index].index}"

    def pool_of(self, index: int, pool: Any) -> Any:
        """Where the graphs of piece ``index`` are captured, by its backend.

        ``pool``: the model's, which takes the place of one that was freed. A class may have set
        one of its own.
        """
        backend, given = self.backends[index], self._pools[index]
        if pool is not None and getattr(backend, "graph_pool", pool) is given:
            backend.graph_pool = self._pools[index] = pool
        return getattr(backend, "graph_pool", pool)

    def is_ready(self, box: Box) -> bool:
        """Whether every piece has its code for ``box``."""
        return (
            self.as_written
            or box in self._built
            or all(self._has_code(index, box) for index in range(len(self.backends)))
        )

    def _has_code(self, index: int, box: Box) -> bool:
        entry = getattr(self.backends[index], "range_entries", {}).get(range_key(box))
        if entry is not None and entry.compiled:
            return True
        return self._scheduler.ready(self.program.compilable[index], box) is not None

    def artifacts(self, box: Box) -> list[Artifact]:
        """What is compiled for ``box`` so far."""
        found = [self._scheduler.ready(piece, box) for piece in self.program.compilable]
        return [artifact for artifact in found if artifact is not None]

    def is_compiled_now(self, box: Box) -> bool:
        """Whether a thread of this process compiles a piece for ``box``."""
        return box in self._at_work

    def failed(self, box: Box) -> str | None:
        """Why a piece could not be compiled for ``box`` when that was last tried."""
        here = self._failed.get(box)
        pieces = () if here else self.program.compilable
        return here or next(filter(None, (self._scheduler.failed(p, box) for p in pieces)), None)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """What warm-up compiles for: each target, and all sizes at once where a call may ask it."""
        asks = any(not hasattr(backend, "runnable") for backend in self.backends)
        general = (self.general_box,) if asks or self.general_box != self.box else ()
        exact = map(Box.single, sorted(self.exact))
        return tuple(dict.fromkeys((*(t.box for t in self.targets), *exact, *general)))

    def compile(self, index: int, box: Box) -> Runnable:
        """The code of compilable piece ``index`` for ``box``, compiled now if it is not yet."""
        backend = self.backends[index]
        if hasattr(backend, "runnable") and any(t.box == box for t in self.targets):
            run: Runnable = backend.runnable(box)
            return run
        return self.compile_piece(index, box)

    def build(self, box: Box) -> None:
        """Compile what serves ``box``. Call it without the call lock; plans are made under that."""
        self._scheduler.compile_beside(self.wanted(box))
        with compile_lock:
            for index, run in self.runnables(box):
                # A class that dispatches by itself asks in the middle of a call: it finds all made.
                for asked in {self.general_box, box} if run is self.backends[index] else ():
                    self.compile_piece(index, asked)
        self._built.add(box)

    def wanted(self, *boxes: Box) -> Iterator[tuple[Piece, Mapping[sympy.Symbol, int], Box, str]]:
        """What the scheduler is to have for ``boxes``."""
        for index, piece in enumerate(() if self.as_written else self.program.compilable):
            for box in boxes:
                yield piece, self.program.traced.symbols, box, self.label(index)

    def is_asked(self, box: Box) -> bool:
        """Whether ``request`` was called for ``box``, in this process: a forked one asks anew."""
        return (os.getpid(), box) in self._asked

    def request(self, box: Box, by: Outside) -> None:
        """Have every piece compiled elsewhere for ``box``."""
        for wanted in self.wanted(box):
            self._scheduler.request(*wanted, by)
        self._asked.add((os.getpid(), box))

    def runnables(self, box: Box) -> Iterator[tuple[int, Callable[..., Any]]]:
        """Each compilable piece's code for ``box``, compiled as it is asked for."""
        targeted = any(t.box == box for t in self.targets)
        for index, backend in enumerate(self.backends):
            # A platform's own class that only has __call__ dispatches by itself.
            alone = targeted and not hasattr(backend, "runnable")
            yield index, backend if alone else self.compile(index, box)


def need(region: PieceCode, box: Box) -> None:
    """Raise Unready unless every piece of ``region`` has its code for ``box``."""
    if not region.is_ready(box):
        raise Unready(("compile", region, box), functools.partial(region.build, box))


def as_it_is(graph: torch.fx.GraphModule | None) -> Runnable:
    """A piece as it was traced."""
    if graph is None:
        raise ValueError("a splitting piece has no graph")
    return closing(graph)
