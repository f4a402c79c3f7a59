"""What graph drivers rest on; known in 2.11 to 2.13, each with a way to do without."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _python_dispatch

from piecewise_core.afterfork import after_fork
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = [
    "as_when_traced",
    "bare_replay",
    "in_backward",
    "in_bad_fork",
    "leave_pool",
    "mode_keyword",
    "modes_as_before",
    "storage_over",
    "weak_tensor_over",
    "without_dynamo",
    "workspace_freer",
]


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    current: Any = getattr(torch._C, "_current_graph_task_id", None)
    return current is not None and current() != -1


def storage_over(address: int, device: torch.device, nbytes: int) -> torch.UntypedStorage | None:
    """A storage over memory that somebody else owns; None where torch cannot make one."""
    make: Any = getattr(torch._C, "_construct_storage_from_data_pointer", None)
    return None if make is None else make(address, device, nbytes)


def weak_tensor_over(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor over the memory of ``tensor`` that does not keep it alive; or the tensor itself."""
    storage = tensor.untyped_storage()
    again = storage_over(storage.data_ptr(), tensor.device, storage.nbytes())
    if again is None:
        return tensor
    weak = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return weak.set_(again, tensor.storage_offset(), tensor.size(), tensor.stride())


def workspace_freer(device_type: str) -> Callable[[], None]:
    """Makes the device's matrix library let go of its workspaces; does nothing where it has none.

    Torch keeps one per handle and stream, which kernels in a graph know by address only, and frees
    them when somebody asks: torch.compile's own graphs do, around every recording.
    """
    found: Callable[[], None] | None = getattr(
        torch._C, f"_{device_type}_clearCublasWorkspaces", None
    )
    return found if found is not None else lambda: None


def leave_pool(device_type: str, index: int, handle: Any) -> None:
    """Take back what ``capture_begin`` told the allocator, where ``capture_end`` failed to.

    Else the allocator holds on to the pool, and refuses to empty its cache, for good. Does nothing
    if the allocator is not allocating to the pool ``handle``.
    """
    end = getattr(torch._C, f"_{device_type}_endAllocateToPool", None)
    release = getattr(torch._C, f"_{device_type}_releasePool", None)
    if end is None or release is None:
        return
    with contextlib.suppress(RuntimeError):
        end(index, handle)
        release(index, handle)


def bare_replay(graph: Any) -> Callable[[], None]:
    """The replay of ``graph`` without torch's Python shim around it, which only forwards."""
    if type(graph).__module__.startswith("torch."):
        for base in type(graph).__mro__[1:]:
            if "replay" in vars(base):
                found: Callable[[], None] = vars(base)["replay"].__get__(graph, base)
                return found
    replay: Callable[[], None] = graph.replay
    return replay


def mode_keyword(graph_class: Any, error_mode: str) -> dict[str, str]:
    """The keyword for the error mode, where ``capture_begin`` has it."""
    try:
        taken = inspect.signature(graph_class.capture_begin).parameters
    except (AttributeError, TypeError, ValueError):
        return {}
    return {"capture_error_mode": error_mode} if "capture_error_mode" in taken else {}


def in_bad_fork(device_type: str) -> bool:
    """Whether this process is a fork of one that had begun to use the device, and may not."""
    ask = getattr(getattr(torch, device_type, None), "_is_in_bad_fork", None)
    return ask is not None and bool(ask())


@contextlib.contextmanager
def as_when_traced() -> Iterator[None]:
    """Answer ``torch.compiler.is_compiling()`` with True, as torch.export does while it traces.

    Code that asks keeps clear of what depends on data. Does nothing where torch has no such flag.
    """
    before = getattr(torch.compiler, "_is_compiling_flag", None)
    if before is None:
        yield
        return
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


@contextlib.contextmanager
def modes_as_before() -> Iterator[None]:
    """Leave what torch notes of active modes, for Dynamo to skip everything under one, as it is.

    A mode says again at its end what was so at its begin, which is right only for modes that end
    in the reverse order: a driver's mode for captures may not.
    """
    noted = {n: on for n, on in vars(_python_dispatch).items() if n.startswith("_is_in_")}
    try:
        yield
    finally:
        vars(_python_dispatch).update(noted)


@contextlib.contextmanager
def without_dynamo() -> Iterator[None]:
    """Run what torch.compile wraps as it is written: torch.cond compiles, for one.

    Under a mode Dynamo would compile nothing and skip these functions for good. What says so is the
    whole process's, so one thread at a time does; the others' calls run as written meanwhile.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(compile_lock)
        with contextlib.suppress(RuntimeError):  # inside of a function that Dynamo runs
            stack.enter_context(after_fork.leaves(torch.compiler.set_stance("force_eager")))
        yield
