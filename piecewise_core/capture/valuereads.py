"""Operators by which a tensor's values become Python's, or decide what a result is.

A recording keeps what they gave: a number, an offset, how many rows there are. Some operators are
made of others (composite), which a mode is not shown in inference mode; those are looked into.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.capture.calls import ValueRead, mapped, tensors, written
from piecewise_core.graph.composite import composite_kernel
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode, without_modes
from piecewise_core.torch_compat.fakes import FakeTensorMode
from piecewise_core.torch_compat.operators import schema_of, schema_or_none
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["is_read", "looked_into", "values_read"]

_ITEMS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
_PLACES = {
    "aten::tensor_split.tensor_indices_or_sections": "tensor_indices_or_sections",
    "aten::_pack_padded_sequence": "lengths",
    "aten::_pad_packed_sequence": "batch_sizes",
}
"""Operators that read memory of the CPU and say so nowhere, by the argument whose."""

_UNTAGGED = "aten::is_nonzero"
_TORCHS = ("aten", "prim", "prims", "profiler")
_MASKS = (torch.bool, torch.uint8)


def is_read(fn: Any) -> bool:
    """Whether Python is given the number that a tensor is."""
    return fn in _ITEMS


def values_read(fn: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Tensors whose values Python is given by an operator, or that decide where its views lie."""
    schema = schema_or_none(fn)
    if schema is None:
        return []
    place = _PLACES.get(fn.name())
    if place is not None:
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        return tensors(given.get(place))
    tells = torch.Tag.data_dependent_output in fn.tags or schema.name == _UNTAGGED
    tells = tells or _tells_python(fn, schema) or _sizes_itself(fn, args, kwargs)
    return tensors((args, kwargs)) if tells else []


def _tells_python(fn: Any, schema: Any) -> bool:
    """Whether an operator of the user's returns what is no tensor."""
    if fn.namespace in _TORCHS:
        return False  # of these, sizes and the like: those that read values say so
    return any("Tensor" not in str(each.type) for each in schema.returns)


def _sizes_itself(fn: Any, args: Any, kwargs: Any) -> bool:
    """Whether values decide how large a result of the user's operator is, by its fake kernel."""
    if fn.namespace in _TORCHS:
        return False  # those say so by a tag
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with without_modes(), mode:
        try:
            args, kwargs = mapped((args, kwargs), partial(mode.from_tensor, static_shapes=True))
            result = fn(*args, **kwargs)
        except Exception:  # it has none, and says nothing
            return False
    return any(type(size) is not int for t in tensors(result) for size in t.shape)


def _sized_by(fn: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Tensors whose values decide how large a result is."""
    if torch.Tag.dynamic_output_shape not in getattr(fn, "tags", ()):
        return []
    if schema_of(fn).name in ("aten::index", "aten::masked_select"):  # sized by masks alone
        return [t for t in tensors(args[1]) if t.dtype in _MASKS]
    if kwargs.get("output_size") is not None:
        return []
    return tensors((args, kwargs))


def looked_into(fn: Any, may_read: Callable[[torch.Tensor], bool]) -> Callable[..., Any]:
    """``fn``; one that is made of others raises ValueRead where one of those reads values.

    ``may_read(tensor)``: whether a tensor is Python's own data, which a recording may fix.
    """
    kernel = composite_kernel(fn)
    if kernel is None:
        return fn  # type: ignore[no-any-return]

    def run(*args: Any, **kwargs: Any) -> Any:
        with _Inside(fn, may_read):
            return kernel(*args, **kwargs)

    return run


class _Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the operators that one is made of."""

    def __init__(self, whole: Any, may_read: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = whole
        self._may_read = may_read
        self._fixed: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = values_read(func, args, kwargs) + _sized_by(func, args, kwargs)
        if not all(map(self._is_fixed, read)):
            raise ValueRead(f"a tensor's value, which {self._whole} reads by {func},")
        kernel = composite_kernel(func)
        if kernel is not None:
            with self:
                return kernel(*args, **kwargs)
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _is_fixed(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor holds the same in every run: it was made of nothing that varies."""
        memory = memory_key(tensor)
        mine = any(memory_key(each) == memory for each in self._fixed)
        return mine or self._may_read(tensor)

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Tell the tensors made of fixed ones; what is made of sizes alone is one."""
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if not seeded and all(map(self._is_fixed, tensors((args, kwargs)))):
            self._fixed += tensors(result)
            return
        for tensor in written(func, args, kwargs):
            memory = memory_key(tensor)
            self._fixed = [t for t in self._fixed if memory_key(t) != memory]
