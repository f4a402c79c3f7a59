"""Whole numbers in a call's objects that a forward counts on, as a cache counts what it holds.

Such a number is another one at every call. A trace takes it for a symbol: what was asked of it is
asked again at each call, and what it becomes is set after it. A graph that has a use for the number
itself, or a result that does, is refused: it would be that of the trace.
"""

from __future__ import annotations

import dis
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import getattr_static
from itertools import pairwise
from types import CodeType
from typing import Any

import sympy
import torch

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.branches import Guard
from piecewise_core.graph.conditions import python_source
from piecewise_core.graph.facts import CHAIN, LAST, readable
from piecewise_core.graph.frame import Capture
from piecewise_core.graph.markers import CountMarker
from piecewise_core.torch_compat.dynamo import source_name
from piecewise_core.torch_compat.symbols import traced_with

__all__ = ["Counted", "Counting", "countable"]

_OBJECTS = "L['objects']"


class Counted:
    """The numbers that one trace took for symbols, in the objects of the calls that it serves.

    ``places``: symbol -> expression over the calls' objects. ``after``: what places hold after a
    call, over these symbols and those in ``dims``, the places of sizes. ``guards``: what must hold.
    ``told``: the same, for a person.
    """

    def __init__(
        self,
        places: Mapping[sympy.Symbol, str],
        after: Mapping[str, sympy.Basic],
        guards: Sequence[Guard],
        dims: Mapping[sympy.Symbol, int],
        objects: Sequence[Any],
    ) -> None:
        self.places = tuple(dict.fromkeys((*places.values(), *after)))
        named = {symbol: sympy.Symbol(readable(place)) for symbol, place in places.items()}
        asked = {g.where: f"{g.expr.subs(named)} at {g.where}" for g in guards[::-1] if g.where}
        self.told = tuple(asked.values())
        reads = [f"  {symbol} = {place}" for symbol, place in places.items()]
        reads += [f"  {symbol} = sizes[{place}]" for symbol, place in dims.items()]
        conditions = [f"type({symbol}) is int" for symbol in places]
        conditions += dict.fromkeys(f"({python_source(guard.expr)})" for guard in guards)
        sets = [f"  v{i} = {python_source(value)}" for i, value in enumerate(after.values())]
        sets += [f"  {place} = v{i}" for i, place in enumerate(after)]
        lines = ["def holds(L, sizes):", *reads, f"  return {' and '.join(conditions)}"]
        lines += ["def advance(L, sizes):", *reads, *sets, "  return None"]
        space: dict[str, Any] = {"math": math, "torch": torch}
        exec(compile("\n".join(lines), "<piecewise counted>", "exec"), space)
        self._holds: Callable[..., Any] = space["holds"]
        self._advance: Callable[..., Any] = space["advance"]
        self.bind(objects)

    def bind(self, objects: Sequence[Any]) -> None:
        """From now on go by these objects."""
        self._scope = {"objects": objects}

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether a call of ``sizes`` would go the traced way now."""
        try:
            return bool(self._holds(self._scope, sizes))
        except Exception:  # another object is in the place, or a division by zero was asked for
            return False

    def advance(self, sizes: Sequence[int]) -> None:
        """Set the numbers as a call of ``sizes`` leaves them."""
        self._advance(self._scope, sizes)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run the model inside, and have the numbers as they were."""
        with _put_back(self.places, self._scope):
            yield


