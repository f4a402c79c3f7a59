"""Tensors without data, and the contexts of a trace; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

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
    "tracing",
    "unset_fake_temporarily",
]
