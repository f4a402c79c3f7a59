"""Find the piece of a call that first differs from the model as written, and in which stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.frontend.bisectreport import BisectReport, source_lines
from piecewise_core.frontend.lockstep import Finding, Lockstep
from piecewise_core.frontend.madeat import made_at
from piecewise_core.frontend.region import Region
from piecewise_core.ranges import Sizes
from piecewise_core.replay.overlap import Overlap
from piecewise_core.runtime.compared import apart, kept
from piecewise_core.runtime.fingerprints import Fingerprints, parting
from piecewise_core.runtime.preserved import Preserved
from piecewise_core.targets import Target

__all__ = ["Suspect", "bisect"]


@dataclass(frozen=True)
class Suspect:
    """One call and what serves it.

    ``tensors``, ``bound``, ``sizes``: as plans take them. ``given``: the caller's own tensors, by
    the same places. ``as_written()``: the model's own results. ``rebuild(outs, tensors, bound)``: a
    result of the program's outputs. ``plan``: the static graphs that serve the call, ``buffers``
    what they read. ``generators``: of devices.
    """

    region: Region
    tensors: Sequence[torch.Tensor]
    bound: Sequence[torch.Tensor]
    sizes: Sizes
    given: Sequence[torch.Tensor]
    as_written: Callable[[], Any]
    rebuild: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Any]
    plan: CapturedPlan | None
    buffers: Sequence[torch.Tensor]
    generators: Sequence[Any]
    target: Target

    @property
    def memory(self) -> list[torch.Tensor]:
        """The caller's and the model's tensors that the call writes to."""
        program = self.region.program
        return [
            *(self.given[i] for i in sorted(program.mutated)),
            *(self.bound[i] for i in sorted(program.mutated_bound)),
        ]

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
        """The line that makes a leaf of the result; for another path, that writes to memory."""
        return made_at(self.region.program, self.rebuild, (self.tensors, self.bound), path)


def bisect(suspect: Suspect) -> BisectReport:
    """Compare every piece of one call in one pass; memory and random numbers stay as they are.

    Two runs: the model as written, and a pass in which each piece runs as written, compiled, and
    by its static graph, side by side on what the pieces before it gave.
    """
    before = Preserved(suspect.memory, suspect.generators, draws=True)
    try:
        with torch.no_grad():
            return _bisected(suspect, before)
    finally:
        before.put_back()


def _bisected(suspect: Suspect, before: Preserved) -> BisectReport:
    prints = Fingerprints(lambda: None)
    with prints:
        result = suspect.as_written()
    wanted = kept(result, copy=True)
    left = before.take().values
    before.put_back()
    if suspect.plan is not None:
        suspect.plan.prepare(suspect.tensors, suspect.sizes)
    pass_over = Lockstep(
        suspect.region,
        suspect.tensors,
        suspect.bound,
        suspect.sizes,
        suspect.plan,
        suspect.buffers,
        suspect.generators,
    )
    found = pass_over.find()
    tensors, bound = pass_over.given
    how = apart(kept(suspect.rebuild(pass_over.written, tensors, bound)), wanted)
    if how is None:
        program = suspect.region.program
        ours = [tensors[i] for i in sorted(program.mutated)]
        ours += [bound[i] for i in sorted(program.mutated_bound)]
        how = apart(kept(ours), kept(left))
    if how is not None and not pass_over.damaged:
        first = parting(pass_over.prints, prints.prints)
        found = Finding("split", None if first is None else first.place, how)
    return _report(suspect, found)


def _report(suspect: Suspect, found: Finding | None) -> BisectReport:
    region = suspect.region
    pieces = region.program.pieces
    report: dict[str, Any] = {"runs": 2, "pieces": len(pieces), "note": _note(suspect)}
    if found is not None:
        report |= {"stage": found.stage, "difference": found.how}
        if found.piece is not None:
            piece = pieces[found.piece]
            report |= {
                "piece": f"region {region.index} piece {piece.index}",
                "ops": piece.ops,
                "source": source_lines(piece),
            }
    return BisectReport(suspect.sizes, str(suspect.target), **report)


def _note(suspect: Suspect) -> str:
    overlap = Overlap.of(suspect.region.program)
    if overlap and overlap(suspect.tensors, suspect.bound):
        return "inputs share memory that the program writes to: such calls run as written"
    drawing = suspect.region.draws
    if drawing is not None:
        return f"{drawing} draws random numbers, and compiled code may draw others"
    return ""
