"""What a program may ask of a tensor besides its values: what tells it from another one."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["tensor_facts"]


def tensor_facts(tensor: torch.Tensor) -> dict[str, Any]:
    """Name -> answer, as JSON. Not its device's index, which changes from process to process."""
    kind = type(tensor)
    found: dict[str, Any] = {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "dtype": str(tensor.dtype).partition(".")[2],
        "device": tensor.device.type,
        "shape": [int(size) for size in tensor.shape],
    }
    if tensor.layout is torch.strided:
        found["stride"] = [int(step) for step in tensor.stride()]
        found["offset"] = int(tensor.storage_offset())
    else:
        found["layout"] = str(tensor.layout)
    asked = {
        "requires_grad": tensor.requires_grad,
        "computed": not tensor.is_leaf,
        "conjugate": tensor.is_conj(),
        "negative": tensor.is_neg(),
        "named": any(getattr(tensor, "names", ())),
        "grad": tensor.is_leaf and tensor.grad is not None,
        "index": tensor.device.index is not None,
    }
    found["is"] = [name for name, answer in asked.items() if answer]
    return found
