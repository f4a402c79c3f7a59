"""Tensors, their memory and their generators; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from typing import Any

import torch

from piecewise_core.torch_compat.lookup import missing, needed, optional, reader

__all__ = [
    "copy_all",
    "fused_attention",
    "generator_key",
    "memory_key",
    "negated",
    "resize_memory",
    "same_addresses",
    "sharing",
    "storage_key",
    "storage_of",
    "tensor_address_function",
    "tensor_layout_functions",
]

with needed():
    copy_all: Any = torch._foreach_copy_
    """Copy a list of tensors into another."""

    fused_attention: Any = torch._fused_sdp_choice
    """Which kernel of attention torch would take: 0 the general one, -1 none."""

    negated: Any = torch._neg_view
    """A view whose numbers are read with the other sign."""

    resize_memory: Any = torch.ops.inductor.resize_storage_bytes_.default
    """Give a tensor's memory another size, which may be a symbol. Sizes and strides stay."""

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


def sharing(tensors: Sequence[Any]) -> list[int]:
    """For each tensor, the place of the first one that lives in the same memory."""
    first: dict[int, int] = {}
    return [
        first.setdefault(memory_key(t), i) if isinstance(t, torch.Tensor) else -1
        for i, t in enumerate(tensors)
    ]


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


_ABI = ("get_data_ptr", "get_dtype", "get_dim", "get_sizes", "get_strides")
"""Functions of torch's stable C interface for compiled models (its ``c/shim.h``)."""


@functools.cache
def tensor_layout_functions() -> bytes:
    """What ``dict_guard.c`` calls to ask how a tensor lies: its ``Torch``.

    Those functions take the place in a tensor's object where the pointer to the tensor itself
    stands. It is looked for in two objects: a wrong place would be a wrong memory access.
    """
    library = ctypes.CDLL(torch._C.__file__)
    with needed():
        found = [getattr(library, f"aoti_torch_{name}") for name in _ABI]
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in found]
    samples = torch.empty(2, 3), torch.nn.Parameter(torch.empty(4))
    places = set(map(_handle, samples))
    if len(places) != 1 or None in places:
        raise missing("Tensor._cdata in a tensor's object")
    return struct.pack("7P", *addresses, *places, id(torch._C.TensorBase))


def _handle(tensor: torch.Tensor) -> int | None:
    """Where in the object the pointer stands, in bytes."""
    size = torch._C.TensorBase.__basicsize__ // struct.calcsize("P")
    words = struct.unpack(f"{size}P", ctypes.string_at(id(tensor), struct.calcsize(f"{size}P")))
    own: Any = tensor
    with needed():
        found = [place for place, word in enumerate(words) if word == own._cdata]
    return found[0] * struct.calcsize("P") if len(found) == 1 else None
