"""The kernel calls inside a piece that Inductor compiled, as calls with nothing left to decide.

Inductor's code for a piece is a Python function that allocates buffers and calls kernels. For
given sizes and memory that is a fixed list of calls: the function runs once, here, with its
allocations served by an arena and its kernel calls noted.

Private parts of torch, read in 2.11.0 and 2.13.0: the generated ``call(args)`` is a function or a
method of ``Runner``; the names that it calls are those in ``_ONCE``, ``extern_kernels``, and
kernels whose names begin with ``cpp_``.
"""

from __future__ import annotations

import builtins
import dis
import math
from collections.abc import Callable
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch

from piecewise_cpu.arena import Arena
from piecewise_cpu.linear import bound
from piecewise_cpu.native import Step, kernel_step

__all__ = ["NotFlat", "Step", "flat_call"]

_ONCE = frozenset({"reinterpret_tensor", "assert_size_stride", "assert_alignment"})
"""What needs no repetition: views, and checks of what does not change."""


class NotFlat(Exception):
    """The piece does something besides kernel calls."""


def flat_call(call: Callable[..., Any], arena: Arena, steps: list[Step]) -> Callable[..., Any]:
    """``call`` with its buffers from ``arena`` and its kernel calls appended to ``steps``.

    Raises NotFlat when it does anything that a list of calls would not repeat.
    """
    function: Any = call.__func__ if isinstance(call, MethodType) else call
    if not isinstance(function, FunctionType):
        raise NotFlat(f"{call!r} is no Python function")
    code, names = function.__code__, dict(function.__globals__)
    for name in _global_names(code):
        names[name] = _noting(name, names.get(name, vars(builtins).get(name)), arena, steps)
    if "ops" in code.co_names:
        raise NotFlat("it calls operators through torch.ops, which return new memory")
    made = FunctionType(code, names, function.__name__, function.__defaults__)
    return partial(made, call.__self__) if isinstance(call, MethodType) else made


@lru_cache(maxsize=256)  # a generation with a cache of its own is a capture
def _global_names(code: CodeType) -> frozenset[str]:
    if any(isinstance(constant, CodeType) for constant in code.co_consts):
        raise NotFlat("it defines functions")
    loads = (i for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return frozenset(str(i.argval) for i in loads)


def _noting(name: str, value: Any, arena: Arena, steps: list[Step]) -> Any:
    """What ``call`` finds under ``name`` while it is noted down."""
    if name == "empty_strided_cpu":
        return arena.empty_strided
    if name == "extern_kernels":
        return _Extern(value, steps)
    if name.startswith("cpp_") and callable(value):
        return _noted_kernel(value, steps)
    if name in _ONCE or value is torch or value is math or isinstance(value, (int, float)):
        return value
    if isinstance(value, BuiltinFunctionType) and value is vars(builtins).get(name):
        return value
    raise NotFlat(f"it uses {name}")


class _Extern:
    """``extern_kernels`` of a generated module: library calls that write to ``out=``."""

    def __init__(self, kernels: Any, steps: list[Step]) -> None:
        self._kernels = kernels
        self._steps = steps

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = _noted(getattr(self._kernels, name), self._steps)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not isinstance(kwargs.get("out"), torch.Tensor):
                raise NotFlat(f"extern_kernels.{name} returns new memory")
            return kernel(*args, **kwargs)

        return call


def _noted(kernel: Callable[..., Any], steps: list[Step]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        steps.append(bound(kernel, *args, **kwargs))
        return result

    return call


def _noted_kernel(kernel: Callable[..., Any], steps: list[Step]) -> Callable[..., Any]:
    def call(*args: Any) -> None:
        kernel(*args)
        steps.append(kernel_step(kernel, args))

    return call
