"""What traced code changes besides tensors, read off Dynamo's own list of side effects.

Read in torch 2.11.0 and 2.13.0: of side effects ``store_attr_mutations`` and
``mutation_user_stacks``; ``ConstDictVariable.items``; ``LazyVariableTracker.original_value``;
``grapharg`` in a placeholder's meta.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.graph.effects import is_inplace
from piecewise_core.torch_compat.dynamo import (
    AttributeMutationNew,
    ConstDictVariable,
    LazyVariableTracker,
    TensorVariable,
    ValueMutationNew,
    modified_variables,
)

__all__ = ["SideEffect", "read_side_effects"]


@dataclass(frozen=True)
class SideEffect:
    """One Python object that existed before the call and that the traced code writes to.

    ``changes``: whether it ends otherwise than it began; ``self.count += 1`` on a tensor does
    not. ``undo``: puts back what the object held, for use after the frame's own code ran.
    """

    what: str
    where: str
    changes: bool
    undo: Callable[[], None]


def read_side_effects(effects: Any, scope: Mapping[str, Any]) -> Iterator[SideEffect]:
    """The side effects in Dynamo's list ``effects``, while its compiler runs.

    ``scope``: what Dynamo's names for places, ``L['fn'].x`` say, are looked up in.
    """
    for var in modified_variables(effects):
        if isinstance(var.mutation_type, (AttributeMutationNew, ValueMutationNew)):
            continue
        where = _where(effects.mutation_user_stacks.get(var))
        stored = effects.store_attr_mutations.get(var)
        if isinstance(var, TensorVariable):
            # Writes to a tensor's numbers are in the graph; to its attributes, nowhere else.
            if stored:
                yield SideEffect(_describe(var, list(stored)), where, True, lambda: None)
            continue
        if isinstance(var, ConstDictVariable) and stored is None:
            yield _of_dict(var, where, scope)
        else:
            yield _of_attributes(var, where, stored, effects)


def _of_attributes(
    var: Any, where: str, stored: Mapping[str, Any] | None, effects: Any
) -> SideEffect:
    names = [n for n, v in (stored or {}).items() if not _restores(var, n, v)]
    changes = stored is None or bool(names) or _changed_contents(var, effects)
    held = getattr(var, "value", None) if stored else None  # a list's value may hold no constants
    before = {n: getattr(held, n) for n in stored or () if hasattr(held, n)}

    def undo() -> None:
        for name, value in before.items():
            if getattr(held, name) is not value:
                setattr(held, name, value)

    return SideEffect(_describe(var, names), where, changes, undo)


def _of_dict(var: Any, where: str, scope: Mapping[str, Any]) -> SideEffect:
    try:
        held: dict[Any, Any] = eval(_source(var), dict(scope))
        after = {key.vt.as_python_constant(): item for key, item in var.items.items()}
        same = list(held) == list(after)
        same = same and all(_stands_for(item, held[key]) for key, item in after.items())
    except Exception:
        return SideEffect(_describe(var, ()), where, True, lambda: None)
    before = dict(held)

    def undo() -> None:
        if any(held.get(k) is not v for k, v in before.items()) or len(held) != len(before):
            held.clear()
            held.update(before)

    return SideEffect(_describe(var, ()), where, not same, undo)


def _changed_contents(var: Any, effects: Any) -> bool:
    """Whether the container under a user-defined object (a dict subclass, say) was written."""
    base_changed = getattr(var, "is_base_vt_modified", None)
    return bool(base_changed(effects)) if base_changed else False


def _restores(var: Any, name: str, stored: Any) -> bool:
    """Whether the attribute ends with the value it began with (set and reset, as locks are)."""
    try:
        return _stands_for(stored, getattr(var.value, name))
    except Exception:
        return False


def _stands_for(var: Any, value: Any) -> bool:
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
    return node.meta["grapharg"].example is value


def _source(var: Any) -> str:
    """Dynamo's name for where a value comes from."""
    name = var.source.name
    return name if isinstance(name, str) else str(name())


def _describe(var: Any, names: Sequence[str]) -> str:
    try:
        source = _source(var)
    except Exception:
        source = ""
    source = source.replace("L['fn'].__self__", "model").replace("L['fn']", "model")
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
