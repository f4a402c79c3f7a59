"""One splitting op as a step: called on static tensors, its results kept in static memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from piecewise_core.errors import CaptureFailed

__all__ = ["Step", "allocate", "layout_of", "op_step"]

Step = Callable[[], Any]
"""One thing that a captured plan does: a replay, an operator on static tensors, a copy."""


def op_step(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    buffers: Sequence[torch.Tensor | None],
) -> Step:
    """A call of ``fn`` on static tensors; functional results are copied to their buffers."""
    if not any(b is not None for b in buffers):
        if not args and not kwargs:
            return fn
        return _bound(fn, args, kwargs)
    if len(buffers) == 1:
        (only,) = buffers
        copy = only.copy_  # type: ignore[union-attr]
        if not kwargs:
            return lambda: copy(fn(*args))
        return lambda: copy(fn(*args, **kwargs))

    def step() -> None:
        for buffer, leaf in zip(buffers, pytree.tree_leaves(fn(*args, **kwargs)), strict=True):
            if buffer is not None:
                buffer.copy_(leaf)

    return step


def _bound(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    return functools.partial(fn, *args, **kwargs)


def layout_of(leaf: Any, given: Any) -> tuple[Any, ...] | None:
    """What to allocate for one result; None for what lives in an argument, or is no tensor."""
    if not isinstance(leaf, torch.Tensor):
        if leaf is None or isinstance(leaf, (int, float, bool, str)):
            return None
        raise CaptureFailed(f"a splitting op returned a {type(leaf).__name__}")
    memory = leaf.untyped_storage().data_ptr()
    inputs = [t for t in pytree.tree_leaves(given) if isinstance(t, torch.Tensor)]
    if any(t.untyped_storage().data_ptr() == memory for t in inputs) and memory:
        return None
    return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device


def allocate(layout: tuple[Any, ...] | None) -> torch.Tensor | None:
    """Memory of a layout; None for None."""
    if layout is None:
        return None
    shape, stride, dtype, device = layout
    with torch.inference_mode(False):  # calls may come in any mode, and copy into it
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)
