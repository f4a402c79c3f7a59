"""Objects that take the place of those that a form's calls hold: a cache made for each generation.

What a trace took for granted of an object is asked of the one that comes in its place, and its
tensors are bound where the old ones were. Nothing is traced or compiled for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from piecewise_core.graph.assumptions import Assumptions
from piecewise_core.graph.binder import AsWritten
from piecewise_core.graph.call import constants
from piecewise_core.graph.differences import Meaning, differences
from piecewise_core.graph.facts import OF_CALLS, Evaluated
from piecewise_core.graph.structure import Structure, is_plain
from piecewise_core.torch_compat.dynamo import is_kept_out

__all__ = [
    "Met",
    "differs_beside",
    "first_difference",
    "held_by",
    "is_another_object",
    "objects_in",
    "stand_ins_of",
    "successors_of",
]


def objects_in(structure: Structure) -> list[Any]:
    """The constants of calls that are compared by identity, in order."""
    return [value for value in constants(structure) if not is_plain(value)]


def differs_beside(known: Structure, call: Structure) -> str | None:
    """What differs between a form and a call beside objects of the same types; None: nothing."""
    found = differences(known, call)
    other = next((each for each in found if each.what != "object"), None)
    return None if other is None else f'argument "{other.path}" has another {other.what} too'


def is_another_object(known: Structure, call: Structure) -> bool:
    """Whether a call of whatever form has another object of the same type somewhere."""
    return any(difference.what == "object" for difference in differences(known, call))


def first_difference(
    assumptions: Assumptions | None, fn: Any, objects: Sequence[Any], *, unwatched: bool = False
) -> str | None:
    """What a trace took for granted of its objects and does not hold of these; None: all holds.

    ``unwatched``: only what a `TraceState` does not ask.
    """
    if assumptions is None:
        return "what the trace took for granted was not noted"
    unasked = next((text for text in assumptions.unasked if OF_CALLS.search(text)), None)
    if unasked is not None:
        return unasked
    values = Evaluated(assumptions.scope(fn, objects))
    facts = assumptions.of_objects(unwatched=unwatched)
    return next((why for fact in facts if (why := fact.broken(values)) is not None), None)


def successors_of(known: Sequence[Any], call: Sequence[Any]) -> dict[int, Any] | None:
    """The object that takes the place of each, by its id; None where one was in two places."""
    pairs = {(id(a), id(b)) for a, b in zip(known, call, strict=True)}
    apart = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    return {id(a): b for a, b in zip(known, call, strict=True)} if apart else None


def held_by(value: Any) -> set[int]:
    """The ids of nested containers, and of what they hold."""
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if id(value) not in found:  # and no other object takes its id
            found[id(value)] = value
            inner = value.values() if isinstance(value, Mapping) else value
            waiting += inner if isinstance(value, (list, tuple, Mapping)) else ()
    return set(found)


def stand_ins_of(objects: Iterable[Any]) -> dict[int, Any] | None:
    """An empty object of the same type for each, by its id; None where there can be none."""
    found: dict[int, Any] = {}
    for value in objects:
        kind = type(value)
        if hasattr(kind, "__del__"):  # which would run on what was never made
            return None
        try:
            found[id(value)] = object.__new__(kind)
        except TypeError:  # not made by Python code
            return None
    return found


class Met:
    """The objects that calls brought, and the types of those that every call changes.

    Some are filled by the first forward that gets them, as a static cache is: that call runs as
    written. Others change at each, as a growing cache does: so do all their calls.
    """

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._filled: set[type] = set()
        self._growing: dict[type, str] = {}
        self._returning: list[tuple[Structure, str]] = []
        self.served: dict[str, int] = {}

    def count(self, why: str) -> None:
        """One call more was served as written; the last eight reasons are kept."""
        self.served[why] = self.served.pop(why, 0) + 1
        if len(self.served) > _REASONS:
            del self.served[next(iter(self.served))]

    def refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise AsWritten for a call with an object of a type that every call changes."""
        for value in (*args, *kwargs.values()) if self._growing else ():
            why = self._growing.get(type(value))
            if why is not None:
                raise AsWritten(why)

    def first(self, structure: Structure, why: str | None) -> None:
        """Raise AsWritten, quietly, for the first call of an object that no form can follow.

        ``why``: what differs from those that forms have; None where none has any.
        """
        objects = objects_in(structure)
        if why is None and not any(type(value) in self._filled for value in objects):
            return
        new = [value for value in objects if self._is_new(value)]
        if new:
            said = f"the first call with another {_names(new)} runs as written"
            short = "" if why else _fills(new)
            raise AsWritten(f"{said}: {why or 'it fills it'}", quiet=True, short=short)

    def changed(self, structure: Structure, error: Exception) -> AsWritten:
        """What to say of a call whose objects the model changes, ``error``.

        From the second time on that is said of all objects of their types.
        """
        objects = objects_in(structure)
        new = [value for value in objects if self._is_new(value)]
        if new:
            self._filled.update(map(type, new))
            why = f"the first call fills what it is given: {error}"
            return AsWritten(why, quiet=True, short=_fills(new))
        for kind in {type(value) for value in objects}:
            self._growing[kind] = (
                f"every call with a {kind.__name__} changes it, which no static program can: "
                f"{_ADVICE}"
            )
        short = "; ".join(self._growing[kind] for kind in {type(value) for value in objects})
        return AsWritten(f"{error}. {_ADVICE}", short=short)

    def frozen(self, structure: Structure, error: Exception) -> AsWritten:
        """What to say of a call whose result a trace would freeze, by ``error``, and of its like.

        A method of the model made it, which nobody can have call otherwise.
        """
        self._returning = [*self._returning[1 - _REASONS :], (structure, f"{error}")]
        return AsWritten(f"{error}")

    def returns(self, structure: Structure) -> None:
        """Raise AsWritten for a call like one of those, whatever its sizes."""
        for known, why in self._returning:
            if all(each.meaning is Meaning.SLIP for each in differences(known, structure)):
                raise AsWritten(why)

    def kept_out(self, structure: Structure, error: Exception) -> AsWritten | None:
        """What to say of a call whose objects' own code may not be traced, ``error``; or None.

        From then on that is said of all objects of their types.
        """
        for kind in {type(value) for value in objects_in(structure)}:
            members = [(base, name) for base in kind.__mro__ for name in vars(base)]
            for base, name in members:
                own = f"{base.__qualname__}.{name}"
                if is_kept_out(vars(base)[name]) and own in str(error):
                    why = f"torch.compiler.disable keeps {own} from being traced"
                    self._growing[kind] = why
                    return AsWritten(why)
        return None

    def _is_new(self, value: Any) -> bool:
        """Whether a call brings an object for the first time; noted."""
        known = self._seen.get(id(value))
        if known is not None and known() is value:
            return False
        try:
            self._seen[id(value)] = weakref.ref(value, partial(self._gone, id(value)))
        except TypeError:  # nobody can tell when it is gone
            return False
        return True

    def _gone(self, key: int, _: object) -> None:
        known = self._seen.get(key)
        if known is not None and known() is None:
            del self._seen[key]


def _names(values: Iterable[Any]) -> str:
    return ", ".join(sorted({type(value).__name__ for value in values}))


def _fills(new: Iterable[Any]) -> str:
    return f"the first call with a new {_names(new)} fills it, as a prefill does"


_REASONS = 8

_ADVICE = (
    "pass one whose tensors keep their place, as with transformers' "
    'generate(cache_implementation="static")'
)
