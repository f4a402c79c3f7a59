"""How one call differs from a form of calls that is known, and what that means.

Most differences make a form of its own, which is traced by itself. Some are slips in all
likelihood: a size that was not named as dynamic, data passed as a constant. Tracing each of those
anew would fill memory and hide the slip.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from piecewise_core.graph.input_checks import same_value
from piecewise_core.graph.structure import (
    Constant,
    Container,
    Node,
    Structure,
    TensorLeaf,
    leaves,
)

__all__ = ["Difference", "Meaning", "differences"]

_DATA = 64
"""Characters or items of a constant from which on another one is data, not a form of call."""


class Meaning(enum.Enum):
    """``FORM``: a form of its own. ``SLIP``: none by itself. ``NEVER``: refused whatever else."""

    FORM = enum.auto()
    SLIP = enum.auto()
    NEVER = enum.auto()


@dataclass(frozen=True)
class Difference:
    """``path``: the argument. ``what``: which of its facts differs."""

    path: str
    what: str
    meaning: Meaning


def differences(known: Structure, call: Structure) -> list[Difference]:
    """What differs, in the order of arguments. Sizes of dynamic dims and layouts do not count."""
    found: list[Difference] = []
    for name, node in known.arguments.items():
        found += _between(node, call.arguments[name])
    return found


def _between(known: Node, call: Node) -> Iterator[Difference]:
    if isinstance(known, TensorLeaf) and isinstance(call, TensorLeaf):
        yield from _tensors(known, call)
    elif isinstance(known, Constant) and isinstance(call, Constant):
        yield from _constants(known, call)
    elif isinstance(known, Container) and isinstance(call, Container):
        yield from _containers(known, call)
    else:
        yield Difference(call.path, "kind", _of_kinds(known, call))


def _of_kinds(known: Node, call: Node) -> Meaning:
    """A tensor where there was none, and the other way round."""
    nothing = isinstance(call, Constant) and call.value is None
    if isinstance(known, TensorLeaf) and not nothing:
        # A list or an array where a tensor with a dynamic dim was; an object where any tensor was.
        held = isinstance(call, Constant) and call.by_identity
        return Meaning.NEVER if known.dims or held or _is_data(call) else Meaning.FORM
    return Meaning.NEVER if _is_data(call) else Meaning.FORM


def _tensors(known: TensorLeaf, call: TensorLeaf) -> Iterator[Difference]:
    if call.device != known.device:
        # A tensor on another device is forgotten there, but for a number beside tensors.
        number = not call.sizes and not known.sizes
        yield Difference(call.path, "device", Meaning.FORM if number else Meaning.NEVER)
    if call.dtype is not known.dtype:
        yield Difference(call.path, "dtype", Meaning.FORM)
    if len(call.sizes) != len(known.sizes):
        yield Difference(call.path, "rank", Meaning.FORM)
        return
    for dim, (was, now) in enumerate(zip(known.sizes, call.sizes, strict=True)):
        if dim not in known.dims and was != now:
            yield Difference(call.path, f"size of dim {dim}", Meaning.SLIP)


def _constants(known: Constant, call: Constant) -> Iterator[Difference]:
    if known.by_identity and call.by_identity:
        if call.value is not known.value:
            alike = type(call.value) is type(known.value)
            yield Difference(call.path, "object" if alike else "object's type", Meaning.FORM)
    elif known.by_identity or call.by_identity or not same_value(known.value, call.value):
        yield Difference(call.path, "value", Meaning.NEVER if _is_data(call) else Meaning.FORM)


def _containers(known: Container, call: Container) -> Iterator[Difference]:
    if call.kind is not known.kind:
        yield Difference(call.path, "type", Meaning.NEVER if _is_data(call) else Meaning.FORM)
        return
    if call.keys != known.keys and (call.is_ordered or set(call.keys) != set(known.keys)):
        yield Difference(call.path, "keys", Meaning.NEVER if _is_data(call) else Meaning.FORM)
        return
    children = dict(zip(call.keys, call.children, strict=True))
    found = [
        difference
        for key, child in zip(known.keys, known.children, strict=True)
        for difference in _between(child, children[key])
    ]
    if found and _is_data(call):
        yield Difference(call.path, "values", Meaning.NEVER)
    else:
        yield from found


def _is_data(node: Node) -> bool:
    """Whether a constant is so long that each call will have another one."""
    if isinstance(node, Constant):
        return isinstance(node.value, (str, bytes)) and len(node.value) > _DATA
    if isinstance(node, Container):
        held = list(leaves(node))
        return len(held) > _DATA and all(isinstance(leaf, Constant) for leaf in held)
    return False
