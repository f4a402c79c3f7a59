"""What traced code changes besides tensors, read off Dynamo's own list of side effects.

Read in torch 2.11.0 and 2.13.0: of side effects ``store_attr_mutations`` and
``mutation_user_stacks``; ``ConstDictVariable.items``; ``LazyVariableTracker.original_value``;
``grapharg`` in a placeholder's meta.
"""

from __future__ import annotations

import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import sympy
import torch

from piecewise_core.graph.effects import is_inplace
from piecewise_core.graph.endings import is_made, whole
from piecewise_core.graph.structure import is_plain
from piecewise_core.torch_compat.dynamo import (
    AttributeMutationNew,
    ConstDictVariable,
    LazyVariableTracker,
    TensorVariable,
    ValueMutationNew,
    contents_variable,
    modified_variables,
    source_name,
)

__all__ = ["SideEffect", "read_side_effects"]


@dataclass(frozen=True)
class SideEffect:
    """One Python object that existed before the call and that the traced code writes to.

    ``changes``: whether it ends otherwise than it began; ``self.count += 1`` on a tensor does
    not. ``undo``: puts back what the object held, for use after the frame's own code ran.
    ``undoable``: whether all of it can be put back. ``kept``: places that are written, and that
    hold the same constants before and after. ``reorders``: it may move entries at other calls.
    ``places``: how the names of places that end otherwise begin. ``stored``: attributes, by module
    and name, where all that ends otherwise are such and hold what the graph computes. ``counts``:
    what places hold in the end, over Dynamo's symbols, where all are whole numbers as before.
    """

    what: str
    where: str
    changes: bool
    undo: Callable[[], None]
    undoable: bool = False
    kept: tuple[str, ...] = ()
    reorders: bool = False
    places: tuple[str, ...] = ()
    stored: tuple[tuple[torch.nn.Module, str], ...] = ()
    counts: Mapping[str, sympy.Basic] = field(default_factory=dict)


def read_side_effects(effects: Any, scope: Mapping[str, Any]) -> Iterator[SideEffect]:
    """The side effects in Dynamo's list ``effects``, while its compiler runs.

    ``scope``: what Dynamo's names for places, ``L['fn'].x`` say, are looked up in.
    """
    for var in modified_variables(effects):
        if isinstance(var.mutation_type, (AttributeMutationNew, ValueMutationNew)):
            continue
        inner, stacks = contents_variable(var), effects.mutation_user_stacks
        where = _where(stacks.get(var) or stacks.get(inner))
        stored = effects.store_attr_mutations.get(var)
        if isinstance(var, TensorVariable):
            # Writes to a tensor's numbers are in the graph; to its attributes, nowhere else.
            if stored:
                yield SideEffect(_describe(var, list(stored)), where, True, lambda: None)
            continue
        held = _held(var, scope) if stored is None else None
        if isinstance(inner, ConstDictVariable) and _is_dict(held):
            yield _of_dict(var, where, held, inner.items, scope)
        elif type(held) in (list, set):
            yield _of_items(var, where, held)
        else:
            yield _of_attributes(var, where, stored, effects, scope)


def _of_attributes(
    var: Any, where: str, stored: Mapping[str, Any] | None, effects: Any, scope: Mapping[str, Any]
) -> SideEffect:
    names = [n for n, v in (stored or {}).items() if not _restores(var, n, v, scope)]
    changes = stored is None or bool(names) or _changed_contents(var, effects)
    held = getattr(var, "value", None) if stored else None  # a list's value may hold no constants
    before = {n: getattr(held, n, _MISSING) for n in stored or ()}

    def undo() -> None:
        for name, value in before.items():
            if value is _MISSING:
                if hasattr(held, name):
                    delattr(held, name)
            elif getattr(held, name, _MISSING) is not value:
                setattr(held, name, value)

    source = _source(var)
    kept = tuple(f"{source}.{n}" for n in stored or () if n not in names and is_plain(before[n]))
    undoable = held is not None and not _changed_contents(var, effects)
    told, places = _describe(var, names), tuple(f"{source}.{name}" for name in names)
    made = undoable and all(is_made(held, name, (stored or {})[name]) for name in names)
    to = tuple((held, name) for name in names) if made and held is not None else ()
    ends = {f"{source}.{n}": whole(stored[n], before[n]) for n in names} if stored else {}
    counts = {p: n for p, n in ends.items() if n is not None and undoable}
    counts = counts if len(counts) == len(names) else {}
    of = (told, where, changes, undo, undoable, kept)
    return SideEffect(*of, places=places, stored=to, counts=counts)


