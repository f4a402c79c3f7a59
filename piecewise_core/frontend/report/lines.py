"""Facts of a model as lines to read, whatever the model's size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from piecewise_core.frontend.facts import (
    CodeFacts,
    Facts,
    PieceFacts,
    RegionFacts,
    RewriteFacts,
    Times,
)

__all__ = ["made_text", "rewrite_text", "text"]

_WIDTH = 80
"""Columns of a line, but for a word that is longer."""

_BROKEN = 6
"""Columns, at least, before the rest of a broken line: no line begins so far to the right."""

_OPS = 4
"""Kinds of operations named per piece."""

_NUMBERS = 8
"""Equal pieces that are listed one by one."""

_SLOWEST = 8
"""Pieces of a replay that are listed one by one."""

_PARTS = 3
"""Components of a source path that are shown."""


def text(facts: Facts, *, verbose: bool) -> str:
    """``facts`` in lines of 80 columns; ``verbose``: nothing shortened, and no line broken."""
    lines = _lines(facts, verbose)
    return "\n".join(lines if verbose else (part for line in lines for part in _broken(line)))


def _broken(line: str) -> list[str]:
    """``line`` in parts, those behind the first further to the right."""
    indent = len(line) - len(line.lstrip())
    return textwrap.wrap(
        line,
        _WIDTH,
        subsequent_indent=" " * max(indent + 4, _BROKEN),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(e: Facts, verbose: bool) -> Iterator[str]:
    yield f"platform {e.platform} ({e.reason}), compiler {e.compiler}"
    yield f"dims {', '.join(e.dims) or 'none'}"
    yield f"rewrites {', '.join(map(rewrite_text, e.rewrites)) or 'none'}"
    if not e.regions:
        yield "nothing traced yet: call the model, or warmup() with example arguments"
    for place, form in enumerate(e.forms):
        if len(e.forms) > 1:
            yield f"form {place}: {form}"
        for region in e.regions:
            if region.form == place:
                yield from _region(region, verbose)
    if e.captured:
        yield f"captured: {'; '.join(e.captured)}"
    for note in e.streams:
        yield f"graph of {note}"
    for note in e.dropped:
        yield f"not captured: {note}"
    for note in e.unpadded:
        yield f"not padded: {note}"
    for note in e.exact:
        yield f"captured sizes of {note}"
    if e.unmet:
        yield f"splitting ops not in the graphs: {', '.join(e.unmet)}"
    if e.retraced:
        yield f"last traced anew, for {e.retraced}"
    for note in e.as_written:
        yield f"served as written: {note}"
    for note in e.advice:
        yield f"advice: {note}"
    for times in e.times:
        yield from _times(times, verbose)
    counted = {k: v for k, v in e.stats.items() if k != "calls"}
    yield f"counters: {_counted(counted)}"
    yield f"calls: {_counted(e.stats['calls'])}"


def _times(times: Times, verbose: bool) -> Iterator[str]:
    """A replay's pieces, those that take longest; in order, and all, where it is ``verbose``."""
    if times.why:
        yield f"not measured: {times.sizes}: {times.why}"
        return
    copied = "" if times.bandwidth is None else f"; a copy moves {times.bandwidth / 1e9:.1f} GB/s"
    yield f"replay of {times.sizes}: {times.microseconds:.1f} us by {times.by}{copied}"
    slowest = sorted(times.pieces, key=lambda piece: -piece.microseconds)
    shown = times.pieces if verbose else slowest[:_SLOWEST]
    for piece in shown:
        share = "" if piece.share is None else f", {piece.share:.2f} of the limit"
        moved = f" ({piece.bytes / 1e6:.2f} MB{share})" if piece.bytes else ""
        yield f"  {piece.name}: {piece.microseconds:.1f} us{moved}"
    if len(shown) < len(slowest):
        rest = slowest[_SLOWEST:]
        yield f"  {len(rest)} more: {sum(p.microseconds for p in rest):.1f} us"


def rewrite_text(rewrite: RewriteFacts) -> str:
    """A rewrite's name, who brought it, and why it does not run."""
    text = rewrite.name if rewrite.by == "piecewise-core" else f"{rewrite.name} of {rewrite.by}"
    return f"{text} (off: {rewrite.off})" if rewrite.off else text


def _counted(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value) or "none"


def _region(region: RegionFacts, verbose: bool) -> Iterator[str]:
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
        yield from _pieces(pieces, verbose)


def _pieces(alike: Sequence[PieceFacts], verbose: bool) -> Iterator[str]:
    """Pieces of one region that are equal; the first speaks for all."""
    piece = alike[0]
    numbers = _listed([p.name.rpartition(" ")[2] for p in alike], verbose)
    over = f" over {', '.join(piece.dims)}" if piece.dims else ""
    head = f"  {'pieces' if len(alike) > 1 else 'piece'} {numbers} {piece.kind}{over}"
    if piece.equals:
        yield f"{head}: equal to {piece.equals}"
    else:
        yield f"{head}: {_ops(piece.ops, verbose)}"
        if piece.source:
            yield f"    from {piece.source if verbose else _short(piece.source)}"
    if piece.note:
        yield f"    runs as written: {piece.note}"
    names = {p.name for p in alike}
    for code in piece.code:
        made = made_text(code) if code.owner in names else f"shared with {code.owner}"
        yield f"    {code.sizes}: {made}"


def _listed(numbers: Sequence[str], verbose: bool) -> str:
    if verbose or len(numbers) <= _NUMBERS:
        return ", ".join(numbers)
    return f"{', '.join(numbers[:3])} ... {numbers[-1]} ({len(numbers)} in all)"


def made_text(code: CodeFacts) -> str:
    """How code came about, in one sentence."""
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


def _ops(ops: Mapping[str, int], verbose: bool) -> str:
    """The most frequent operations, and how many there are in all."""
    shown = len(ops) if verbose else _OPS
    counted = [f"{op} x{n}" if n > 1 else op for op, n in list(ops.items())[:shown]]
    named = ", ".join(counted).replace("_operator.", "operator.")
    more = len(ops) - shown
    if more <= 0:
        return named
    return f"{sum(ops.values())} ops: {named} and {more} other kind{'s' if more > 1 else ''}"


def _short(source: str) -> str:
    """The end of ``path:line``."""
    return "/".join(source.replace("\\", "/").split("/")[-_PARTS:])
