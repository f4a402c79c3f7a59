"""The structure of one call: which leaves are tensors, which are constants, and where they sit.

A call is described once, from the first example, as a tree of containers over leaves. Later
calls must have the same tree; the binder made from it checks that and picks the tensors out.
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from piecewise_core.config import Dim
from piecewise_core.ranges import Sizes

__all__ = [
    "Constant",
    "Container",
    "Node",
    "Structure",
    "TensorLeaf",
    "is_plain",
    "leaves",
    "with_objects",
    "with_others",
]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, type(Ellipsis))
_PLAIN_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


def is_plain(value: object) -> bool:
    """Whether ``value`` is immutable and compared by value: numbers, strings, dtypes, slices."""
    if isinstance(value, (slice, range)):
        return all(is_plain(part) for part in (value.start, value.stop, value.step))
    if type(value) is frozenset:
        return all(is_plain(item) for item in value)
    if isinstance(value, (*_PLAIN, *_PLAIN_TORCH)) or inspect.isclass(value):
        return True
    numpy = sys.modules.get("numpy")  # its scalars are made anew by every expression
    return numpy is not None and isinstance(value, (numpy.bool_, numpy.number))


@dataclass(frozen=True)
class TensorLeaf:
    """A tensor input.

    ``index``: place among the flat tensors. ``dims``: tensor dim -> named dynamic dimension.
    ``sizes``: the example's sizes (those of named dims mean nothing). ``order``: tensor dims
    from the largest stride to the smallest, the layout that the program is traced for. ``gaps``:
    memory lies between its elements; only ever traced to see whether that makes a difference.
    ``strides``: those of a call of some sizes, where ``order`` does not tell them.
    """

    path: str
    index: int
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int, ...]
    dims: Mapping[int, Dim]
    order: tuple[int, ...]
    gaps: bool = False
    strides: Callable[[Sizes], tuple[int, ...]] | None = None

    @property
    def is_contiguous(self) -> bool:
        """Whether the traced layout is the contiguous one."""
        return self.order == tuple(range(len(self.sizes)))


@dataclass(frozen=True)
class Constant:
    """An input frozen at trace time: ``by_identity`` for objects, else compared by value."""

    path: str
    value: Any
    by_identity: bool


@dataclass(frozen=True)
class Container:
    """A dict, list, tuple or named tuple of nodes; its type, length and keys are fixed."""

    path: str
    kind: type
    keys: tuple[Any, ...]
    children: tuple[Node, ...]

    @property
    def is_mapping(self) -> bool:
        """Whether children are reached by key."""
        return issubclass(self.kind, dict)

    @property
    def is_ordered(self) -> bool:
        """Whether the order of keys counts: a model may go through the entries one by one."""
        return self.is_mapping and len(self.keys) > 1


Node = TensorLeaf | Constant | Container


@dataclass(frozen=True)
class Structure:
    """One form of calls: the parameters of the signature in order, each with its tree.

    ``signature``: what binds a call, so that arguments arrive as the caller wrote them. ``dims``:
    the dynamic dims, in the order of sizes everywhere else.
    """

    signature: inspect.Signature
    arguments: Mapping[str, Node]
    tensors: tuple[TensorLeaf, ...]
    dims: tuple[Dim, ...]

    @property
    def fixed_sizes(self) -> frozenset[int]:
        """The sizes of all tensor dims that do not vary."""
        tensors = self.tensors
        return frozenset(s for t in tensors for i, s in enumerate(t.sizes) if i not in t.dims)

    def where(self, dim: Dim) -> list[tuple[TensorLeaf, int]]:
        """Every (tensor, tensor dim) that carries ``dim``."""
        return [(t, i) for t in self.tensors for i, d in t.dims.items() if d.name == dim.name]


def with_objects(known: Structure, call: Structure) -> Structure:
    """``known`` with the constants that are compared by identity as ``call`` has them."""
    arguments = {name: _with(node, call.arguments[name]) for name, node in known.arguments.items()}
    return replace(known, arguments=arguments)


def _with(known: Node, call: Node) -> Node:
    if isinstance(known, Constant) and isinstance(call, Constant):
        return call if known.by_identity else known
    if isinstance(known, Container) and isinstance(call, Container):
        given = dict(zip(call.keys, call.children, strict=True))
        pairs = zip(known.keys, known.children, strict=True)
        return replace(known, children=tuple(_with(child, given[key]) for key, child in pairs))
    return known


def with_others(known: Structure, others: Mapping[int, Any]) -> Structure:
    """``known`` with other objects in the place of constants, by the id of each."""
    arguments = {name: _other(node, others) for name, node in known.arguments.items()}
    return replace(known, arguments=arguments)


def _other(known: Node, others: Mapping[int, Any]) -> Node:
    if isinstance(known, Constant):
        there = known.by_identity and id(known.value) in others
        return replace(known, value=others[id(known.value)]) if there else known
    if isinstance(known, Container):
        return replace(known, children=tuple(_other(child, others) for child in known.children))
    return known


def leaves(node: Node) -> Iterator[TensorLeaf | Constant]:
    """The leaves below ``node``, in order."""
    if isinstance(node, Container):
        for child in node.children:
            yield from leaves(child)
    else:
        yield node