def _of_dict(
    var: Any,
    where: str,
    held: dict[Any, Any],
    items: Mapping[Any, Any],
    scope: Mapping[str, Any],
) -> SideEffect:
    before = dict(held)

    def undo() -> None:
        if any(held.get(k) is not v for k, v in before.items()) or list(held) != list(before):
            held.clear()
            held.update(before)

    try:
        after = {key.vt.as_python_constant(): item for key, item in items.items()}
        same = list(held) == list(after)
        same = same and all(_stands_for(v, held[key], scope) for key, v in after.items())
    except Exception:
        same = False
    if same and isinstance(held, OrderedDict):
        # Nothing moved this time: another call would move another key to the end.
        what = f"{_describe(var, ())} (its order)"
        return SideEffect(what, where, True, undo, reorders=True)
    kept = [key for key, value in before.items() if is_plain(key) and is_plain(value)]
    places = tuple(f"{_source(var)}[{key!r}]" for key in kept) if same else ()
    under = () if same else (f"{_source(var)}[",)
    return SideEffect(_describe(var, ()), where, not same, undo, True, places, places=under)


def _of_items(var: Any, where: str, held: Any) -> SideEffect:
    before = held.copy()

    def undo() -> None:
        held.clear()
        (held.extend if isinstance(held, list) else held.update)(before)

    return SideEffect(_describe(var, ()), where, True, undo, True)


def _is_dict(held: Any) -> TypeGuard[dict[Any, Any]]:
    """Whether it is one of Python's own that reading leaves as it is."""
    return type(held) in (dict, OrderedDict)


def _held(var: Any, scope: Mapping[str, Any]) -> Any:
    """The container that ``var`` stands for, as it is before the frame's own code runs."""
    try:
        return eval(source_name(var.source), dict(scope))
    except Exception:
        return None


_MISSING = object()


def _changed_contents(var: Any, effects: Any) -> bool:
    """Whether the container under a user-defined object (a dict subclass, say) was written."""
    base_changed = getattr(var, "is_base_vt_modified", None)
    return bool(base_changed(effects)) if base_changed else False


def _restores(var: Any, name: str, stored: Any, scope: Mapping[str, Any]) -> bool:
    """Whether the attribute ends with the value it began with (set and reset, as locks are)."""
    try:
        return _stands_for(stored, getattr(var.value, name), scope)
    except Exception:
        return False


def _stands_for(var: Any, value: Any, scope: Mapping[str, Any]) -> bool:
    """Whether ``var`` is ``value`` itself, perhaps written to, or an equal constant."""
    if isinstance(var, LazyVariableTracker):
        if not var.is_realized():
            return var.original_value() is value
        var = var.realize()
    if not isinstance(var, TensorVariable):
        found = var.as_python_constant()
        return found is value or (type(found) is type(value) and bool(found == value))
    node: Any = var.proxy.node
    while node.op != "placeholder":
        if not is_inplace(node):
            return False
        node = node.args[0]
    given = node.meta.get("grapharg")
    # Dynamo forgets what stood for an input that nothing uses.
    return (_held(var, scope) if given is None else given.example) is value


def _source(var: Any) -> str:
    """Dynamo's name for the place of an object, if it has one."""
    try:
        return source_name(var.source)
    except Exception:
        return ""


def _describe(var: Any, names: Sequence[str]) -> str:
    source = _source(var).replace("L['fn'].__self__", "model").replace("L['fn']", "model")
    source = re.sub(r"\._modules\['(\w+)'\]", r".\1", source)
    source = re.sub(r"L\['t\d+'\]", "argument", source)
    kind = var.python_type_name()
    return f"{kind} {source}{'.' if names else ''}{', .'.join(names)}".strip()


def _where(stacks: Sequence[traceback.StackSummary] | None) -> str:
    frames = stacks[0] if stacks else ()
    library = os.path.dirname(torch.__file__) + os.sep
    # A module's attribute is set by torch's __setattr__; the line that asked for it matters.
    frame = next((f for f in reversed(frames) if not f.filename.startswith(library)), None)
    return f"{frame.filename}:{frame.lineno}" if frame else "unknown place"
