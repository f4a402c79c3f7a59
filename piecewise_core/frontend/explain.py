"""Say what was done with a model and why, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.graph.split import Piece

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class PieceFacts:
    """One piece. ``serves``: per range or size, how it runs and for whom it was compiled."""

    index: int
    kind: str
    ops: dict[str, int]
    source: str
    dims: tuple[str, ...]
    note: str
    serves: dict[str, str]


@dataclass(frozen=True)
class RegionFacts:
    """One region: its sizes, its targets in order of preference, its pieces."""

    index: int
    sizes: str
    targets: tuple[str, ...]
    pieces: tuple[PieceFacts, ...]


@dataclass(frozen=True)
class Explanation:
    """Everything ``explain()`` knows. ``str()`` for people, ``to_json()`` for programs."""

    platform: str
    reason: str
    compiler: str
    dims: tuple[str, ...]
    regions: tuple[RegionFacts, ...]
    stats: dict[str, Any]

    def to_json(self) -> str:
        """The explanation as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        lines = [
            f"platform {self.platform} ({self.reason}), compiler {self.compiler}",
            f"dims {', '.join(self.dims) or 'none'}",
        ]
        if not self.regions:
            lines.append("nothing traced yet: call the model, or warmup() with example arguments")
        for region in self.regions:
            lines += _region_lines(region)
        counted = ", ".join(f"{k} {v}" for k, v in self.stats.items() if v and k != "calls")
        calls = ", ".join(f"{k} {v}" for k, v in self.stats["calls"].items() if v)
        lines += [f"counters: {counted or 'none'}", f"calls: {calls or 'none'}"]
        return "\n".join(lines)


def _region_lines(region: RegionFacts) -> list[str]:
    lines = [f"region {region.index}: sizes {region.sizes}"]
    lines += [f"  target {target}" for target in region.targets]
    for piece in region.pieces:
        ops = ", ".join(f"{op} x{n}" if n > 1 else op for op, n in piece.ops.items())
        lines.append(f"  piece {piece.index} {piece.kind}: {ops}")
        if piece.source:
            lines.append(f"    from {piece.source}")
        if piece.note:
            lines.append(f"    runs as written: {piece.note}")
        lines += [f"    {box}: {how}" for box, how in piece.serves.items()]
    return lines


def explain(session: Session) -> Explanation:
    """Collect what there is to say about ``session``."""
    selected = session.setup.selected
    dims = session.config.dims
    return Explanation(
        platform=selected.info.name,
        reason=selected.reason,
        compiler=session.setup.compiler.name,
        dims=tuple(f"{d.name} [{d.min}, {d.max}]" for d in dims),
        regions=tuple(_region(session, region) for region in session.regions),
        stats=session.stats().to_dict(),
    )


def _region(session: Session, region: Region) -> RegionFacts:
    names = [d.name for d in session.config.dims]
    place = iter(range(len(region.program.compilable)))
    return RegionFacts(
        region.index,
        str(region.general_box if session.config.out_of_range == "general" else region.box),
        tuple(str(t) for t in region.targets),
        tuple(
            _piece(session, region, piece, names, -1 if piece.splitting else next(place))
            for piece in region.program.pieces
        ),
    )


def _piece(
    session: Session, region: Region, piece: Piece, names: list[str], place: int
) -> PieceFacts:
    boxes = dict.fromkeys([t.box for t in region.targets] + [region.general_box])
    serves = {}
    for box in boxes if not piece.splitting else ():
        artifact = session.scheduler.ready(piece, box)
        if artifact is None:
            continue
        label = region.label(place)
        how = f"compiled by {artifact.compiler} in {artifact.seconds:.2f} s"
        if artifact.owner != label:
            how = f"shared with {artifact.owner}"
        if artifact.note:
            how += f" ({artifact.note})"
        serves[str(box)] = how
    return PieceFacts(
        piece.index,
        "splitting" if piece.splitting else "compilable",
        dict(Counter(piece.ops)),
        piece.source,
        tuple(names[d] for d in piece.dims),
        piece.hazard or "",
        serves,
    )
