"""Say what was done with a model and why, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from piecewise_core.compile.artifact import Artifact
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.graph.split import Piece
from piecewise_core.graph.wording import shown_form
from piecewise_core.ranges import Box
from piecewise_core.targets import Target

__all__ = ["CodeFacts", "Explanation", "PieceFacts", "RegionFacts", "explain"]


@dataclass(frozen=True)
class CodeFacts:
    """The code of one piece for one range or size.

    ``seconds``: that its compilation took, or its loading when it is ``stored``: taken from the
    compile store. ``owner``: the piece that it was made for. ``shared_by``: the other pieces that
    it serves. ``note``: why sizes run as written, if any do. ``missed``: why the store did not
    have it, when it was asked. ``unkept``: why it is not kept there, where somebody may wonder.
    """

    sizes: str
    compiler: str
    seconds: float
    owner: str
    shared_by: tuple[str, ...]
    note: str
    stored: bool = False
    missed: str = ""
    unkept: str = ""


@dataclass(frozen=True)
class PieceFacts:
    """One piece.

    ``name``: as messages call it. ``ops``: name -> how often, the most frequent first.
    ``source``: file:line. ``dims``: those it depends on. ``equals``: the first piece of the same
    canonical form, when that is another one. ``note``: why it must run as written, if it must.
    """

    name: str
    kind: str
    ops: dict[str, int]
    source: str
    dims: tuple[str, ...]
    equals: str
    note: str
    code: tuple[CodeFacts, ...]


@dataclass(frozen=True)
class RegionFacts:
    """One region: its sizes, its targets in order of preference, its pieces.

    ``cuts``: the guards that hold for its sizes alone, with the lines that asked. ``form``: the
    place of its calls among the forms.
    """

    index: int
    sizes: str
    targets: tuple[str, ...]
    pieces: tuple[PieceFacts, ...]
    cuts: tuple[str, ...] = ()
    form: int = 0


@dataclass(frozen=True)
class Explanation:
    """Everything ``explain()`` knows. ``str()`` for people, ``to_json()`` for programs.

    ``captured``: sizes served by static graphs. ``dropped``: capture sizes that are not, and why.
    ``as_written``: targets that gave other results than the model, and how. ``unpadded``: why calls
    are not padded in some dims, where padding was asked for. ``retraced``: why the model was last
    traced anew, or "". ``unmet``: names in ``splitting_ops`` that no graph traced so far has.
    ``forms``: the forms of calls so far, constants by their beginnings.
    """

    platform: str
    reason: str
    compiler: str
    dims: tuple[str, ...]
    regions: tuple[RegionFacts, ...]
    stats: dict[str, Any]
    captured: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    as_written: tuple[str, ...] = ()
    unpadded: tuple[str, ...] = ()
    retraced: str = ""
    unmet: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The explanation as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        from piecewise_core.frontend.prose import lines

        return "\n".join(lines(self))


def explain(session: Session) -> Explanation:
    """Collect what there is to say about ``session``."""
    selected = session.setup.selected
    first: dict[str, str] = {}
    return Explanation(
        platform=selected.info.name,
        reason=selected.reason,
        compiler=session.setup.compiler.name,
        dims=tuple(f"{d.name} {d.sizes}" for d in session.config.dims),
        regions=tuple(
            _region(session, place, region, first)
            for place, form in enumerate(session.forms)
            for region in form.regions
        ),
        stats=session.stats().to_dict(),
        captured=_captured(session),
        dropped=_dropped(session),
        as_written=_as_written(session),
        unpadded=_unpadded(session),
        retraced=session.shared.retraced,
        unmet=session.shared.matcher.unmet,
        forms=tuple(shown_form(form.structure) for form in session.forms),
    )


def _captured(session: Session) -> tuple[str, ...]:
    return tuple(
        f"{of}{_sizes(session, Box.single(sizes))}"
        for of, capturing in _capturing(session)
        for sizes in session.config.captures
        if sizes in capturing.plans
    )


def _dropped(session: Session) -> tuple[str, ...]:
    return tuple(
        f"{of}{_sizes(session, Box.single(sizes))}: {why}"
        for of, capturing in _capturing(session)
        for sizes, why in capturing.plans.dropped.items()
    )


def _capturing(session: Session) -> Iterator[tuple[str, Capturing]]:
    """The static graphs of each form, and what to call the form where there are several."""
    for place, form in enumerate(session.forms):
        if form.capturing is not None:
            yield f"form {place}, " if len(session.forms) > 1 else "", form.capturing


def _unpadded(session: Session) -> tuple[str, ...]:
    found = [
        (region.index, why)
        for form in session.forms
        if form.capturing is not None
        for region in form.regions
        for why in form.capturing.padded.reasons.get(region, ())
    ]
    return tuple(f"region {index}: {why}" for index, why in found)


def _as_written(session: Session) -> tuple[str, ...]:
    verifiers = [form.verifier for form in session.forms if form.verifier is not None]
    wrong = [found for verifier in verifiers for found in verifier.wrong.items()]
    return tuple(f"region {index} {target}: {why}" for (index, target), why in wrong)


def _region(session: Session, form: int, region: Region, first: dict[str, str]) -> RegionFacts:
    place = iter(range(len(region.program.compilable)))
    return RegionFacts(
        region.index,
        _sizes(session, region.general_box),
        tuple(_target(session, target) for target in region.targets),
        tuple(
            _splitting(session, region, piece)
            if piece.splitting
            else _compilable(session, region, piece, region.label(next(place)), first)
            for piece in region.program.pieces
        ),
        region.program.traced.cuts,
        form,
    )


def _splitting(session: Session, region: Region, piece: Piece) -> PieceFacts:
    name = f"region {region.index} piece {piece.index}"
    return PieceFacts(name, "splitting", _ops(piece), piece.source, (), "", "", ())


def _compilable(
    session: Session, region: Region, piece: Piece, name: str, first: dict[str, str]
) -> PieceFacts:
    """``first``: canonical key -> the name of the first piece that has it; filled here."""
    equals = first.setdefault(session.scheduler.register(piece), name)
    boxes = dict.fromkeys([*(t.box for t in region.targets), region.general_box])
    ready = [(box, session.scheduler.ready(piece, box)) for box in boxes]
    return PieceFacts(
        name,
        "compilable",
        _ops(piece),
        piece.source,
        tuple(session.config.dims[d].name for d in piece.dims),
        equals if equals != name else "",
        piece.hazard or ("a size is 0 there" if region.as_written else ""),
        tuple(_code(session, box, artifact) for box, artifact in ready if artifact is not None),
    )


def _code(session: Session, box: Box, artifact: Artifact) -> CodeFacts:
    return CodeFacts(
        _sizes(session, box),
        artifact.compiler,
        round(artifact.seconds, 3),
        artifact.owner,
        tuple(artifact.shared_by),
        artifact.note,
        artifact.stored,
        _missed(session, artifact),
        artifact.unkept,
    )


def _missed(session: Session, artifact: Artifact) -> str:
    if artifact.stored or artifact.ticket is None or session.scheduler.artifact_cache is None:
        return ""
    # All at once: each asking reads every manifest there is.
    tickets = [a.ticket for a in session.scheduler.artifacts if a.ticket and not a.stored]
    misses = session.scheduler.artifact_cache.misses({t.key: t for t in tickets})
    found = misses.get(artifact.ticket.key)
    return "" if found is None else str(found)


def _ops(piece: Piece) -> dict[str, int]:
    return dict(Counter(piece.ops).most_common())


def _target(session: Session, target: Target) -> str:
    kind = "size" if target.kind == "compiled_size" else "range"
    return f"{kind} {_sizes(session, target.box)}"


def _sizes(session: Session, box: Box) -> str:
    """``box`` with its dims named: ``batch 1, length [2, 64]``."""
    parts = []
    for dim, span in zip(session.config.dims, box.ranges, strict=True):
        if span.is_single_size():
            parts.append(f"{dim.name} {span.start}")
        elif span.end > dim.max:
            parts.append(f"{dim.name} from {span.start}")
        else:
            parts.append(f"{dim.name} {span}")
    return ", ".join(parts) or "every call"
