"""Why there is no entry for a key: the nearest one that there is, and what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from piecewise_core.store.entry import Manifest, model_of

__all__ = ["Difference", "Miss", "differences", "explain_misses", "nearest"]

_FORM, _TRACED = "piece.form", "trace.of"
_LISTED = 3
_SHOWN = 60
"""Characters of a value that a sentence shows."""


@dataclass(frozen=True)
class Difference:
    """One factor of two entries; None where there is none of that name."""

    factor: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        old, new = _apart(self.old, self.new)
        return f"{self.factor} was {old}, is {new}"


@dataclass(frozen=True)
class Miss:
    """``nearest``: the entry that differs least, None when there is none of another run.

    ``refused``: why the entry itself was not taken, or "".
    """

    nearest: Manifest | None
    differences: tuple[Difference, ...] = ()
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"its entry was refused: {self.refused}"
        if self.nearest is None:
            return "the store had nothing to compare with"
        if not self.differences:
            return "an equal entry could not be used"
        named = [str(d) for d in self.differences[:_LISTED]]
        rest = len(self.differences) - _LISTED
        return "; ".join([*named, f"and {rest} more"] if rest > 0 else named)


def explain_misses(
    wanted: Mapping[str, tuple[Mapping[str, str], str]], older: Sequence[Manifest]
) -> dict[str, Miss]:
    """For each key the nearest of ``older``. ``wanted``: key -> (its factors, what asked)."""
    return {key: nearest(factors, label, older) for key, (factors, label) in wanted.items()}


def nearest(factors: Mapping[str, str], label: str, older: Iterable[Manifest]) -> Miss:
    """The entry with the same piece, if any has it, and the fewest factors that differ.

    Among equals one made for a piece of the same ``label``, then the youngest. Entries of other
    models tell nothing, and traces are not compared with pieces.
    """
    alike = [m for m in older if (_FORM in m.factors) == (_FORM in factors)]
    of = factors.get(_TRACED)
    alike = [m for m in alike if m.model in ("", model_of(label)) and m.factors.get(_TRACED) == of]
    best = min(alike, key=lambda m: _distance(factors, label, m), default=None)
    return Miss(None) if best is None else Miss(best, differences(best.factors, factors))


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Difference, ...]:
    """Each factor that differs, by name; a piece's digest only where nothing else tells of it."""
    names = [n for n in sorted({*old, *new}) if old.get(n) != new.get(n)]
    if any(n.startswith("piece.") and n != _FORM for n in names):
        names = [n for n in names if n != _FORM]
    return tuple(Difference(n, old.get(n), new.get(n)) for n in names)


def _distance(
    factors: Mapping[str, str], label: str, manifest: Manifest
) -> tuple[bool, int, bool, int]:
    other = manifest.factors
    differing = sum(other.get(n) != v for n, v in factors.items()) + len(other.keys() - factors)
    return (
        other.get(_FORM) != factors.get(_FORM),
        differing,
        manifest.label != label,
        -manifest.made,
    )


def _apart(old: str | None, new: str | None) -> tuple[str, str]:
    """Both values; of long lists of words only those that the other has not."""
    if old is None or new is None:
        return _short(old), _short(new)
    if max(len(old), len(new)) > _SHOWN:
        one, other = old.split(), new.split()
        old = " ".join(w for w in one if w not in set(other)) or old
        new = " ".join(w for w in other if w not in set(one)) or new
    return _short(old), _short(new)


def _short(value: str | None) -> str:
    if value is None:
        return "not there"
    if not value:
        return "empty"
    return value if len(value) <= _SHOWN else f"{value[: _SHOWN - 3]}..."
