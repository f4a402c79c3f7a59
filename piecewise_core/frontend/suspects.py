"""Calls of a session and of a Dynamo graph as what bisection and verification look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.shared import Shared
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.effects import writes
from piecewise_core.graph.names import source_of
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.compared import kept
from piecewise_core.targets import Target

__all__ = ["FormSubject", "GraphSubject", "Suspect"]


@dataclass(frozen=True)
class Suspect:
    """One call and what serves it.

    ``tensors``, ``bound``, ``sizes``: as plans take them. ``given``: the caller's own tensors, by
    the same places. ``as_written()``: the model's own results. ``generators``: of devices.
    ``target``: what serves the call. ``plan``: its static graphs, ``buffers`` what they read.
    """

    region: Region
    tensors: Sequence[torch.Tensor]
    bound: Sequence[torch.Tensor]
    sizes: Sizes
    given: Sequence[torch.Tensor]
    as_written: Callable[[], Any]
    generators: Sequence[Any]
    target: Target
    plan: CapturedPlan | None = None
    buffers: Sequence[torch.Tensor] = ()

    @property
    def memory(self) -> list[torch.Tensor]:
        """The caller's and the model's tensors that the call writes to."""
        return self.written_of(self.given, self.bound)

    def written_of(
        self, tensors: Sequence[torch.Tensor], bound: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Those of a call's tensors and the model's that the program writes to."""
        program = self.region.program
        written = [tensors[i] for i in sorted(program.mutated)]
        return written + [bound[i] for i in sorted(program.mutated_bound)]

    @property
    def reads(self) -> list[torch.Tensor]:
        """The caller's tensors that nothing is to write to."""
        mutated = self.region.program.mutated
        return [tensor for i, tensor in enumerate(self.given) if i not in mutated]

    @property
    def held(self) -> list[torch.Tensor]:
        """The model's tensors that nothing is to write to."""
        mutated = self.region.program.mutated_bound
        return [tensor for i, tensor in enumerate(self.bound) if i not in mutated]

    def made_at(self, path: str) -> str:
        """The line that makes the leaf of the result at ``path``, or "".

        A path of no leaf stands for memory that is written to: the last line that writes to any.
        """
        program = self.region.program
        marks = [torch.empty(0) for _ in program.values]
        rebuild = program.traced.output.rebuild
        leaf = kept(rebuild(marks, self.tensors, self.bound)).get(path)
        for mark, value in zip(marks, program.values, strict=True):
            if mark is leaf and isinstance(value, torch.fx.Node):
                return source_of(value)
        nodes = [n for piece in program.pieces for n in piece.nodes]
        return _last([n for n in nodes if writes(n)]) or _last(nodes)


def _generators(setup: Setup) -> list[Any]:
    rng = setup.platform.declared.rng
    return [] if rng is None else [rng()]


def _graphs(capturing: Capturing | None, target: Target, t: Any) -> tuple[Any, list[Any]]:
    """The static graphs that serve a call by now, and what they read."""
    if target.capture is None or capturing is None:
        return None, []
    # A replay would write over what another thread may be reading.
    free = capturing.plans.callers.may_overwrite()
    plan = capturing.plans.get(target.capture) if free else None
    return plan, [] if plan is None else list(capturing.replays.reads.of(target.capture, t))


def _counting_not(fn: Callable[..., Any], region: Region, args: Any, kw: Any) -> Any:
    """Run ``fn``; what a call leaves in objects that count, whoever serves it does besides."""
    counted = region.program.traced.counted
    with nullcontext() if counted is None else counted.kept():
        return fn(*args, **kw)


class FormSubject:
    """A model that pw.compile took: as written is the model itself."""

    def __init__(self, shared: Shared, binder: Binder, capturing: Capturing | None) -> None:
        self._shared = shared
        self._binder = binder
        self._capturing = capturing

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the model as its user wrote it."""
        return _counting_not(self._shared.fn, region, args, kw)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection; with the static graphs that serve it by now."""
        shared, capturing = self._shared, self._capturing
        given = self._binder.raw(*args, **kw)
        return Suspect(
            region,
            t,
            b,
            sizes,
            given,
            lambda: _counting_not(shared.fn, region, args, kw),
            _generators(shared.setup),
            target,
            *_graphs(capturing, target, t),
        )


class GraphSubject:
    """A graph of torch.compile's: as written is the graph as Dynamo gave it."""

    def __init__(self, setup: Setup, capturing: Capturing | None = None) -> None:
        self._setup = setup
        self._capturing = capturing

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the graph as it is."""
        return region.program.traced.output.rebuild(region.written_plan()(t, b, *sizes), t, b)

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection."""
        return Suspect(
            region,
            t,
            b,
            sizes,
            t,
            lambda: self.as_written(region, t, b, sizes, args, kw),
            _generators(self._setup),
            target,
            *_graphs(self._capturing, target, t),
        )


def _last(nodes: Iterable[torch.fx.Node]) -> str:
    lines = [line for line in map(source_of, nodes) if line]
    return lines[-1] if lines else ""
