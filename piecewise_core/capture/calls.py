"""What can be told of one call of an operator: its tensors, its writes, where it was made."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.unsaid_writes import unsaid_writes
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.graphs import in_backward
from piecewise_core.torch_compat.operators import changes_itself, schema_or_none
from piecewise_core.torch_compat.storages import memory_key

__all__ = [
    "ValueRead",
    "mapped",
    "only_views",
    "refuse_in_backward",
    "reshapes",
    "tensors",
    "user_line",
    "written",
]

_ONLY_SIZES = frozenset({
    "aten::detach_", "aten::t_", "aten::squeeze_", "aten::unsqueeze_", "aten::transpose_",
    "aten::as_strided_", "aten::swapdims_", "aten::swapaxes_",
})  # fmt: skip
"""Operators whose schema tells of a write, and which change no memory."""


_STDLIB = os.path.dirname(os.__file__)


class ValueRead(CaptureFailed):
    """Python read ``what``, a tensor's value; says where, and what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(_value_read(what))


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return [value]
    if type(value) in (tuple, list):  # most are, and pytree takes long to find out
        found: list[torch.Tensor] = []
        for part in value:
            found += (part,) if isinstance(part, torch.Tensor) else tensors(part)
        return found
    if value is None or type(value) in (bool, int, float, str):
        return []
    return [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A call's arguments with other tensors in them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: mapped(v, change) for k, v in value.items()}
    return type(value)(mapped(v, change) for v in value) if type(value) in (tuple, list) else value


def written(fn: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Tensors that an operator writes to: those of its schema, and those that it does not tell."""
    schema = schema_or_none(fn)
    if schema is None or schema.name in _ONLY_SIZES:
        return []
    found: list[torch.Tensor] = []
    named = unsaid_writes(schema, lambda place, name: _given(schema, place, name, args, kwargs))
    for place, argument in enumerate(schema.arguments):
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or argument.name in named:
            found += tensors(_given(schema, place, argument.name, args, kwargs))
    return found


def _given(schema: Any, place: int, name: str, args: Any, kwargs: Any) -> Any:
    """What a call gives for an argument."""
    if place < len(args):
        return args[place]
    return kwargs.get(name, schema.arguments[place].default_value)


def reshapes(fn: Any) -> bool:
    """Whether an operator changes the sizes or strides of the tensor object that it is given."""
    return changes_itself(fn) and fn is not torch.ops.aten.detach_.default


def only_views(result: Any, args: Any, kwargs: Any, changed: Sequence[torch.Tensor]) -> bool:
    """Whether an operator made nothing but views of what it was given, and wrote to nothing.

    Schemas do not tell: a conversion may return a view of its argument, or a copy. ``changed``:
    what it writes to.
    """
    found = tensors(result)
    given = {memory_key(t) for t in tensors((args, kwargs))}
    return bool(found) and not changed and all(memory_key(t) in given for t in found)


def refuse_in_backward(fn: Any) -> None:
    """Raise CaptureFailed for a splitting op that runs in a backward pass.

    Autograd puts this thread's modes back after each node: a capture of CPU tensors that ends or
    begins within one would be lost, or go on for good.
    """
    if in_backward():
        raise CaptureFailed(
            f"{fn} is a splitting op and runs in a backward pass, within which no capture can "
            "end; put all that calls autograd into a splitting op"
        )


def user_line() -> Callable[[], str]:
    """A function that says where the program is now: ``file:line`` outside of torch and of us."""
    frame = sys._getframe(1)
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return str
    return partial("{}:{}".format, frame.f_code.co_filename, frame.f_lineno)


def where() -> str:
    """`` at file:line`` of where the program is now, or nothing."""
    line = user_line()()
    return f" at {line}" if line else ""


def _is_library(file: str) -> bool:
    if "/torch/" in file or "/piecewise_core/" in file or "/numpy/" in file:
        return True
    return file.startswith(_STDLIB) and "/site-packages/" not in file


def _value_read(what: str) -> str:
    """The message for ``what`` being read by Python: where, and what to do."""
    place = next(
        (
            f"{frame.filename}:{frame.lineno} `{frame.line}`"
            for frame in reversed(traceback.extract_stack())
            if not _is_library(frame.filename)
        ),
        "an unknown place",
    )
    return (
        f"{what} is read by Python at {place}; it would be fixed at capture. Keep the value in a "
        "tensor, or put the code that reads it into a splitting op"
    )
