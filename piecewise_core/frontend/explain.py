"""Say what was done with a model and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from piecewise_core.compile.artifact import Artifact
from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.explanation import Explanation
from piecewise_core.frontend.facts import CodeFacts, PieceFacts, RegionFacts, RewriteFacts
from piecewise_core.frontend.measuring import measured
from piecewise_core.frontend.naming import model_name
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.statuses import session_status
from piecewise_core.graph.split import Piece
from piecewise_core.graph.varying import varies, why_varying
from piecewise_core.graph.wording import shown_form
from piecewise_core.ranges import Box
from piecewise_core.rewrites import ListedRewrite, SmallAllReduces
from piecewise_core.targets import Target

__all__ = ["explain"]


def explain(session: Session, *, verbose: bool = False, measure: bool = False) -> Explanation:
    """Collect what there is to say about ``session``; ``verbose``: shorten nothing of it.

    ``measure``: replay what is captured, and say where the time goes.
    """
    selected, status = session.setup.selected, session_status(session)
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
        exact=tuple(
            f"region {r.index}: {why}" for r in session.regions for why in r.verdicts.values()
        ),
        streams=_streams(session),
        retraced=session.shared.retraced,
        unmet=session.shared.matcher.unmet,
        forms=tuple(shown_form(form.structure) for form in session.forms),
        rewrites=tuple(_rewrite(session, one) for one in session.setup.rewrites.listed),
        model=model_name(session.shared.fn),
        bounds=tuple((dim.min, dim.max) for dim in session.config.dims),
        ready=status.ready,
        targets=status.targets,
        times=measured(session) if measure else (),
        events=session.counters.history(),
        advice=status.advice,
        verbose=verbose,
    )


def _rewrite(session: Session, one: ListedRewrite) -> RewriteFacts:
    off = "" if one.on else "rewrites_off"
    if one.on and one.lowered and session.setup.compiler.name == "eager":
        off = "nothing is lowered for compiler eager"
    sharing = session.setup.rewrites.sharing
    if one.on and sharing is not None and isinstance(one.of, SmallAllReduces):
        off = sharing.why
    return RewriteFacts(one.of.name, one.of.level, one.of.key, one.by, off)


def _captured(session: Session) -> tuple[str, ...]:
    return tuple(
        f"{of}{_sizes(session, Box.single(sizes))}"
        for of, capturing in _capturing(session)
        for sizes in session.config.captures
        if sizes in capturing.plans
    )


def _streams(session: Session) -> tuple[str, ...]:
    return tuple(
        f"{of}{_sizes(session, Box.single(sizes))}: {said}"
        for of, capturing in _capturing(session)
        for sizes, said in capturing.plans.streams.said.items()
        if sizes in capturing.plans
    )


def _dropped(session: Session) -> tuple[str, ...]:
    dropped = (
        f"{of}{_sizes(session, Box.single(sizes))}: {why}"
        for of, capturing in _capturing(session)
        for sizes, why in capturing.plans.dropped.items()
    )
    released = (
        f"{of}for now: {capturing.replays.asleep.why}"
        for of, capturing in _capturing(session)
        if capturing.replays.asleep
    )
    return (*_unasked(session), *dropped, *released)


def _unasked(session: Session) -> Iterator[str]:
    """Say how the one size of a model without dims is captured, where nothing asks for that."""
    setup, config = session.setup, session.config
    asked = setup.graph_mode != "none" or config.graph_mode == "none" or config.dims
    if not asked and setup.platform.graphs is not None:
        yield 'every call: nothing asks for static graphs, as graph_mode="full" does'


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
    served = session.forms.met.served.items()
    return (
        *(f"region {index} {target}: {why}" for (index, target), why in wrong),
        *(f"{count} call{'s' * (count > 1)}: {why}" for why, count in served),
    )


def _region(session: Session, form: int, region: Region, first: dict[str, str]) -> RegionFacts:
    place = iter(range(len(region.program.compilable)))
    counted = region.program.traced.counted
    return RegionFacts(
        region.index,
        _sizes(session, region.general_box),
        tuple(_target(session, target) for target in region.targets),
        tuple(
            _splitting(region, piece)
            if piece.splitting
            else _compilable(session, region, piece, region.label(next(place)), first)
            for piece in region.program.pieces
        ),
        (*region.program.traced.cuts, *(counted.told if counted is not None else ())),
        form,
    )


def _splitting(region: Region, piece: Piece) -> PieceFacts:
    name = f"region {region.index} piece {piece.index}"
    note = why_varying(next(filter(varies, piece.nodes))) if piece.varies else ""
    return PieceFacts(name, "splitting", _ops(piece), piece.source, (), "", note, ())


def _compilable(
    session: Session, region: Region, piece: Piece, name: str, first: dict[str, str]
) -> PieceFacts:
    """``first``: canonical key -> the name of the first piece that has it; filled here."""
    equals = first.setdefault(session.scheduler.register(piece), name)
    boxes = dict.fromkeys([*region.boxes, region.general_box])
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
