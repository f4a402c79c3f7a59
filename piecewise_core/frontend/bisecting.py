"""Find the piece of a call that first differs from the model as written, and in which stage."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.capture.preserved import Preserved
from piecewise_core.frontend.bisectreport import BisectReport, source_lines
from piecewise_core.frontend.lockstep import Finding, Lockstep
from piecewise_core.frontend.suspects import Suspect
from piecewise_core.replay.overlap import Overlap
from piecewise_core.runtime.compared import apart, kept
from piecewise_core.runtime.fingerprints import Fingerprints, parting

__all__ = ["bisect"]


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
    pass_over = Lockstep(suspect)
    found = pass_over.find()
    tensors, bound = pass_over.given
    rebuild = suspect.region.program.traced.output.rebuild
    how = apart(kept(rebuild(pass_over.written, tensors, bound)), wanted)
    if how is None:
        how = apart(kept(suspect.written_of(tensors, bound)), kept(left))
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
