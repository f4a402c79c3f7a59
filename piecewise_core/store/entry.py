"""One compiled piece as it is kept: what it is and what it depends on, and the compiler's bytes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from piecewise_core.ranges import Box

__all__ = [
    "SCHEMA",
    "Entry",
    "Manifest",
    "Ticket",
    "key_of",
    "labelled",
    "make_entry",
    "make_ticket",
    "model_of",
    "now",
]

SCHEMA = 1
"""Version of the manifest and of the layout on disk; part of every key."""

_OF = ": "
"""Between a model's name and what its piece is called."""


@dataclass(frozen=True)
class Manifest:
    """What is known about one entry.

    ``key``: digest of ``factors``. ``factors``: name -> value, all that the artifact depends on.
    ``box``: over the piece's own dims, what it was compiled for. ``serves``: the part on which
    the code holds, None when nowhere (the artifact is then empty); ``why``: the reason when that
    is not all. ``adaptor``: the compiler's name. ``size``, ``sha256``: of the artifact, in
    bytes. ``seconds``: that the compilation took. ``made``: Unix time in milliseconds, to show
    and to put in order, never to trust. ``run``: tells the models' runs apart that made entries.
    ``label``: what messages called the piece, behind the model's name.
    """

    key: str
    factors: Mapping[str, str]
    box: Box
    serves: Box | None
    why: str
    adaptor: str
    size: int
    sha256: str
    seconds: float
    made: int
    run: str
    label: str

    @property
    def model(self) -> str:
        """The model's name; nothing where none is known."""
        return model_of(self.label)

    @property
    def piece(self) -> str:
        """What messages called the piece."""
        return self.label.rpartition(_OF)[2]


@dataclass(frozen=True)
class Entry:
    """A manifest and its artifact, both whole: whoever makes an Entry has checked them.

    ``signature``: as it is kept, of the manifest; nothing where there is none. Not compared.
    """

    manifest: Manifest
    artifact: bytes
    signature: bytes = field(default=b"", compare=False)


@dataclass(frozen=True)
class Ticket:
    """What one artifact is kept under, known before it is compiled.

    ``key``: digest of ``factors``. ``box``: over the piece's own dims. ``label``: of the piece.
    """

    key: str
    factors: Mapping[str, str]
    box: Box
    label: str


def model_of(label: str) -> str:
    """The model's name in a label; nothing where none is known."""
    return label.rpartition(_OF)[0]


def labelled(model: str, piece: str) -> str:
    """The label of a piece of ``model``."""
    return f"{model}{_OF}{piece}" if model else piece


def key_of(factors: Mapping[str, str]) -> str:
    """The key of what depends on ``factors``, in whatever order: 64 hexadecimal digits."""
    text = json.dumps([SCHEMA, dict(factors)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def make_entry(
    ticket: Ticket,
    artifact: bytes,
    *,
    serves: Box | None,
    why: str = "",
    adaptor: str,
    seconds: float = 0.0,
    made: int = 0,
    run: str = "",
) -> Entry:
    """An entry of ``artifact``; size and checksum are worked out here."""
    manifest = Manifest(
        key=ticket.key,
        factors=dict(ticket.factors),
        box=ticket.box,
        serves=serves,
        why=why,
        adaptor=adaptor,
        size=len(artifact),
        sha256=hashlib.sha256(artifact).hexdigest(),
        seconds=round(float(seconds), 6),
        made=made,
        run=run,
        label=ticket.label,
    )
    return Entry(manifest, artifact)


def now() -> int:
    """The time for ``made``."""
    return max(0, time.time_ns() // 1_000_000)


def make_ticket(factors: Mapping[str, str], box: Box, label: str = "") -> Ticket:
    """The ticket of what depends on ``factors``."""
    return Ticket(key_of(factors), dict(factors), box, label)
