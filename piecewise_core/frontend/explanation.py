"""What is to be said of a model: as data, and as lines to read, whatever the model's size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CodeFacts", "Explanation", "PieceFacts", "RegionFacts", "RewriteFacts"]

_OPS = 4
"""Kinds of operations named per piece."""

_NUMBERS = 8
"""Equal pieces that are listed one by one."""

_PARTS = 3
"""Components of a source path that are shown."""


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
class RewriteFacts:
    """One rewrite. ``by``: who brought it. ``off``: why it does not run, or ""."""

    name: str
    level: str
    key: str
    by: str
    off: str


@dataclass(frozen=True)
class Explanation:
    """Everything ``explain()`` knows. ``str()`` for people, ``to_json()`` for programs.

    ``captured``: sizes served by static graphs. ``dropped``: capture sizes that are not, and why.
    ``as_written``: targets that gave other results than the model, and how. ``unpadded``: why calls
    are not padded in some dims, where padding was asked for. ``retraced``: why the model was last
    traced anew, or "". ``unmet``: names in ``splitting_ops`` that no graph traced so far has.
    ``forms``: the forms of calls so far, constants by their beginnings. ``rewrites``: in order.
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
    rewrites: tuple[RewriteFacts, ...] = ()

    def to_json(self) -> str:
        """The explanation as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(explanation: Explanation) -> Iterator[str]:
    """The lines of ``str(explanation)``."""
    e = explanation
    yield f"platform {e.platform} ({e.reason}), compiler {e.compiler}"
    yield f"dims {', '.join(e.dims) or 'none'}"
    yield f"rewrites {', '.join(map(_rewrite, e.rewrites)) or 'none'}"
    if not e.regions:
        yield "nothing traced yet: call the model, or warmup() with example arguments"
    for place, form in enumerate(e.forms):
        if len(e.forms) > 1:
            yield f"form {place}: {form}"
        for region in e.regions:
            if region.form == place:
                yield from _region(region)
    if e.captured:
        yield f"captured: {'; '.join(e.captured)}"
    for note in e.dropped:
        yield f"not captured: {note}"
    for note in e.unpadded:
        yield f"not padded: {note}"
    if e.unmet:
        yield f"splitting ops not in the graphs: {', '.join(e.unmet)}"
    if e.retraced:
        yield f"last traced anew, for {e.retraced}"
    for note in e.as_written:
        yield f"served as written: {note}"
    counted = {k: v for k, v in e.stats.items() if k != "calls"}
    yield f"counters: {_counted(counted)}"
    yield f"calls: {_counted(e.stats['calls'])}"


def _rewrite(rewrite: RewriteFacts) -> str:
    text = rewrite.name if rewrite.by == "piecewise-core" else f"{rewrite.name} of {rewrite.by}"
    return f"{text} (off: {rewrite.off})" if rewrite.off else text


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value) or "none"


def _region(region: RegionFacts) -> Iterator[str]:
    yield f"region {region.index}: {region.sizes}"
    for guard in region.cuts:
        yield f"  where {guard}"
    for target in region.targets:
        yield f"  {target}"
    alike: dict[object, list[PieceFacts]] = {}
    for piece in region.pieces:
        form = piece.equals or piece.name
        look = form if piece.kind == "compilable" else (tuple(piece.ops), piece.source)
        alike.setdefault((piece.kind, look, piece.note), []).append(piece)
    for pieces in alike.values():
        yield from _pieces(pieces)


def _pieces(alike: Sequence[PieceFacts]) -> Iterator[str]:
    """Pieces of one region that are equal; the first speaks for all."""
    piece = alike[0]
    numbers = _listed([p.name.rpartition(" ")[2] for p in alike])
    over = f" over {', '.join(piece.dims)}" if piece.dims else ""
    head = f"  {'pieces' if len(alike) > 1 else 'piece'} {numbers} {piece.kind}{over}"
    if piece.equals:
        yield f"{head}: equal to {piece.equals}"
    else:
        yield f"{head}: {_ops(piece.ops)}"
        if piece.source:
            yield f"    from {_short(piece.source)}"
    if piece.note:
        yield f"    runs as written: {piece.note}"
    names = {p.name for p in alike}
    for code in piece.code:
        made = _made(code) if code.owner in names else f"shared with {code.owner}"
        yield f"    {code.sizes}: {made}"


def _listed(numbers: Sequence[str]) -> str:
    if len(numbers) <= _NUMBERS:
        return ", ".join(numbers)
    return f"{', '.join(numbers[:3])} ... {numbers[-1]} ({len(numbers)} in all)"


def _made(code: CodeFacts) -> str:
    shared = len(code.shared_by)
    text = f"compiled by {code.compiler} in {code.seconds:.2f} s"
    if code.stored:
        text = f"from the store in {code.seconds:.2f} s, compiled by {code.compiler}"
    elif code.missed:
        text += f" (miss: {code.missed})"
    if shared:
        text += f", shared by {shared} more piece{'s' if shared > 1 else ''}"
    if code.unkept:
        text += f"; not kept: {code.unkept}"
    return f"{text}; {code.note}" if code.note else text


def _ops(ops: Mapping[str, int]) -> str:
    """The most frequent operations, and how many there are in all."""
    counted = [f"{op} x{n}" if n > 1 else op for op, n in list(ops.items())[:_OPS]]
    named = ", ".join(counted).replace("_operator.", "operator.")
    more = len(ops) - _OPS
    if more <= 0:
        return named
    return f"{sum(ops.values())} ops: {named} and {more} other kind{'s' if more > 1 else ''}"


def _short(source: str) -> str:
    """The end of ``path:line``."""
    return "/".join(source.replace("\\", "/").split("/")[-_PARTS:])
