"""Which operators make the host wait for the device; a capture permits none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from piecewise_core.torch_compat.operators import HigherOrderOperator, schema_of

__all__ = ["UNSAFE", "waits_for_device"]

UNSAFE = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
)
"""Those that do so whatever their arguments, by the names that users know."""

_MASKS = (torch.bool, torch.uint8)
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def waits_for_device(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Sequence[torch.Tensor] = ()
) -> bool:
    """Whether what ``func`` returns, or the size of it, hangs on the values of its arguments.

    ``numbers``: tensors that stand for numbers of Python's.
    """
    if isinstance(func, HigherOrderOperator):
        return True  # torch.cond reads a number; no mode is shown what any of them runs
    name = schema_of(func).name
    if name in _INDEXING:
        given = [leaf for leaf in args[1] if isinstance(leaf, torch.Tensor)]
        masks = [leaf for leaf in given if leaf.dtype in _MASKS]
        if len(given) == 1 and len(args) == 3 and any(args[2] is number for number in numbers):
            return False  # ``x[mask] = 3.0`` is a masked fill
        return bool(masks)
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(
        func.tags
    )
