"""What calls are refused for whatever their arguments: gradients, autocast, state that moves on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from piecewise_core.errors import CaptureFailed, GradNeeded, InputMismatch
from piecewise_core.graph.questions import RANDOM_STATE, THREADS
from piecewise_core.runtime.closure_walk import roots_of
from piecewise_core.runtime.treestate import TreeState
from piecewise_core.torch_compat.around import in_force
from piecewise_core.torch_compat.switches import any_autocast

__all__ = [
    "ANOTHER_MODEL",
    "check_grad",
    "refuse_advancing",
    "refuse_ambient",
    "refuse_around",
    "refuse_autocast",
    "refuse_grad",
]

ANOTHER_MODEL = (
    "a parameter changed its dtype, device, shape or strides, or the model's training mode or "
    "modules changed,"
)


def check_grad(tensors: Iterable[Any], held: bool) -> None:
    """Raise GradNeeded where an input, or with ``held`` a parameter, requires gradients."""
    inputs = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
    if inputs or held:
        raise GradNeeded(
            f"called with gradients enabled, and {'an input' if inputs else 'a parameter'} "
            "requires them; piecewise is for inference: call under torch.inference_mode() or "
            "torch.no_grad(), or call requires_grad_(False) on the model"
        )


def refuse_grad(fn: Callable[..., Any], tensors: Iterable[Any]) -> None:
    """The same while gradients are enabled, where the parameters are those that ``fn`` reaches."""
    if torch.is_grad_enabled():
        roots = roots_of(fn)
        check_grad(tensors, any(p.requires_grad for root in roots for p in root.parameters()))


def refuse_autocast() -> None:
    """Raise InputMismatch: what a call inside of autocast gets."""
    raise InputMismatch(
        "called inside torch.autocast, which what was traced or recorded outside of it cannot "
        "follow; enter autocast inside the model's forward, or convert the model with .to(dtype)"
    )


def refuse_ambient(fn: Callable[..., Any], tensors: Iterable[Any]) -> None:
    """Refuse a call with gradients to compute, and one inside of autocast."""
    refuse_grad(fn, tensors)
    if any_autocast():
        refuse_autocast()


def refuse_around(is_capturing: Callable[[], bool]) -> None:
    """Raise InputMismatch where what is traced or recorded now would have a mode's work in it.

    A capture, which the driver may have a mode of its own in, has a refusal of its own.
    """
    if any_autocast():
        refuse_autocast()
    if (around := in_force()) and not is_capturing():
        raise InputMismatch(f"warmup() called inside {around}; calls inside of it run as written")


def refuse_advancing(state: TreeState) -> None:
    """Raise CaptureFailed for what takes from an iterator, asks for a generator's state, or has
    another thread work.
    """
    pools = [each for each in state.iterators if not isinstance(each, Iterator)]
    threads = sorted({type(pool).__qualname__ for pool in pools} | THREADS & state.words)
    if threads:
        raise CaptureFailed(
            f"the function reaches {threads[0]}: what another thread does is not recorded, and "
            "what it gives would be fixed at capture. Do it in the thread of the call, or outside"
        )
    kinds = sorted({type(iterator).__qualname__ for iterator in state.iterators})
    if kinds:
        raise CaptureFailed(
            f"the function reaches an iterator ({kinds[0]}): a recording would take from it more "
            "than a call does, and a replay nothing. Take the item outside and pass it as an "
            "argument"
        )
    named = sorted(RANDOM_STATE & state.words)
    if named:
        raise CaptureFailed(
            f"the function names {named[0]}: a replay cannot ask what state a random generator is "
            "in. Ask outside and pass the answer as an argument"
        )
