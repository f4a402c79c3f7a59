"""Tensors, their memory and their generators; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed, optional, reader

__all__ = [
    "copy_all",
    "fused_attention",
    "generator_key",
    "memory_key",
    "negated",
    "same_addresses",
    "storage_key",
    "storage_of",
    "tensor_address_function",
]

with needed():
    copy_all: Any = torch._foreach_copy_
    """Copy a list of tensors into another."""

    fused_attention: Any = torch._fused_sdp_choice
    """Which kernel of attention torch would take: 0 the general one, -1 none."""

    negated: Any = torch._neg_view
    """A view whose numbers are read with the other sign."""

    storage_of: Any = torch.UntypedStorage._new_with_weak_ptr
    """The storage behind a weak pointer, or None."""

storage_key = reader(torch.UntypedStorage, "_cdata")
"""Equal for two Python objects that are one storage, while it lives."""

generator_key = reader(torch.Generator, "_cdata")
"""Equal for two Python objects that are one generator."""


def memory_key(tensor: torch.Tensor) -> int:
    """Equal for tensors that share memory, while one of them lives."""
    found: int = storage_key(tensor.untyped_storage())
    return found


def _same_addresses(tensors: list[Any], addresses: list[int | None], places: list[int]) -> bool:
    return all(tensors[place].data_ptr() == addresses[place] for place in places)


same_addresses: Any = optional("_C._tensors_data_ptrs_at_indices_equal", _same_addresses)
"""``same_addresses(tensors, addresses, places)``: whether the tensors at ``places`` lie there.

In C, for the cost of one call, it takes lists only.
"""


def tensor_address_function() -> int:
    """Where in memory torch's C function lies that gives a tensor's address."""
    guards: Any = torch._C._dynamo.guards
    with needed():
        return int(guards._torchinductor_pyobject_tensor_data_ptr)
