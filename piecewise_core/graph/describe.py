"""Describe a call: from one example to the Structure that later calls must have."""

from __future__ import annotations

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from piecewise_core.config import Config, Dim
from piecewise_core.errors import ConfigError, InputMismatch
from piecewise_core.graph.signatures import Names, names_of
from piecewise_core.graph.structure import (
    Constant,
    Container,
    Node,
    Structure,
    TensorLeaf,
    is_plain,
)
from piecewise_core.graph.wording import cut_short

__all__ = ["bind_arguments", "describe_call"]

_NAMED = 200
"""Characters of what is said about a name."""


def bind_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Match arguments with parameters. Raises InputMismatch when they do not fit."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        why = cut_short(str(error), _NAMED)  # a keyword may be anybody's data
        raise InputMismatch(f"{why}; the signature is {signature}") from None


def describe_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    config: Config,
) -> Structure:
    """Describe the call ``fn(*args, **kwargs)`` in the form in which the caller wrote it.

    Raises InputMismatch when the arguments do not fit the signature, ConfigError when
    ``config.dynamic`` names an argument that no call has, or no dim of this one's.
    """
    names = names_of(fn)
    bound = bind_arguments(names.taken, args, kwargs)
    bound.apply_defaults()
    walk = _Walk(_dynamic(config, names))
    arguments = {
        name: walk.argument(name, bound.arguments[name], names) for name in bound.arguments
    }
    structure = Structure(names.taken, arguments, tuple(walk.tensors), config.dims)
    try:
        _check_all_used(structure, {u for u in walk.unused if not names.takes(u)})
    except ConfigError:
        bind_arguments(names.shown, args, kwargs)  # a slip in the call rather than in the config
        raise
    return structure


class _Walk:
    """Builds the tree and hands out flat tensor indices.

    ``unused``: paths in ``dynamic`` that nothing was found at yet.
    """

    def __init__(self, dynamic: Mapping[str, Mapping[int, Dim]]) -> None:
        self.tensors: list[TensorLeaf] = []
        self.unused = set(dynamic)
        self._dynamic = dynamic
        self._paths: set[str] = set()

    def argument(self, name: str, value: Any, names: Names) -> Node:
        """The tree of what a parameter of the signature takes: one argument, or all the rest."""
        parameter = names.taken.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            first = list(names.taken.parameters).index(name)
            paths = [names.positional(first + i) or f"{name}.{i}" for i in range(len(value))]
            return self._rest(name, tuple, dict(enumerate(value)), paths)
        if parameter.kind is parameter.VAR_KEYWORD:
            return self._rest(name, dict, value, [names.keyword(key) for key in value])
        return self.node(value, self._own(names.parameter(name), name))

    def _rest(self, name: str, kind: type, held: Mapping[Any, Any], paths: list[str]) -> Container:
        children = [
            self.node(value, self._own(path, f"{name}.{key}"))
            for (key, value), path in zip(held.items(), paths, strict=True)
        ]
        return Container(name, kind, tuple(held), tuple(children))

    def _own(self, path: str, otherwise: str) -> str:
        """``path``, unless another argument has it: a decorator may take what it names alike."""
        numbered = (f"{otherwise}({n})" for n in itertools.count(2))
        found = next(
            p for p in itertools.chain((path, otherwise), numbered) if p not in self._paths
        )
        self._paths.add(found)
        return found

    def node(self, value: Any, path: str) -> Node:
        """The tree of ``value``. Raises InputMismatch and ConfigError."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        kind = type(value)
        held: dict[Any, Any] | None = value if kind in (dict, OrderedDict) else None
        if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            held = dict(enumerate(value))
        if held is not None:
            children = tuple(self.node(v, f"{path}.{k}") for k, v in held.items())
            return Container(path, kind, tuple(held), children)
        return Constant(path, value, by_identity=not is_plain(value))

    def _tensor(self, value: torch.Tensor, path: str) -> TensorLeaf:
        _refuse_kind(value, path)
        self.unused.discard(path)
        dims = {}
        for dim, named in self._dynamic.get(path, {}).items():
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


def _refuse_kind(value: torch.Tensor, path: str) -> None:
    if value.is_nested:
        raise InputMismatch(
            f'argument "{path}" is a nested tensor; pass a padded one and its mask '
            "(.to_padded_tensor(0))"
        )
    if value.layout is not torch.strided:
        raise InputMismatch(
            f'argument "{path}" is a {value.layout} tensor; pass a dense one (.to_dense())'
        )
    if value.is_quantized:
        raise InputMismatch(
            f'argument "{path}" is a quantized tensor; pass its numbers (.dequantize())'
        )
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise InputMismatch(
            f'argument "{path}" is a {type(value).__name__}; tensor subclasses cannot be '
            "traced inputs, pass a plain torch.Tensor"
        )


def _check_all_used(structure: Structure, unused: set[str]) -> None:
    """Every name in Config.dynamic may stand for something, and some dim has a size.

    What this call is without, one of another form may have.
    """
    have = ", ".join(f'"{t.path}"' for t in structure.tensors) or "none"
    if unused:
        raise ConfigError(
            f"Config.dynamic names {', '.join(repr(m) for m in sorted(unused))}, and the call has "
            f"no such tensor argument; its tensors are {have}"
        )
    if structure.dims and not any(map(structure.where, structure.dims)):
        listed = ", ".join(f'"{dim.name}"' for dim in structure.dims)
        raise ConfigError(
            f"dim {listed} of Config.dynamic is in none of the tensors of this call, which "
            f"are {have}; pass the argument that has it, or take the dim out"
        )


def _dynamic(config: Config, names: Names) -> dict[str, dict[int, Dim]]:
    """``Config.dynamic`` by path."""
    found: dict[str, dict[int, Dim]] = {}
    for key, dims in config.dynamic.items():
        path = _by_name(key, names) if isinstance(key, str) else _by_place(key, names)
        if path in found:
            raise ConfigError(f'Config.dynamic names "{path}" twice, by name and by place; merge')
        found[path] = dict(dims)
    return found


def _by_name(key: str, names: Names) -> str:
    """The path of a name: one that is no parameter may be a keyword of ``**kwargs``."""
    head, dot, rest = key.partition(".")
    if head in names.shown.parameters or head in names.taken.parameters:
        return key
    return f"{names.keyword(head)}{dot}{rest}"


def _by_place(key: int, names: Names) -> str:
    """The path of the argument in place ``key``."""
    found = names.positional(key)
    if found is None:
        parameters = list(names.shown.parameters)
        if key < len(parameters):
            return parameters[key]
        raise ConfigError(
            f"Config.dynamic names argument {key}, and the signature has {len(parameters)}: "
            f"{names.shown}"
        )
    return found


def _order(value: torch.Tensor) -> tuple[int, ...]:
    """Dims by falling stride when the tensor is dense in that order, else plain order."""
    plain = tuple(range(value.dim()))
    if value.is_contiguous():
        return plain
    strides = value.stride()
    order = tuple(sorted(plain, key=lambda d: (-strides[d], d)))
    return order if value.permute(order).is_contiguous() else plain