class Counting:
    """The numbers that a frame took for symbols, while what was traced is made ready.

    ``counted``: their places. ``objects``: the constants of the traced call. Raises TraceFailed
    where Dynamo's answers about them may not be Python's.
    """

    def __init__(self, captured: Capture, counted: Iterable[str], objects: Sequence[Any]) -> None:
        env, wanted = captured.shape_env, set(counted)
        if wanted:
            _refuse_unsure(captured.code, wanted)
        sources = env.var_to_sources.items() if wanted else ()
        named = {symbol: [source_name(source) for source in found] for symbol, found in sources}
        self.places = {s: n for s, names in named.items() for n in names if n in wanted}
        self._env = env
        self._was = {s: sympy.Integer(traced_with(env, s)) for s in self.places}
        self._objects = objects
        ends = {p: v for effect in captured.side_effects for p, v in effect.counts.items()}
        self._after = ends if wanted else {}
        self.effects = tuple(effect for effect in captured.side_effects if effect.counts)
        self._guards: list[Guard] = []

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Have a CountMarker in the place of each number, to see where it goes."""
        with _put_back(self.places.values(), {"objects": self._objects}) as found:
            for owner, name, value in found:
                setattr(owner, name, CountMarker(value))
            yield

    def of_sizes(self, guards: Iterable[Guard]) -> list[Guard]:
        """What was asked of sizes, numbers being what they were; the rest is kept."""
        found = []
        for guard in guards:
            if (guard.expr.free_symbols | guard.asked.free_symbols) & self.places.keys():
                self._guards.append(Guard(guard.asked, guard.where, guard.asked))
                now = guard.asked.subs(self._was)
                guard = Guard(now, guard.where, now)
            if guard.expr != sympy.true:
                found.append(guard)
        return found

    def found(self, dims: Mapping[sympy.Symbol, int]) -> Counted | None:
        """The numbers of the trace; None where it has none. ``dims``: places of sizes."""
        if not self.places:
            return None
        guards = [*self._guards, *self._bounds()]
        used = set().union(*(e.free_symbols for e in self._after.values()))
        used = used.union(*(guard.expr.free_symbols for guard in guards))
        sizes = {symbol: place for symbol, place in dims.items() if symbol in used}
        if used - sizes.keys() - self.places.keys():
            raise TraceFailed(f"what {sorted(self.places.values())} become depends on data")
        return Counted(self.places, self._after, guards, sizes, self._objects)

    def _bounds(self) -> Iterator[Guard]:
        """What was taken for granted of a number from the start."""
        for symbol in self.places:
            span = self._env.var_to_range.get(symbol)
            for end, than in ((span.lower, sympy.Ge), (span.upper, sympy.Le)) if span else ():
                if isinstance(end, sympy.Integer):
                    yield Guard(than(symbol, end, evaluate=False), "")


def _refuse_unsure(codes: Collection[CodeType], places: Iterable[str]) -> None:
    """Raise TraceFailed for code that may ask what is not asked again, where a number is a symbol.

    Dynamo answers ``n is 4``, ``round(n, -1) == 10`` and ``f"{n}" == "4"`` with no, whatever it is.
    Any text matters in code that names the number's attribute, calls such code, or is called by it.
    """
    names = {place[_step(place) + 1 :] for place in places}
    reads = [code for code in codes if not names.isdisjoint(code.co_names)]
    called = {name for code in reads for name in code.co_names}
    near = {code.co_name for code in reads}
    for code in dict.fromkeys(codes):
        steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
        texts = [i for i, step in enumerate(steps) if step.opname.startswith("FORMAT_")]
        if code not in reads and code.co_name not in called and near.isdisjoint(code.co_names):
            texts = [i for i in texts if _compared(steps[i + 1 : i + _BESIDE])]
        identity = any(
            step.opname == "IS_OP" and type(before.argval) is int and "CONST" in before.opname
            for before, step in pairwise(steps)
        )
        if texts or identity or "round" in code.co_names:
            raise TraceFailed(f"{code.co_name} may ask of a number what is not asked again")


_BESIDE = 5
"""Steps of code behind a text, among which is what it is compared with."""


def _compared(steps: Iterable[dis.Instruction]) -> bool:
    return any(step.opname in ("COMPARE_OP", "CONTAINS_OP") for step in steps)


def countable(captured: Capture, objects: Sequence[Any]) -> frozenset[str]:
    """The places of numbers that a frame changes, where that is all that cannot be repeated."""
    changed = [e for e in captured.side_effects if e.changes and e not in captured.kept_up]
    places = [place for effect in changed for place in effect.counts]
    if not all(effect.counts for effect in changed):
        return frozenset()
    found = all(_is_plain(place, {"objects": objects}) for place in places)
    return frozenset(places if found else ())


def _is_plain(place: str, scope: Mapping[str, Any]) -> bool:
    """Whether setting it does nothing but that."""
    if not place.startswith(_OBJECTS) or not CHAIN.fullmatch(place) or set(place) & set(" ,:"):
        return False
    if place[_step(place)] != ".":
        return False
    with suppress(Exception):
        owner, name = _owner(place, scope), place[_step(place) + 1 :]
        kind = type(owner)
        setting: Any = kind.__setattr__
        plain = setting in (object.__setattr__, torch.nn.Module.__setattr__)
        made = getattr_static(kind, name, None)
        return plain and not hasattr(type(made), "__set__") and type(vars(owner)[name]) is int
    return False


def _step(place: str) -> int:
    """Where the last step of ``place`` begins."""
    last = LAST.search(place)
    return len(place) if last is None else last.start()


def _owner(place: str, scope: Mapping[str, Any]) -> Any:
    return eval(place[: _step(place)], {"L": scope})


@contextmanager
def _put_back(
    places: Iterable[str], scope: Mapping[str, Any]
) -> Iterator[list[tuple[Any, str, int]]]:
    """Each owner, name and value; these are set again at the end."""
    found = [(_owner(place, scope), place[_step(place) + 1 :]) for place in places]
    held = [(owner, name, getattr(owner, name)) for owner, name in found]
    try:
        yield held
    finally:
        for owner, name, value in held:
            setattr(owner, name, value)
