"""What a recorded function is given and gives: arguments rebuilt, results taken apart and cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from piecewise_core.errors import UnsupportedOutput
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.outputs import rebuild_code
from piecewise_core.graph.structure import Constant, Container, Structure
from piecewise_core.ranges import Sizes

__all__ = [
    "Padded",
    "arguments",
    "named_arguments",
    "result_code",
    "spread",
    "tensors_in",
]


class Padded:
    """How calls of one size are cut out of replays of a larger one.

    ``result``: what such a call gave when it ran eagerly. ``given``: its own flat tensors.
    ``objects``: its constants.
    """

    def __init__(
        self, result: Any, given: Sequence[torch.Tensor], objects: Sequence[Any], sizes: Sizes
    ) -> None:
        self._sizes = sizes
        self._shapes = [tuple(t.shape) for t in tensors_in(result, objects)]
        self.code = result_code(result, given, objects)

    def fits(self, outputs: Sequence[torch.Tensor], captured: Sizes) -> bool:
        """Whether every output differs from what was seen in the dims of the call only.

        Rows of a dim that is computed (two batches joined) may lie anywhere, not at its end.
        """
        dims = {(size, size) for shape in self._shapes for size in shape}
        dims |= set(zip(captured, self._sizes, strict=True))
        shapes = [tuple(t.shape) for t in outputs]
        return len(shapes) == len(self._shapes) and all(
            len(ours) == len(theirs) and set(zip(ours, theirs, strict=True)) <= dims
            for ours, theirs in zip(shapes, self._shapes, strict=True)
        )

    def cut(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """``outputs`` without what padding added."""
        return [_cut(o, shape) for o, shape in zip(outputs, self._shapes, strict=True)]


def result_code(result: Any, given: Sequence[torch.Tensor], objects: Sequence[Any]) -> OutputCode:
    """How ``result`` is made of its tensors, in the order of ``tensors_in``, and what was given.

    ``given``: the call's flat tensors. ``objects``: its constants; every later call has the same.
    """
    inputs = {id(t): i for i, t in enumerate(given)}
    outs = {id(o): i for i, o in enumerate(tensors_in(result, objects)) if id(o) not in inputs}
    return rebuild_code(result, outs, inputs, _no_bound_tensor, objects)


def _no_bound_tensor(tensor: torch.Tensor) -> int:
    """Every tensor of a recorded result is an output or was given."""
    raise UnsupportedOutput(f"a tensor of shape {tuple(tensor.shape)} in no container known")


def arguments(structure: Structure, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments rebuilt from its structure around ``tensors``."""
    return spread(structure, named_arguments(structure, tensors))


def named_arguments(structure: Structure, tensors: Sequence[Any]) -> dict[str, Any]:
    """The same, by the names of the parameters."""
    return {name: _built(node, tensors) for name, node in structure.arguments.items()}


def spread(structure: Structure, named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """``named`` as a call takes them."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in structure.signature.parameters.items():
        value = named[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def _built(node: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(node, Constant):
        return node.value
    if not isinstance(node, Container):
        return tensors[node.index]
    children = [_built(child, tensors) for child in node.children]
    if node.is_mapping:
        return node.kind(zip(node.keys, children, strict=True))
    return node.kind(*children) if hasattr(node.kind, "_fields") else node.kind(children)


def tensors_in(value: Any, objects: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors of a result in a fixed order, each once.

    Those inside ``objects``, the call's constants, are the caller's: they come back with their
    object.
    """
    found: dict[int, torch.Tensor] = {}
    _collect(value, found, {id(o) for o in objects})
    return list(found.values())


# Not a function inside of tensors_in: one that calls itself is a cycle, which would hold the
# tensors of a capture until some garbage collection.
def _collect(item: Any, found: dict[int, torch.Tensor], closed: set[int]) -> None:
    if isinstance(item, torch.Tensor):
        found.setdefault(id(item), item)
        return
    if id(item) in closed:
        return
    parts: Iterable[Any] = ()
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        parts = [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    elif isinstance(item, dict):
        parts = item.values()
    elif isinstance(item, (list, tuple)):
        parts = item
    for part in parts:
        _collect(part, found, closed)


def _cut(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(shape):
        if tensor.shape[axis] != size:
            tensor = tensor.narrow(axis, 0, size)
    return tensor
