"""The flow of pieces: in which order they run, and which of them share code."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from piecewise_core.frontend.facts import CodeFacts, Facts, PieceFacts, RegionFacts
from piecewise_core.frontend.report.lines import made_text

__all__ = ["Flow", "Group", "Step", "flow"]

_CODES = 24
"""Ranges and sizes of one group that a page lists."""


@dataclass
class Group:
    """Pieces that are one program. ``letter``: names it. ``hue``: its colour, in degrees."""

    letter: str
    hue: int
    first: PieceFacts
    pieces: list[PieceFacts] = field(default_factory=list)

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """Sizes, and how the code for them came about."""
        return tuple((code.sizes, made_text(code)) for code in self._made[:_CODES])

    @property
    def more(self) -> int:
        """Ranges and sizes that ``codes`` leaves out."""
        return max(0, len(self._made) - _CODES)

    @property
    def seconds(self) -> float:
        """What all of its code took."""
        return sum(code.seconds for code in self._made)

    @property
    def _made(self) -> Sequence[CodeFacts]:
        return max((piece.code for piece in self.pieces), key=len)


@dataclass(frozen=True)
class Step:
    """One piece in its place. ``number``: in its region. ``about``: what it does, in words."""

    number: str
    group: Group
    splitting: bool
    about: str


@dataclass(frozen=True)
class Flow:
    """``regions``: each with its pieces in order. ``groups``: distinct programs among them."""

    regions: tuple[tuple[RegionFacts, tuple[Step, ...]], ...]
    groups: tuple[Group, ...]


def flow(facts: Facts) -> Flow:
    """The flow of pieces of ``facts``."""
    groups: dict[object, Group] = {}
    regions = tuple(
        (region, tuple(_step(piece, groups) for piece in region.pieces)) for region in facts.regions
    )
    return Flow(regions, tuple(groups.values()))


def _step(piece: PieceFacts, groups: dict[object, Group]) -> Step:
    splitting = piece.kind == "splitting"
    key = (tuple(piece.ops), piece.source) if splitting else piece.equals or piece.name
    group = groups.get(key)
    if group is None:
        place = len(groups)
        group = groups[key] = Group(_letters(place), place * 137 % 360, piece)
    group.pieces.append(piece)
    about = f"{piece.name}, {piece.kind}: {', '.join(list(piece.ops)[:4])}"
    return Step(piece.name.rpartition(" ")[2], group, splitting, about)


def _letters(place: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    text = ""
    while place >= 0:
        text = string.ascii_uppercase[place % 26] + text
        place = place // 26 - 1
    return text
