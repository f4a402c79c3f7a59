"""Tensors without data, and the contexts of a trace; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from piecewise_core.torch_compat.dispatcher import is_traceable_wrapper_subclass
from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._dispatch.python import enable_python_dispatcher
    from torch._guards import CompileContext, TracingContext, compile_context, tracing
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

__all__ = [
    "CompileContext",
    "FakeTensor",
    "FakeTensorMode",
    "TracingContext",
    "compile_context",
    "enable_python_dispatcher",
    "forget_wrappers",
    "tracing",
    "unset_fake_temporarily",
]


def forget_wrappers(fakes: Iterable[FakeTensor]) -> None:
    """Drop the weak references by which the modes of ``fakes`` know tensors that wrap others.

    torch swaps no tensor that has one, and where it moves or loads a wrapper it swaps.
    """
    for fake in fakes:
        with needed():
            known: Any = fake.fake_mode.fake_tensor_converter.meta_converter.describer.lookup_tensor
            for tensor in [t for t in known if is_traceable_wrapper_subclass(t)]:
                del known[tensor]
