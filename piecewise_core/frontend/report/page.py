"""Facts of a model as one HTML page: it fetches nothing, and escapes whatever it shows."""

from __future__ import annotations

import html
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from piecewise_core.frontend.facts import Facts
from piecewise_core.frontend.report.chart import chart
from piecewise_core.frontend.report.flow import flow
from piecewise_core.frontend.report.lines import rewrite_text
from piecewise_core.frontend.report.timeline import timeline

__all__ = ["framed", "page"]


def page(facts: Facts) -> str:
    """The page about ``facts``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of models and operators are anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        facts=facts,
        flow=flow(facts),
        chart=chart(facts),
        timeline=timeline(facts.events),
        misses=_misses(facts),
        rewrites=[rewrite_text(one) for one in facts.rewrites],
        notes=_notes(facts),
    )


def framed(made: str) -> str:
    """``made`` in a frame, so that neither its styles nor its script reach the page around it."""
    return (
        '<iframe sandbox="allow-scripts" title="piecewise report" '
        'style="width:100%;height:640px;border:1px solid #8888" '
        f'srcdoc="{html.escape(made, quote=True)}"></iframe>'
    )


def _misses(facts: Facts) -> list[tuple[str, str, str]]:
    """Piece, sizes, and why the compile store did not have its code, or does not keep it."""
    return [
        (code.owner, code.sizes, code.missed or f"not kept: {code.unkept}")
        for region in facts.regions
        for piece in region.pieces
        for code in piece.code
        if code.owner == piece.name and (code.missed or code.unkept)
    ]


def _notes(facts: Facts) -> list[tuple[str, str]]:
    """What somebody may want to change, and what kind of thing it is."""
    notes = [("advice", text) for text in facts.advice]
    notes += [("not captured", why) for why in facts.dropped]
    notes += [("not padded", why) for why in facts.unpadded]
    notes += [("captured sizes", why) for why in facts.exact]
    notes += [("graph streams", said) for said in facts.streams]
    notes += [("served as written", why) for why in facts.as_written]
    notes += [("splitting op in no graph", name) for name in facts.unmet]
    notes += [("traced anew", facts.retraced)] if facts.retraced else []
    for region in facts.regions:
        notes += [(f"region {region.index} only", guard) for guard in region.cuts]
        notes += [("runs as written", f"{p.name}: {p.note}") for p in region.pieces if p.note]
    return notes
