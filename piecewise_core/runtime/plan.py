"""A range plan: one generated function that runs a program's pieces in order.

    def run(t, b, s0):
     v_linear, v_mask, = _piece0(s0, t[0], b[0], b[1])
     v_attn = _k1(v_linear, attn_mask=v_mask)
     del v_linear, v_mask
     return (v_attn, )

``t``: the call's flat tensors. ``b``: bound tensors. ``s0``: sizes. The source is written once
per region; a plan is that source over one target's compiled pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from types import CodeType
from typing import Any

import torch

from piecewise_core.capture.parts import all_of_memory
from piecewise_core.capture.twostreams import TwoStreams
from piecewise_core.graph.closing import closing
from piecewise_core.graph.literals import literals_of
from piecewise_core.graph.split import Program
from piecewise_core.replay.overlap import Overlap
from piecewise_core.runtime.laid import Laid
from piecewise_core.runtime.plansource import PlanSource
from piecewise_core.runtime.varyingunit import VaryingUnit

__all__ = ["Plan", "PlanCode", "Steps"]

Plan = Callable[..., tuple[Any, ...]]
"""``run(tensors, bound, *sizes) -> graph outputs``."""

Fit = Callable[[Any], Any]
WrapOp = Callable[[Callable[..., Any], Fit | None], Callable[..., Any]]

Steps = Generator[tuple[int, tuple[torch.Tensor, ...]], None, tuple[Any, ...]]
"""Behind each piece its index and the tensors that it made; at the end the graph's outputs."""


class PlanCode:
    """The source of one program's plans.

    ``plan(runnables)`` makes the plan of one target. It brings what splitting ops return to the
    layout that was traced; with ``check`` it also compares dtypes and shapes. ``count``: called for
    each result that is copied for it. Calls whose inputs share memory that
    the program writes to run as written: compiled pieces were not made for that. ``literals``: the
    tensors that the program itself holds.
    """

    def __init__(self, program: Program, count: Callable[[], None] = lambda: None) -> None:
        writer = PlanSource(program, count)
        self._program = program
        self.literals = literals_of(program.traced.graph)
        self._overlap = Overlap.of(program)
        guarded = bool(self._overlap)
        self.source = self._written_source = writer.text(check=False, guarded=guarded)
        self.checked_source = writer.text(check=True, guarded=guarded)
        if guarded:
            self._written_source = writer.text(check=False, guarded=False)
        self._recorded_source = writer.text(check=False, guarded=guarded, laid=False)
        self._forked_source = self._recorded_source
        if any(piece.lane is not None for piece in program.pieces):
            self._forked_source = writer.text(check=False, guarded=guarded, laid=False, forked=True)
        self._writer = writer
        self._names = writer.names
        self._ops = tuple(writer.ops.values())
        self._code: dict[str, CodeType] = {}

    def plan(
        self,
        runnables: Sequence[Callable[..., Any]],
        *,
        check: bool = False,
    ) -> Plan:
        """The plan over ``runnables``, one per compilable piece in order."""
        return self._run(self.checked_source if check else self.source, runnables)

    def recorded(
        self,
        runnables: Sequence[Callable[..., Any]],
        sizes: Sequence[int],
        wrap_op: WrapOp,
        streams: TwoStreams | None = None,
    ) -> Plan:
        """The plan over ``runnables`` for one choice of sizes, with all that it calls wrapped.

        ``wrap_op(fn, fit)``: put around every operation of a splitting piece, but for those that
        only give memory another shape. ``fit`` brings a result to the layout promised, or is None.
        ``streams``: those that forks run on; None for one.
        """
        wrapped = {
            name: wrap_op(_recorded(self._names[name]), self._fit(name, sizes))
            for name in self._ops
        }
        if streams is None:
            return self._run(self._recorded_source, runnables, wrapped)
        names = {"_fork": streams.fork, "_side": streams.side, "_join": streams.join}
        return self._run(self._forked_source, runnables, {**wrapped, **names})

    def _fit(self, name: str, sizes: Sequence[int]) -> Fit | None:
        """What brings an operation's result to the layout promised, where one is."""
        laid = self._writer.laid.get(name)
        fit = None if laid is None else laid.at(sizes)
        return all_of_memory(fit) if name in self._writer.whole else fit

    def lay_piece(self, index: int, compiler: str) -> Laid:
        """What brings the results of compilable piece ``index`` to the layout promised."""
        return self._writer.promises.lay_piece(self._program.compilable[index], compiler)

    def written(self) -> Plan:
        """The plan with every piece as written: valid for every size, compiles nothing."""
        return self._run(self._written_source, self._closing)

    @functools.cached_property
    def _closing(self) -> list[Callable[..., Any]]:
        graphs = [piece.graph for piece in self._program.compilable]
        return [closing(graph) for graph in graphs if graph is not None]

    def steps(self, runnables: Sequence[Callable[..., Any]]) -> Callable[..., Steps]:
        """The plan over ``runnables`` that stops behind each piece; for looking at calls only."""
        writer = PlanSource(self._program)
        source = writer.text(check=False, guarded=False, stepwise=True)
        names = {**writer.names, **{f"_piece{i}": run for i, run in enumerate(runnables)}}
        exec(compile(source, "<piecewise steps>", "exec"), names)
        run: Callable[..., Steps] = names.pop("run")  # no circle: what it refers to goes with it
        return run

    def _run(
        self,
        source: str,
        runnables: Sequence[Callable[..., Any]],
        wrapped: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Plan:
        if source not in self._code:
            self._code[source] = compile(source, "<piecewise plan>", "exec")
        names = {**self._names, **{f"_piece{i}": run for i, run in enumerate(runnables)}}
        if self._overlap and source != self._written_source:
            names |= {"_overlap": self._overlap, "_written": self.written()}
        names |= wrapped or {}
        exec(self._code[source], names)
        run: Plan = names.pop("run")  # no circle: what it refers to goes with it
        return run


def _recorded(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn.recorded() if isinstance(fn, VaryingUnit) else fn
