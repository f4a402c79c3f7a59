"""What is to be said of a model, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from piecewise_core.events import Event
from piecewise_core.frontend.status import TargetStatus

__all__ = [
    "CodeFacts",
    "Facts",
    "PieceFacts",
    "PieceTime",
    "RegionFacts",
    "RewriteFacts",
    "Times",
]


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
class PieceTime:
    """One piece in a replay. ``bytes``: that it must read and write once; 0 where nobody counts.

    ``share``: of the limit, which is these bytes at the bandwidth of a copy.
    """

    name: str
    microseconds: float
    bytes: int = 0
    share: float | None = None


@dataclass(frozen=True)
class Times:
    """The replay of one captured size, piece by piece, in order.

    ``by``: whose clock. ``bandwidth``: of a copy in the same run, in bytes per second. ``why``: it
    was not measured.
    """

    sizes: str
    by: str
    bandwidth: float | None
    pieces: tuple[PieceTime, ...] = ()
    why: str = ""

    @property
    def microseconds(self) -> float:
        """Of all pieces."""
        return sum(piece.microseconds for piece in self.pieces)


@dataclass(frozen=True)
class Facts:
    """Everything that is known of a model.

    ``captured``: sizes served by static graphs. ``dropped``: capture sizes that are not, and why.
    ``as_written``: targets that gave other results than the model, and how. ``unpadded``: why calls
    are not padded in some dims, where padding was asked for. ``exact``: what was measured of code
    for captured sizes alone. ``retraced``: why the model was last
    traced anew, or "". ``unmet``: names in ``splitting_ops`` that no graph traced so far has.
    ``forms``: the forms of calls so far, constants by their beginnings. ``rewrites``: in order.
    ``model``: its name. ``bounds``: the first and last size of each dim. ``ready``: as
    ``status()`` has it, and ``targets``, ``advice``. ``times``: of replays, where they were asked
    for. ``streams``: of captured sizes, whether two, where ``graph_streams`` asks for that.
    ``events``: the last that happened beside calls. ``recorded``: whether it is a recorded
    function, which has no pieces.
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
    exact: tuple[str, ...] = ()
    retraced: str = ""
    unmet: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    rewrites: tuple[RewriteFacts, ...] = ()
    model: str = ""
    bounds: tuple[tuple[int, int], ...] = ()
    ready: bool = False
    targets: tuple[TargetStatus, ...] = ()
    events: tuple[Event, ...] = ()
    advice: tuple[str, ...] = ()
    recorded: bool = False
    times: tuple[Times, ...] = ()
    streams: tuple[str, ...] = ()
