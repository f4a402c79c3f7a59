"""What nodes come to whose value is the same at every call, computed with the device's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode
from piecewise_core.torch_compat.fakes import FakeTensor, unset_fake_temporarily
from piecewise_core.torch_compat.targets import is_conversion

__all__ = ["is_plain_fake", "lifted", "literal_value", "value_of"]

_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_CONVERSIONS = frozenset({
    "bfloat16", "bool", "byte", "char", "cpu", "cuda", "double", "float", "half", "int", "long",
    "short", "type", "type_as",
})  # fmt: skip
"""Methods that only convert, and that no operator is named after."""

_FROM_DATA = (torch.as_tensor, torch.asarray, torch.from_numpy)
_MOST_BYTES = 1 << 16
"""What a value that is computed ahead may grow to from smaller ones."""


def literal_value(node: torch.fx.Node) -> torch.Tensor | None:
    """The tensor that ``node`` makes of Python data; None for every other node."""
    if node.op != "call_function" or node.all_input_nodes or not _is_torchs(node.target):
        return None
    example: Any = node.meta.get("example_value")
    if not is_plain_fake(example):
        return None
    with example.fake_mode:
        made_of_data = bool(lifted(node.target, node.args, node.kwargs))
    return _evaluated(node, example, {}) if made_of_data else None


def value_of(
    node: torch.fx.Node, known: Mapping[torch.fx.Node, torch.Tensor]
) -> torch.Tensor | None:
    """What ``node`` computes of nothing but ``known`` values; None where that may not be said."""
    example: Any = node.meta.get("example_value")
    given = node.all_input_nodes
    if not given or not all(n in known for n in given) or not is_plain_fake(example):
        return None
    if not _is_function_of_values(node):
        return None
    room = max(_MOST_BYTES, *(known[n].nbytes for n in given))
    if not effects.is_view(node) and example.nbytes > room:
        return None
    return _evaluated(node, example, known)


def is_plain_fake(value: Any) -> bool:
    """Whether a value is a strided tensor of known sizes, outside of vmap and its like."""
    if not isinstance(value, FakeTensor) or functorch.is_functorch_wrapped_tensor(value):
        return False
    numbers = (*value.shape, *value.stride()) if value.layout is torch.strided else ("sparse",)
    return all(isinstance(n, int) for n in numbers) and not (value.is_conj() or value.is_neg())


def lifted(call: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that ``call(*args, **kwargs)`` makes of Python data, in order."""
    mode = _Lifted()
    with torch.inference_mode(), mode:
        call(*args, **kwargs)
    return mode.found


class _Lifted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees Python data become tensors: torch says of each that it is fresh."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LIFTS:
            self.found.append(args[0])
        return func(*args, **(kwargs or {}))


def _is_torchs(target: Any) -> bool:
    """Whether a function is torch's own: what others do besides, nobody knows."""
    if isinstance(target, type):
        return issubclass(target, torch.Tensor) or target.__module__.partition(".")[0] == "torch"
    builtin = isinstance(target, type(torch.sin))
    return builtin or is_conversion(target)


def _is_function_of_values(node: torch.fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _CONVERSIONS or effects.is_pure(node)
    converts = node.target in _FROM_DATA or is_conversion(node.target)
    return node.op == "call_function" and (converts or effects.is_pure(node))


def _evaluated(
    node: torch.fx.Node, example: FakeTensor, known: Mapping[torch.fx.Node, torch.Tensor]
) -> torch.Tensor | None:
    """The value, if it is of the kind that the trace has seen."""
    args: Any = torch.fx.node.map_arg(node.args, known.__getitem__)
    kwargs: Any = torch.fx.node.map_arg(node.kwargs, known.__getitem__)
    with (
        unset_fake_temporarily(),
        torch.device(example.device),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        if node.op == "call_method":
            made = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            made = node.target(*args, **kwargs)  # type: ignore[operator]
    if type(made) is not torch.Tensor or made.layout is not torch.strided:
        return None
    same = (
        made.dtype == example.dtype
        and made.device == example.device
        and tuple(made.shape) == tuple(example.shape)
        and made.stride() == tuple(example.stride())
    )
    return made if same else None
