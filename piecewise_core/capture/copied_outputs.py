"""Results copied out of the graphs' memory: what shared memory there shares it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.loose import Loose
from piecewise_core.capture.opsteps import Step
from piecewise_core.graph.lying import lying_of
from piecewise_core.graph.spans import Spans, storage_span
from piecewise_core.torch_compat.storages import negated

__all__ = ["copied_anew", "copied_out", "copier", "outside_inference", "taken"]


def copied_out(
    results: Sequence[Any], buffers: Sequence[torch.Tensor]
) -> tuple[tuple[Step, ...], tuple[Any, ...]]:
    """Last steps, and results that do not lie in ``buffers``.

    A caller who passes back a view of an input buffer would have it overwritten while it is read.
    """
    memory = Spans(map(storage_span, buffers))
    places = [i for i, r in enumerate(results) if isinstance(r, torch.Tensor) and memory.holds(r)]
    found = list(results)
    if any(isinstance(result, Loose) for result in results):
        # Which of those are views of the same input is known at each call: taken() copies all.
        for place in places:
            found[place] = Loose(found[place])
        return (), tuple(found)
    with torch.inference_mode(False):
        steps, copies = copied_anew([results[place] for place in places])
    for place, copied in zip(places, copies, strict=True):
        found[place] = copied
    return steps, tuple(found)


def outside_inference(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``outputs`` of a run in inference mode for a caller who is not: what it made is copied."""
    made = [out for out in outputs if out.is_inference()]
    copies = dict(zip(map(id, made), _copies(made), strict=True))
    return [copies.get(id(out), out) for out in outputs]


def copier(
    outputs: Sequence[Any], held: Sequence[torch.Tensor] = ()
) -> Callable[[Sequence[Any]], list[Any]]:
    """What copies such ``outputs``, or their beginnings, in the layouts that they have.

    A view of another result stays one: a caller may write to the one and read the other. So does
    one of ``held``, tensors of the model or the call.
    """
    known = {_address(tensor) for tensor in held if _is_plain(tensor)}

    def is_held(out: Any) -> bool:
        return _is_plain(out) and out.numel() > 0 and _address(out) in known

    if any(isinstance(out, Loose) for out in outputs):
        return lambda outs: _copied(list(map(_value, outs)), is_held)  # others at every call
    if any(map(is_held, outputs)):
        return lambda outs: _copied(outs, is_held)
    # By address: results are objects over the pool's memory, each with a storage of its own.
    places: dict[int, list[int]] = {}
    for place, out in enumerate(outputs):
        if _is_plain(out) and out.numel():
            places.setdefault(_address(out), []).append(place)
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


def taken(outputs: Sequence[Any], held: Sequence[torch.Tensor] = ()) -> Sequence[Any]:
    """``outputs`` with the values of the last call in place of what is Loose.

    Later calls overwrite none, but those that lie in the memory of another output, or of ``held``,
    tensors of the model: such a view stays one.
    """
    loose = [place for place, out in enumerate(outputs) if isinstance(out, Loose)]
    if not loose:
        return outputs
    found = [_value(out) for out in outputs]
    fixed = [out for out in (*outputs, *held) if not isinstance(out, Loose)]
    known = {_address(out) for out in fixed if _is_plain(out)}
    own = [p for p in loose if not (_is_plain(found[p]) and _address(found[p]) in known)]
    for place, copied in zip(own, _copies([found[p] for p in own]), strict=True):
        found[place] = copied
    return found


def copied_anew(
    outputs: Sequence[torch.Tensor],
) -> tuple[tuple[Callable[[], Any], ...], list[torch.Tensor]]:
    """What brings copies of ``outputs`` up to date, and the copies; views of one memory stay so."""
    copies = _copies(outputs)
    steps: dict[int, Callable[[], Any]] = {}
    for out, copied in zip(outputs, copies, strict=True):
        lone = _address(copied) not in steps and not lying_of(copied).repeats
        to, of = (copied, out) if lone else (_whole(copied), _whole(out))
        steps[_address(copied) or id(copied)] = partial(to.copy_, of)
    return tuple(steps.values()), copies


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    memory = tensor.untyped_storage()
    made = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return made.set_(memory, 0, (memory.nbytes(),), (1,))


def _copied(outs: Sequence[Any], stays: Callable[[Any], bool]) -> list[Any]:
    found = list(outs)
    places = [i for i, out in enumerate(outs) if not stays(out)]
    for place, copied in zip(places, _copies([outs[i] for i in places]), strict=True):
        found[place] = copied
    return found


def _copies(values: Sequence[Any]) -> list[Any]:
    return copier(values)(values)


def _value(out: Any) -> Any:
    return out.value if isinstance(out, Loose) else out


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


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
