"""What every operator of a run gave, as a few numbers, to find where two runs part."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode

__all__ = ["Fingerprints", "Print", "parting"]

_PART = 1e-6
"""How far sums may lie apart, by the sum of all magnitudes: the same kernels ran on both sides."""


@dataclass(frozen=True)
class Print:
    """One operator that ran. ``sums``: of its results and of their magnitudes. ``place``: where."""

    op: str
    sums: tuple[torch.Tensor, ...]
    place: Any


class Fingerprints(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes a Print per operator, unless it is ``paused``. ``place()``: where the run is."""

    def __init__(self, place: Callable[[], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prints: list[Print] = []
        self.paused = False
        self._place = place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.paused:
            return result
        tensors = [t for t in pytree.tree_leaves(result) if _is_summed(t)]
        if tensors:
            self.prints.append(Print(str(func), tuple(map(_sums, tensors)), self._place()))
        return result


def parting(ours: Sequence[Print], theirs: Sequence[Print]) -> Print | None:
    """The first of our operators that gave something else than the same one of theirs.

    Operators that only one side has count where results differ behind them.
    """
    matcher = difflib.SequenceMatcher(
        None, [p.op for p in ours], [p.op for p in theirs], autojunk=False
    )
    done = 0
    for a, b, count in matcher.get_matching_blocks():
        for i in range(count):
            if not _same(ours[a + i], theirs[b + i]):
                return ours[done if i == 0 else a + i]
        if count:
            done = a + count
    return ours[done] if done < len(ours) else None


def _same(ours: Print, theirs: Print) -> bool:
    return len(ours.sums) == len(theirs.sums) and all(
        bool(((a - b).abs() <= _PART * a[0]).all())
        for a, b in zip(ours.sums, theirs.sums, strict=True)
    )


def _is_summed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor)
    wide = torch.nan_to_num(tensor.to(torch.float32), 0.0, 0.0, 0.0).to(torch.float64)
    ramp = torch.arange(wide.numel(), device=wide.device, dtype=torch.float64).cos()
    flat = wide.reshape(-1)
    return torch.stack([flat.abs().sum(), flat.sum(), flat @ ramp])
