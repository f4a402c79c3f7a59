"""Guards of ours on the frame that Dynamo traces; known in 2.11 to 2.13, no fallback.

A backend is called before its frame's guards are made, and may add to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._guards import TracingContext

__all__ = ["Asking", "guard_frame"]

_OF_OBJECTS = frozenset(
    {
        *("CLASS_MATCH", "CLOSURE_MATCH", "FUNCTION_MATCH", "ID_MATCH", "TYPE_MATCH"),
        *("CONSTANT_MATCH", "EQUALS_MATCH"),
    }
)
"""What Dynamo asks of the objects that a trace went through, tensors left out."""


@dataclass(frozen=True)
class Asking:
    """``holds(locals)`` is asked before the frame's code is used; ``alike(values)`` of what the
    expressions ``sources`` are then. ``attributes``: names that objects lack themselves, each
    behind the expression for the object.
    """

    holds: Callable[[Any], bool]
    attributes: Iterable[tuple[str, str]]
    sources: Sequence[str]
    alike: Callable[[Sequence[Any]], bool]


def guard_frame(ask: Callable[[Mapping[str, Any], Sequence[CodeType]], Asking], text: str) -> None:
    """Have Dynamo ask what ``ask(values, codes)`` says, besides what it asks by itself.

    ``values``: what Dynamo asks about, by its expressions for it; nobody may keep it. ``codes``: of
    the functions that were traced. ``text``: what Dynamo's logs call the guard. Nothing happens
    where Dynamo is not at work, or met no object.
    """
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    found = [guard for guard in guards if guard.create_fn_name() in _OF_OBJECTS]
    met = _Met(ask, context.traced_code, text)
    for source in {guard.name: guard.originating_source for guard in found}.values():
        guards.add(source.make_guard(partial(_note, met=met)))
    # Guards are made in this order: of one object in that of the lines of what makes them.
    last = max(found or guards, key=lambda guard: guard.sort_key()[:-1])
    guards.add(last.originating_source.make_guard(partial(_finish, met=met)))


class _Met:
    """What the guards of one frame are about, while they are made."""

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any], Sequence[CodeType]], Asking],
        codes: Sequence[CodeType],
        text: str,
    ) -> None:
        self.values: dict[str, Any] = {}
        self.guards: dict[str, Any] = {}
        self._ask, self._codes, self._text = ask, codes, text

    def finish(self, builder: Any, guard: Any) -> None:
        asking = self._ask(self.values, self._codes)
        for name, attribute in asking.attributes:
            builder.NOT_PRESENT_IN_GENERIC_DICT(self.guards[name], attr=attribute)
        root = builder.guard_manager.root  # the object's own may be a dict's, which takes none
        root.add_lambda_guard(asking.holds, [self._text], guard.user_stack)
        if asking.sources:
            alike = _evaluated(asking.sources, asking.alike, builder.scope)
            root.add_lambda_guard(alike, [f"{self._text}, and what they lack"], guard.user_stack)
        self.values, self.guards = {}, {}


def _note(builder: Any, guard: Any, *, met: _Met) -> None:
    """Make a guard, as methods of Dynamo's GuardBuilder do."""
    met.values[guard.name] = builder.get(guard)
    met.guards[guard.name] = guard


def _finish(builder: Any, guard: Any, *, met: _Met) -> None:
    """The same, behind all others."""
    met.finish(builder, guard)


def _evaluated(
    sources: Sequence[str], alike: Callable[[Sequence[Any]], bool], scope: Mapping[str, Any]
) -> Callable[[Any], bool]:
    """``alike`` of expressions over a frame's locals. ``scope``: what else they name."""
    code = compile(f"({', '.join(sources)},)", "<piecewise guard>", "eval")
    names = {name: value for name, value in scope.items() if name != "L"}

    def holds(frame_locals: Any) -> bool:
        try:
            return alike(eval(code, names, {"L": frame_locals}))
        except Exception:  # one of them is not there now
            return False

    return holds
