"""Whether a padded call gave what the call gives by itself, but for rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.ranges import Sizes

__all__ = ["agree", "leak"]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_OTHERS = 0.5
"""How many whole numbers may differ: which of two near ties is the largest, rounding decides."""


def agree(got: Iterable[Any], wanted: Iterable[Any]) -> bool:
    """Whether all results are alike, position by position; it waits for the device.

    Kernels chosen for another size round otherwise, so floats may differ by their precision,
    measured by the largest of a tensor. Results that are no tensors must be equal.
    """
    return all(_alike(a, b) for a, b in zip(got, wanted, strict=True))


def _alike(got: Any, wanted: Any) -> bool:
    if not isinstance(wanted, torch.Tensor):
        return bool(got == wanted)
    if got.shape != wanted.shape:
        return False
    if not wanted.numel():
        return True
    if not wanted.dtype.is_floating_point and not wanted.dtype.is_complex:
        return bool((got != wanted).float().mean() <= _OTHERS)
    tolerance = _TOLERANCE.get(wanted.dtype.to_real(), 1e-1)
    if wanted.dtype not in _TOLERANCE and not wanted.dtype.is_complex:
        got, wanted = got.float(), wanted.float()  # eight bits can be stored and not computed with
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(got)):
        return False
    zero = torch.zeros((), dtype=wanted.dtype, device=wanted.device)
    a, b = torch.where(finite, got, zero), torch.where(finite, wanted, zero)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def leak(sizes: Sizes, captured: Sizes) -> str:
    """The message for results that padding has changed."""
    return (
        f"a call of sizes {sizes}, padded to {captured}, gave other results than without padding: "
        "rows see each other (a mean, a softmax over a padded dim), or a size is among the values. "
        "It is served without padding from now on; mask what rows must not see, or list the sizes "
        "in capture_sizes"
    )
