"""One splitting op as a step: called on static tensors, its results kept in static memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from piecewise_core.capture.loose import Loose
from piecewise_core.errors import CaptureFailed, OpContractBroken
from piecewise_core.torch_compat import pytree

__all__ = ["Step", "allocate", "another_path", "flat", "form_of", "layout_of", "op_step"]

# Dynamo writes ``with sdpa_kernel(...)`` as calls that return the kernels allowed before.
_PLAIN = (int, float, bool, str, SDPBackend)

Step = Callable[[], Any]
"""One thing that a captured plan does: a replay, an operator on static tensors, a copy."""


def op_step(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    buffers: Sequence[torch.Tensor | None],
    *,
    alone: bool = True,
    form: Sequence[Any] | None = None,
) -> Step:
    """A call of ``fn`` on static tensors; functional results are copied to their buffers.

    ``alone``: whether it returns a tensor, rather than something that holds tensors. ``form``: what
    ``form_of`` gave when it was captured, to raise OpContractBroken where a result differs. None: a
    fake kernel has said what comes.
    """
    if form is not None and [f for f in form if f is not None]:
        fn = _exactly(fn, form)
    if not [b for b in buffers if b is not None]:
        if not args and not kwargs:
            return fn
        return functools.partial(fn, *args, **kwargs)
    if alone:
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


def flat(result: Any) -> tuple[list[Any], Any]:
    """The leaves of an operator's result, and how they hang together; None for a lone leaf."""
    if result is None or type(result) is torch.Tensor:  # most are, and a tree takes long to find
        return [result], None
    leaves, spec = pytree.tree_flatten(result)
    return leaves, None if spec.is_leaf() else spec


def form_of(leaves: Sequence[Any]) -> list[Any]:
    """What graphs take for granted of an operator's results: shapes, and values of other things."""
    return [leaf.shape if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def _exactly(fn: Callable[..., Any], wanted: Sequence[Any]) -> Callable[..., Any]:
    """``fn``, refusing results that graphs would read as something else."""

    def run(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        found = form_of(pytree.tree_leaves(result))
        if found != wanted:
            name = str(getattr(fn, "__name__", fn))
            raise OpContractBroken(
                f"splitting op {name} returned {_shown(found)}, and "
                f"{_shown(wanted)} when it was captured; graphs take sizes and Python values as "
                "they were then: put the code that uses them into the splitting op too"
            ).having(op=name)
        return result

    return run


def _shown(form: Sequence[Any]) -> str:
    return ", ".join(
        f"a tensor of shape {tuple(f)}" if isinstance(f, torch.Size) else repr(f) for f in form
    )


def layout_of(leaf: Any, given: Any) -> tuple[Any, ...] | None:
    """What to allocate for one result; None for what lives in an argument, or is no tensor."""
    if isinstance(leaf, Loose):
        return (Loose,)
    if not isinstance(leaf, torch.Tensor):
        if leaf is None or isinstance(leaf, _PLAIN):
            return None
        raise CaptureFailed(f"a splitting op returned a {type(leaf).__name__}")
    memory = leaf.untyped_storage().data_ptr()
    inputs = [t for t in pytree.tree_leaves(given) if isinstance(t, torch.Tensor)]
    if any(t.untyped_storage().data_ptr() == memory for t in inputs) and memory:
        return None
    if any(step == 0 and size > 1 for step, size in zip(leaf.stride(), leaf.shape, strict=True)):
        raise CaptureFailed(
            f"a splitting op returned an expanded tensor (shape {tuple(leaf.shape)}, strides "
            f"{leaf.stride()}), whose elements share memory; let it return .contiguous()"
        )
    return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device


def allocate(layout: tuple[Any, ...] | None) -> Any:
    """Memory of a layout; None for None."""
    if layout is None:
        return None
    if layout == (Loose,):
        return Loose()
    shape, stride, dtype, device = layout
    with torch.inference_mode(False):  # calls may come in any mode, and copy into it
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def another_path(what: str) -> str:
    """The message for a run that does not do what the one before it did."""
    return (
        f"{what} did not do in its second run what it did in its first; a graph repeats one run, "
        "so what Python or a tensor's values decide must come out the same. Put that code into a "
        "splitting op"
    )
