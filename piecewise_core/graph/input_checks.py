"""Whether one argument fits what was traced: one check per kind of node, saying what is wrong."""

from __future__ import annotations

import math
from typing import Any

import torch

from piecewise_core.errors import InputMismatch
from piecewise_core.graph.structure import Constant, Container, TensorLeaf
from piecewise_core.graph.wording import keys_text, shown, typed

__all__ = ["check_constant", "check_container", "check_tensor", "same_value"]


def check_container(node: Container, value: Any) -> None:
    """Raise InputMismatch when type or keys differ, or the order of keys where it counts."""
    if type(value) is not node.kind:
        raise InputMismatch(
            f'argument "{node.path}" is a {type(value).__name__}; traced with {node.kind.__name__}'
        )
    held: Any = value
    if not node.is_mapping:
        if len(held) != len(node.keys):
            what = "" if any(isinstance(item, torch.Tensor) for item in held) else _DATA
            count = f"{len(held)} items; traced with {len(node.keys)}"
            raise InputMismatch(f'argument "{node.path}" has {count}{what}')
        return
    keys = tuple(held)
    if set(keys) != set(node.keys):
        raise InputMismatch(
            f'argument "{node.path}" has keys {keys_text(keys)}; traced with {keys_text(node.keys)}'
        )
    if node.is_ordered and keys != node.keys:
        raise InputMismatch(
            f'argument "{node.path}" has keys in the order {keys_text(keys)}; traced with '
            f"{keys_text(node.keys)}, and the model may go through them in order: pass them so"
        )


_DATA = ": values that differ from call to call are data, pass them as a tensor"


def check_constant(node: Constant, value: Any) -> None:
    """Raise InputMismatch when ``value`` is not the constant traced."""
    if isinstance(value, torch.Tensor):
        raise InputMismatch(
            f'argument "{node.path}" is a tensor of shape {tuple(value.shape)}; traced with the '
            f"constant {shown(node.value)}"
        )
    if node.by_identity:
        if value is not node.value:
            raise InputMismatch(
                f'argument "{node.path}" is another {type(value).__name__} object than the '
                f"{type(node.value).__name__} traced; objects are constants by identity: pass "
                "the same one, or pass its tensors as arguments"
            )
    elif not same_value(node.value, value):
        raise InputMismatch(
            f'argument "{node.path}" is {shown(value)}; traced with the constant '
            f"{shown(node.value)}{_DATA}"
        )


def check_tensor(leaf: TensorLeaf, value: Any) -> None:
    """Raise InputMismatch when type, dtype, device, rank or a fixed size differ."""

    def refuse(what: str, expected: object, got: object) -> InputMismatch:
        return InputMismatch(f'argument "{leaf.path}": {what} expected {expected}, got {got}')

    if not isinstance(value, torch.Tensor):
        raise refuse("a tensor", f"of {leaf.dtype}", typed(value))
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise refuse("type", "torch.Tensor", type(value).__name__)
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else value.layout
        raise refuse("layout", torch.strided, kind)
    if value.dtype is not leaf.dtype:
        raise refuse("dtype", leaf.dtype, value.dtype)
    if value.device != leaf.device:
        raise refuse("device", leaf.device, value.device)
    if value.dim() != len(leaf.sizes):
        raise refuse("rank", len(leaf.sizes), f"{value.dim()}, shape {tuple(value.shape)}")
    for dim, size in enumerate(leaf.sizes):
        if dim not in leaf.dims and value.shape[dim] != size:
            raise InputMismatch(
                f'argument "{leaf.path}": size of dim {dim} expected {size}, got '
                f"{value.shape[dim]}; to let it vary, name it in Config.dynamic: "
                f'{{"{leaf.path}": {{{dim}: Dim("...", max=...)}}}}'
            )


def same_value(a: Any, b: Any) -> bool:
    """Whether two plain values would trace alike.

    One type and equal; NaN equals NaN, and 0.0 is not -0.0.
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, (slice, range)):
        return all(map(same_value, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    if isinstance(a, frozenset):
        return a == b and {(type(i), i) for i in a} == {(type(i), i) for i in b}
    if isinstance(a, complex):
        return same_value(a.real, b.real) and same_value(a.imag, b.imag)
    if isinstance(a, float):
        return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)
    if hasattr(a, "tobytes"):  # a scalar of NumPy's
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)
