"""Whether two runs of one call gave the same results, but for rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Difference", "agree", "difference", "multiplies_in_fewer_bits"]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""How far floats may lie apart, by the largest of the tensor."""

_HALVES = (torch.float16, torch.bfloat16)

_REDUCED = 5e-3
"""The same for float32 where a device multiplies matrices in fewer bits."""

_SPREAD = 2.0
"""How much smaller the root of the mean of all squared differences has to be."""


@dataclass(frozen=True)
class Difference:
    """The first result in which two runs differ.

    ``place``: among the results. ``worst``: the largest distance of two elements. ``largest``: the
    largest element that was wanted.
    """

    place: int
    what: str
    worst: float = math.nan
    largest: float = math.nan

    @property
    def how(self) -> str:
        """How far they are apart, in words."""
        if math.isnan(self.worst):
            return self.what
        return (
            f"{self.what} apart by up to {self.worst:.3g}, where the largest element is "
            f"{self.largest:.3g}"
        )

    def __str__(self) -> str:
        return f"result {self.place}: {self.how}"


def agree(got: Iterable[Any], wanted: Iterable[Any]) -> bool:
    """Whether all results are alike; see ``difference``."""
    return difference(got, wanted) is None


def difference(got: Iterable[Any], wanted: Iterable[Any]) -> Difference | None:
    """The first result that is not as wanted, position by position; it waits for the device.

    Kernels chosen for another size, or made by a compiler, round otherwise, so floats may differ
    by their precision: single ones by a share of the largest of the tensor, all of them together
    by less. Whole numbers, truth values and what is no tensor must be equal.
    """
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        found = _apart(place, a, b)
        if found is not None:
            return found
    return None


def _apart(place: int, got: Any, wanted: Any) -> Difference | None:
    if not isinstance(wanted, torch.Tensor) or not isinstance(got, torch.Tensor):
        same = type(got) is type(wanted) and (got == wanted or (got != got and wanted != wanted))
        return None if same else Difference(place, "plain values differ")
    if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
        return Difference(place, f"{_kind(got)} in place of {_kind(wanted)}")
    if not wanted.numel() or got is wanted:
        return None
    if not wanted.dtype.is_floating_point and not wanted.dtype.is_complex:
        apart = int((got != wanted).sum())
        return Difference(place, f"{apart} elements differ in {_kind(wanted)}") if apart else None
    return _floats_apart(place, got, wanted)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _floats_apart(place: int, got: torch.Tensor, wanted: torch.Tensor) -> Difference | None:
    tolerance = _tolerance(wanted)
    if _close(got, wanted, tolerance):
        return None
    kind = _kind(wanted)
    if wanted.dtype not in _TOLERANCE and not wanted.dtype.is_complex:
        got, wanted = got.float(), wanted.float()  # eight bits can be stored and not computed with
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(got)):
        return Difference(place, f"other elements are not finite in {kind}")
    odd = ~finite & ~((got == wanted) | (torch.isnan(got) & torch.isnan(wanted)))
    if bool(odd.any()):
        return Difference(place, f"elements that are not finite differ in {kind}")
    zero = torch.zeros((), dtype=wanted.dtype, device=wanted.device)
    a, b = torch.where(finite, got, zero), torch.where(finite, wanted, zero)
    wide = torch.complex128 if wanted.dtype.is_complex else torch.float64
    off, size = (a.to(wide) - b.to(wide)).abs(), b.to(wide).abs()
    worst, largest = float(off.max()), float(size.max())
    spread, level = float(off.square().mean().sqrt()), float(size.square().mean().sqrt())
    if worst <= tolerance * largest and spread <= tolerance / _SPREAD * level:
        return None
    return Difference(place, kind, worst, largest)


def _close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors agree, found out in few steps; most do. False also where none can say."""
    if wanted.dtype in _HALVES:
        got, wanted = got.float(), wanted.float()
    if wanted.dtype not in (torch.float32, torch.float64):
        return False
    off, flat = (got - wanted).reshape(-1), wanted.reshape(-1)
    norm, ends = torch.linalg.vector_norm, torch.aminmax  # its norm of infinity is slow on CPUs
    found = torch.stack([norm(off), norm(flat), *ends(off), *ends(flat)])
    spread, level, *least_and_most = found.tolist()
    low, high, lowest, highest = least_and_most
    worst, largest = max(-low, high), max(-lowest, highest)
    # Whatever is not finite makes one of these comparisons false, or is left to a closer look.
    alike: bool = worst <= tolerance * largest and spread <= tolerance / _SPREAD * level
    return alike and math.isfinite(largest) and math.isfinite(level)


def _tolerance(wanted: torch.Tensor) -> float:
    dtype = wanted.dtype.to_real() if wanted.dtype.is_complex else wanted.dtype
    if dtype == torch.float32 and wanted.device.type != "cpu" and multiplies_in_fewer_bits():
        return _REDUCED
    return _TOLERANCE.get(dtype, 1e-1)


def multiplies_in_fewer_bits() -> bool:
    """Whether devices may multiply matrices of float32 in fewer bits."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set for this backend alone, of which torch.get_... does not tell
        return torch.backends.cuda.matmul.fp32_precision not in ("none", "ieee")
