"""Results copied out of the graphs' memory: what shared memory there shares it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from piecewise_core.graph.lying import lying_of
from piecewise_core.torch_compat.storages import negated

__all__ = ["copier"]


def copier(outputs: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """What copies such ``outputs``, or their beginnings, in the layouts that they have.

    A view of another result stays one: a caller may write to the one and read the other.
    """
    # By address: results are objects over the pool's memory, each with a storage of its own.
    places: dict[int, list[int]] = {}
    for place, out in enumerate(outputs):
        if _is_plain(out) and out.numel():
            places.setdefault(out.untyped_storage().data_ptr(), []).append(place)
    joint = [of for of in places.values() if len(of) > 1 or lying_of(outputs[of[0]]).repeats]
    if not joint:
        return lambda outs: [_copy(out) for out in outs]
    apart = set(range(len(outputs))).difference(*joint)

    def copies(outs: Sequence[Any]) -> list[Any]:
        found = [_copy(out) if place in apart else out for place, out in enumerate(outs)]
        for of in joint:
            memory = outs[of[0]].untyped_storage().clone()
            for place in of:
                found[place] = _over(memory, outs[place])
        return found

    return copies


def _is_plain(out: Any) -> bool:
    is_tensor = type(out) is torch.Tensor or isinstance(out, torch.nn.Parameter)
    return is_tensor and out.layout is torch.strided


def _copy(out: Any) -> Any:
    if not isinstance(out, torch.Tensor):
        return out
    copied = out.clone()
    if not _is_plain(out) or copied.stride() == out.stride():
        return copied
    return torch.empty_strided(out.size(), out.stride(), dtype=out.dtype, device=out.device).copy_(
        out
    )


def _over(memory: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty(0, dtype=like.dtype, device=like.device)
    made.set_(memory, like.storage_offset(), like.size(), like.stride())
    if like.is_conj():
        made = made.conj()
    return negated(made) if like.is_neg() else made
