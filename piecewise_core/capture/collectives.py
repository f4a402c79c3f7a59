"""Collectives in recordings and as steps: their results are waited for where they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from piecewise_core.capture.calls import tensors, written
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.collectives import is_collective, is_functional
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.collectives import functional_collectives
from piecewise_core.torch_compat.operators import schema_of

__all__ = [
    "InPlace",
    "in_place",
    "of_copies",
    "refuse_unrecorded",
    "waited",
    "waited_for",
    "without_handles",
]

_SENDS = ("send", "recv_", "recv_any_source_")


def in_place(fn: Any) -> bool:
    """Whether ``fn`` is a collective into what it is given, which returns a handle."""
    return is_collective(fn) and not is_functional(fn)


def refuse_unrecorded(fn: Any, args: Any, kwargs: Any) -> None:
    """Raise CaptureFailed for collectives that a recording cannot hold.

    What goes from one process to another: a handle of gloo's may be waited for only once, and a
    replay that waits at once for what it sends may wait for a process that does the same. And what
    a device is given in place: with NCCL and torch 2.11, to look at the handle that the operator
    returns to a mode ends the process.
    """
    if not in_place(fn):
        return
    if schema_of(fn).name.partition("::")[2] in _SENDS:
        raise CaptureFailed(
            f"{fn} goes from one process to another, which is not recorded; put what sends and "
            "receives into a splitting op"
        )
    if any(t.device.type != "cpu" for t in tensors((args, kwargs))):
        raise CaptureFailed(
            f"{fn} works in place on a device, which is not recorded; use the functional form "
            "(torch.distributed._functional_collectives), or pw.compile"
        )


def waited(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``; a functional collective with its wait, which may come behind a copy of the result."""
    if not is_functional(fn):
        return fn

    def run(*args: Any, **kwargs: Any) -> Any:
        return waited_for(fn, fn(*args, **kwargs))

    run.__name__ = str(fn)
    return run


def waited_for(fn: Any, result: Any) -> Any:
    """``result`` of ``fn``, once it is there. A handle that nobody waits for joins no stream."""
    if not is_collective(fn):
        return result
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, torch.Tensor):
            if is_functional(fn):
                torch.ops._c10d_functional.wait_tensor(leaf)
        elif hasattr(leaf, "wait"):
            leaf.wait()
    return result


def of_copies(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``; of a collective, what a recording's own run calls: waited for, on copies on a CPU.

    A CPU's collectives let go of what they were given when their own thread comes to it: memory of
    graphs must not be theirs, or it dies in the middle of a replay.
    """
    if not is_collective(fn):
        return fn

    def run(*args: Any, **kwargs: Any) -> Any:
        given = [t for t in tensors((args, kwargs)) if t.device.type == "cpu"]
        copies = {id(t): t.clone() for t in given}
        back = {id(copies[id(t)]): t for t in given}
        args_, kwargs_ = _mapped((args, kwargs), copies)
        result = waited_for(fn, fn(*args_, **kwargs_))
        for tensor in written(fn, args, kwargs):
            if id(tensor) in copies:
                tensor.copy_(copies[id(tensor)])
        return _mapped(result, back)

    run.__name__ = str(fn)
    return run


def _mapped(value: Any, found: Mapping[int, torch.Tensor]) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: found.get(id(t), t), value)


class InPlace:
    """A collective into what it is given, as a step: it waits, and returns nothing.

    ``take_result()``: what the call before returned; from then on nothing is kept.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__name__ = str(fn)
        self._fn = fn
        self._keeps = True
        self._result: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if self._keeps:
            self._result = of_copies(self._fn)(*args, **kwargs)
        else:
            waited_for(self._fn, self._fn(*args, **kwargs))

    def take_result(self) -> Any:
        """As said of the class."""
        result, self._result, self._keeps = self._result, None, False
        return result


def without_handles(value: Any) -> Any:
    """``value`` with tensors in place of those that wait when they are first used."""
    kind: Any = getattr(functional_collectives(), "AsyncCollectiveTensor", None)
    if kind is None or not any(type(leaf) is kind for leaf in pytree.tree_leaves(value)):
        return value
    return pytree.tree_map_only(kind, lambda t: t.elem, value)
