"""Guards of ours on the frame that Dynamo traces; known in 2.11 to 2.13, no fallback.

A backend is called before its frame's guards are made, and may add to them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any

import torch

from piecewise_core.torch_compat.dynamo import traced_names
from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._dynamo.source import AttrSource
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._guards import TracingContext

__all__ = ["Asking", "guard_frame"]

_OF_OBJECTS = frozenset(
    {
        *("CLASS_MATCH", "CLOSURE_MATCH", "FUNCTION_MATCH", "ID_MATCH", "TYPE_MATCH"),
        *("CONSTANT_MATCH", "EQUALS_MATCH"),
    }
)
"""What Dynamo asks of the objects that a trace went through, tensors left out."""

_PARTS = ("_parameters", "_buffers", "_modules")
"""Where else a module may have an attribute."""
_HOOKS = ("._forward_hooks", "._forward_pre_hooks")

_Values = Mapping[str, Any]
_Ask = Callable[[_Values, _Values, Collection[str], Sequence[CodeType]], "Asking"]


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


def guard_frame(ask: _Ask, text: str) -> None:
    """Have Dynamo ask what ``ask(values, read, keyed, codes)`` says beside what it asks by itself;
    and whether modules without forward hooks have none still, in whichever modules the frame meets.

    ``values``: what Dynamo asks about, by its expressions for it; nobody may keep it. ``read``: the
    same of all that the traced code read, of what is one object too; nothing in 2.11. ``keyed``:
    those of which it asks for all keys. ``codes``: of the functions that were traced. ``text``:
    what Dynamo's logs call the guard. Nothing happens where Dynamo is not at work.
    """
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    found = [guard for guard in guards if guard.create_fn_name() in _OF_OBJECTS]
    keyed = {guard.name for guard in guards if guard.create_fn_name() == "DICT_KEYS_MATCH"}
    codes = context.traced_code
    tx: Any = InstructionTranslator.current_tx()
    names = traced_names(tx.output)
    met = _Met(lambda values, scope: ask(values, _all_of(names, scope), keyed, codes), text)
    for source in {guard.name: guard.originating_source for guard in found}.values():
        guards.add(source.make_guard(partial(_note, met=met)))
    for guard in list(guards):
        # Dynamo leaves these out for speed, be a graph for one module or for all of its class.
        if guard.create_fn_name() == "EMPTY_NN_MODULE_HOOKS_DICT" and guard.name.endswith(_HOOKS):
            guards.add(guard.originating_source.make_guard(_as_long))
    # Guards are made in this order: of one object in that of the lines of what makes them.
    last = max(found or guards, key=lambda guard: guard.sort_key()[:-1])
    guards.add(last.originating_source.make_guard(partial(_finish, met=met)))


class _Met:
    """What the guards of one frame are about, while they are made."""

    def __init__(self, ask: Callable[[_Values, _Values], Asking], text: str) -> None:
        self.values: dict[str, Any] = {}
        self.guards: dict[str, Any] = {}
        self._ask, self._text = ask, text

    def finish(self, builder: Any, guard: Any) -> None:
        asking = self._ask(self.values, builder.scope)
        for name, attribute in asking.attributes:
            builder.NOT_PRESENT_IN_GENERIC_DICT(self.guards[name], attr=attribute)
            if isinstance(self.values[name], torch.nn.Module):
                for part in _PARTS:
                    inside = AttrSource(self.guards[name].originating_source, part)
                    _not_in(builder, inside.make_guard(_note), attribute)
        root = builder.guard_manager.root  # the object's own may be a dict's, which takes none
        root.add_lambda_guard(asking.holds, [self._text], guard.user_stack)
        if asking.sources:
            alike = _evaluated(asking.sources, asking.alike, builder.scope)
            root.add_lambda_guard(alike, [f"{self._text}, and what they lack"], guard.user_stack)
        self.values, self.guards = {}, {}


def _all_of(names: Iterable[str], scope: _Values) -> dict[str, Any]:
    """What expressions give that can be evaluated."""
    found: dict[str, Any] = {}
    named = dict(scope)
    for name in names:
        with contextlib.suppress(Exception):
            found[name] = eval(name, named)
    return found


def _note(builder: Any, guard: Any, *, met: _Met) -> None:
    """Make a guard, as methods of Dynamo's GuardBuilder do."""
    with contextlib.suppress(Exception):  # in 2.11 an expression may count keys of what has grown
        met.values[guard.name] = builder.get(guard)
        met.guards[guard.name] = guard


def _not_in(builder: Any, guard: Any, key: str) -> None:
    """The same: of a dict, that it lacks ``key``. In 2.11 one method has both answers."""
    if hasattr(builder, "DICT_NOT_CONTAINS"):
        builder.DICT_NOT_CONTAINS(guard, key=key)
    else:
        builder.DICT_CONTAINS(guard, key=key, invert=True)


def _as_long(builder: Any, guard: Any) -> None:
    """The same: of a dict, that it has no entry more."""
    builder.SEQUENCE_LENGTH(guard)


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
