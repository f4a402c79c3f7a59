"""The structure of one call: which leaves are tensors, which are constants, and where they sit.

A call is described once, from the first example, as a tree of containers over leaves. Later
calls must have the same tree; the binder made from it checks that and picks the tensors out.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.config import Config, Dim
from piecewise_core.errors import ConfigError, InputMismatch

__all__ = [
    "Constant",
    "Container",
    "Leaf",
    "Node",
    "Structure",
    "TensorLeaf",
    "bind_arguments",
    "describe_call",
    "is_plain",
    "leaves",
]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, type(Ellipsis))
_PLAIN_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)


def is_plain(value: object) -> bool:
    """Whether ``value`` is immutable and compared by value: numbers, strings, dtypes, slices."""
    if isinstance(value, slice):
        return all(is_plain(part) for part in (value.start, value.stop, value.step))
    if type(value) is frozenset:
        return all(is_plain(item) for item in value)
    return isinstance(value, (*_PLAIN, *_PLAIN_TORCH)) or inspect.isclass(value)


@dataclass(frozen=True)
class TensorLeaf:
    """A tensor input.

    ``index``: place among the flat tensors. ``dims``: tensor dim -> named dynamic dimension.
    ``sizes``: the example's sizes (those of named dims mean nothing). ``order``: tensor dims
    from the largest stride to the smallest, the layout that the program is traced for.
    """

    path: str
    index: int
    dtype: torch.dtype
    device: torch.device
    sizes: tuple[int, ...]
    dims: Mapping[int, Dim]
    order: tuple[int, ...]

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


Leaf = TensorLeaf | Constant
Node = TensorLeaf | Constant | Container


@dataclass(frozen=True)
class Structure:
    """One call: the parameters of its signature in order, each with its tree.

    ``order``: the names of the dynamic dims, in the order of sizes everywhere else.
    """

    signature: inspect.Signature
    arguments: Mapping[str, Node]
    tensors: tuple[TensorLeaf, ...]
    dims: tuple[Dim, ...]

    def where(self, dim: Dim) -> list[tuple[TensorLeaf, int]]:
        """Every (tensor, tensor dim) that carries ``dim``."""
        return [(t, i) for t in self.tensors for i, d in t.dims.items() if d.name == dim.name]


def leaves(node: Node) -> Iterator[Leaf]:
    """The leaves below ``node``, in order."""
    if isinstance(node, Container):
        for child in node.children:
            yield from leaves(child)
    else:
        yield node


def call_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature to bind calls by; ``(*args, **kwargs)`` when Python knows none."""
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def bind_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Match arguments with parameters. Raises InputMismatch when they do not fit."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputMismatch(f"{error}; the signature is {signature}") from None


def describe_call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], config: Config
) -> Structure:
    """Describe the call ``fn(*args, **kwargs)``.

    Raises InputMismatch when the arguments do not fit the signature, ConfigError when
    ``config.dynamic`` names an argument or dim that the call does not have.
    """
    signature = call_signature(fn)
    bound = bind_arguments(signature, args, kwargs)
    bound.apply_defaults()
    walk = _Walk(config, signature)
    arguments = {name: walk.node(value, name) for name, value in bound.arguments.items()}
    walk.check_all_used()
    return Structure(signature, arguments, tuple(walk.tensors), config.dims)


class _Walk:
    """Builds the tree and hands out flat tensor indices."""

    def __init__(self, config: Config, signature: inspect.Signature) -> None:
        self.tensors: list[TensorLeaf] = []
        positions = list(signature.parameters)
        self._dynamic = {
            _dynamic_path(key, positions, signature): dict(dims)
            for key, dims in dict(config.dynamic).items()
        }
        self._used: set[str] = set()
        self._seen: dict[str, str] = {}

    def node(self, value: Any, path: str) -> Node:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        kind = type(value)
        if kind in (dict, OrderedDict):
            keys = tuple(value)
            children = tuple(self.node(value[k], f"{path}.{k}") for k in keys)
            return Container(path, kind, keys, children)
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            keys = tuple(range(len(value)))
            children = tuple(self.node(v, f"{path}.{k}") for k, v in enumerate(value))
            return Container(path, kind, keys, children)
        return Constant(path, value, by_identity=not is_plain(value))

    def _tensor(self, value: torch.Tensor, path: str) -> TensorLeaf:
        if value.layout is not torch.strided:
            raise InputMismatch(
                f'argument "{path}" is a {value.layout} tensor; pass a dense one (.to_dense())'
            )
        if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise InputMismatch(
                f'argument "{path}" is a {type(value).__name__}; tensor subclasses cannot be '
                "traced inputs, pass a plain torch.Tensor"
            )
        wanted = self._dynamic.get(path, {})
        self._used.add(path)
        dims = {}
        for dim, named in wanted.items():
            if not -value.dim() <= dim < value.dim():
                raise ConfigError(
                    f'dynamic["{path}"] names dim {dim} ("{named.name}"), and the tensor has '
                    f"{value.dim()} dims, shape {tuple(value.shape)}; correct Config.dynamic"
                )
            dims[dim % value.dim()] = named
        leaf = TensorLeaf(
            path,
            len(self.tensors),
            value.dtype,
            value.device,
            tuple(value.shape),
            dict(sorted(dims.items())),
            _order(value),
        )
        self.tensors.append(leaf)
        return leaf

    def check_all_used(self) -> None:
        missing = sorted(set(self._dynamic) - self._used)
        if missing:
            have = ", ".join(f'"{t.path}"' for t in self.tensors) or "none"
            raise ConfigError(
                f"Config.dynamic names {', '.join(repr(m) for m in missing)}, and the call has "
                f"no such tensor argument; its tensors are {have}"
            )


def _dynamic_path(key: str | int, positions: list[str], signature: inspect.Signature) -> str:
    """The path of ``key``: an int is the place among the positional arguments."""
    if isinstance(key, str):
        return key
    for place, name in enumerate(positions):
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            return f"{name}.{key - place}" if key >= place else positions[key]
    if key >= len(positions):
        raise ConfigError(
            f"Config.dynamic names argument {key}, and the signature has {len(positions)}: "
            f"{signature}"
        )
    return positions[key]


def _order(value: torch.Tensor) -> tuple[int, ...]:
    """Dims by falling stride when the tensor is dense in that order, else plain order."""
    plain = tuple(range(value.dim()))
    if value.is_contiguous():
        return plain
    strides = value.stride()
    order = tuple(sorted(plain, key=lambda d: (-strides[d], d)))
    return order if value.permute(order).is_contiguous() else plain


def holds_tensors(value: object) -> bool:
    """Whether an object carries tensors in its attributes, lists or dicts (a cache, say)."""
    seen: set[int] = set()

    def walk(item: object, depth: int) -> bool:
        if isinstance(item, torch.Tensor):
            return True
        if depth == 0 or id(item) in seen:
            return False
        seen.add(id(item))
        if isinstance(item, dict):
            parts: list[object] = list(item.values())
        elif isinstance(item, (list, tuple)):
            parts = list(item)
        elif dataclasses.is_dataclass(item) or hasattr(item, "__dict__"):
            parts = list(vars(item).values()) if hasattr(item, "__dict__") else []
        else:
            parts = []
        return any(walk(part, depth - 1) for part in parts)

    return walk(value, 6)
