"""What a call is refused for whatever its arguments: gradients, autocast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.errors import GradNeeded, InputMismatch

__all__ = ["check_grad", "need_grad", "refuse_autocast"]


def check_grad(tensors: Iterable[Any], held: bool) -> None:
    """Raise GradNeeded where an input, or with ``held`` a parameter, requires gradients."""
    inputs = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
    if inputs or held:
        raise GradNeeded(
            f"called with gradients enabled, and {'an input' if inputs else 'a parameter'} "
            "requires them; piecewise is for inference: call under torch.inference_mode() or "
            "torch.no_grad(), or call requires_grad_(False) on the model"
        )


def need_grad(roots: Iterable[torch.nn.Module]) -> bool:
    """Whether a parameter of ``roots`` requires gradients."""
    return any(p.requires_grad for root in roots for p in root.parameters())


def refuse_autocast() -> None:
    """Raise InputMismatch: what a call inside of autocast gets."""
    raise InputMismatch(
        "called inside torch.autocast, which what was traced or recorded outside of it cannot "
        "follow; enter autocast inside the model's forward, or convert the model with .to(dtype)"
    )
