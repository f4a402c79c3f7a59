"""What tells one memory or generator from another; known in 2.11 to 2.13, no fallback."""

from __future__ import annotations

import torch

from piecewise_core.torch_compat.lookup import reader

__all__ = ["generator_key", "memory_key", "storage_key"]

storage_key = reader(torch.UntypedStorage, "_cdata")
"""Equal for two Python objects that are one storage, while it lives."""

generator_key = reader(torch.Generator, "_cdata")
"""Equal for two Python objects that are one generator."""


def memory_key(tensor: torch.Tensor) -> int:
    """Equal for tensors that share memory, while one of them lives."""
    found: int = storage_key(tensor.untyped_storage())
    return found
