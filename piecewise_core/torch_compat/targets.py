"""Functions of torch that stand in graphs as targets; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed

with needed():
    check_size: Any = torch._check
    enter_autocast: Any = torch.amp.autocast_mode._enter_autocast
    exit_autocast: Any = torch.amp.autocast_mode._exit_autocast
    enter_inference: Any = torch.autograd.grad_mode._enter_inference_mode
    exit_inference: Any = torch.autograd.grad_mode._exit_inference_mode
    set_grad: Any = torch._C._set_grad_enabled
    builtin_function = type(torch._C._nn.gelu)

__all__ = [
    "FUNCTION_MODULES",
    "PUBLIC_MODULES",
    "builtin_function",
    "check_size",
    "enter_autocast",
    "enter_inference",
    "exit_autocast",
    "exit_inference",
    "is_conversion",
    "lowers_version",
    "marked_constant",
    "set_grad",
]

FUNCTION_MODULES = ("torch._C._nn", "torch._C._linalg", "torch._C._special", "torch._C._fft")
"""Modules that built-in functions say they are of, and are found in."""

PUBLIC_MODULES = {
    "torch._C._nn": "torch.nn.functional",
    "torch._C._nn.functional": "torch.nn.functional",
    "torch._C._VariableFunctions": "torch",
    "": "torch",
}
"""The module that such a function says -> where users find it."""


def is_conversion(target: Any) -> bool:
    """Whether Dynamo put ``target`` into the graph, between values of numpy's and torch."""
    return type(target).__module__ == "torch._dynamo.utils"


def lowers_version(target: Any) -> bool:
    """Whether Dynamo put ``target`` behind a write to ``Tensor.data``: a version does not count."""
    name = getattr(target, "__name__", "")
    return name == "_lower_version_count_by_1" and target.__module__.startswith("torch._dynamo.")


def marked_constant(function: Any) -> bool:
    """Whether somebody declared that the function gives the same at every call."""
    return bool(getattr(function, "_dynamo_marked_constant", False))
