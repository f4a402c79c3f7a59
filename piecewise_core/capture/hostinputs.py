"""Tensors of the CPU in a recorded run of a device: what graphs do not hold is done before them.

A graph keeps the number that a kernel was given at the capture, and no operator of the CPU is in
it. So an operator that runs on the CPU alone is a step of its own, and one of the device is given
a copy that is there, its *twin*, which a step fills before each replay. Twins are allocated in the
first run, outside of the pool: memory of the pool may be something else earlier in the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.calls import mapped, only_views, tensors, written
from piecewise_core.graph.hostinputs import to_device
from piecewise_core.torch_compat.dispatcher import without_modes
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["HostInputs"]

_ATEN = torch.ops.aten
_IN_PLACE = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor, _ATEN.sub_.Tensor: _ATEN.sub.Tensor,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor, _ATEN.div_.Tensor: _ATEN.div.Tensor,
}  # fmt: skip
_ARITHMETIC = frozenset({*_IN_PLACE, *_IN_PLACE.values()})
_SHORT = (torch.float16, torch.bfloat16)

Call = tuple[Any, Any, Mapping[str, Any]]
AddStep = Callable[[Any, Any, Mapping[str, Any], Sequence[torch.Tensor | None]], None]


class HostInputs:
    """One recording's. ``is_constant(tensor)``: whether every run makes it of Python data.

    ``step(fn, args, kwargs, buffers)``: takes what is to be done before the graph that is open.
    ``unfilled``: twins that this graph reads, and their values of now.
    """

    def __init__(
        self, device_type: str, is_constant: Callable[[torch.Tensor], bool], step: AddStep
    ) -> None:
        self._device_type = device_type
        self._is_constant = is_constant
        self._step = step
        self._twins: dict[Any, list[torch.Tensor]] = {}
        self._filled: dict[Any, torch.Tensor] = {}
        self.unfilled: list[tuple[torch.Tensor, torch.Tensor]] = []

    def runs_there(self, fn: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operator runs on the CPU alone, on what may be another value next time."""
        if self._device_type == "cpu" or self._target(args, kwargs) is not None:
            return False
        return any(self._varies(t) for t in tensors((args, kwargs)))

    def met(self, fn: Any, args: Any, kwargs: Any) -> None:
        """The first run does this: allocate the twins that the second will need."""
        with torch.inference_mode(False):
            for tensor, device in self._taken(fn, args, kwargs):
                twin = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
                )
                self._twins.setdefault(_layout(tensor, device), []).append(twin)

    def instead(self, fn: Any, args: Any, kwargs: Any) -> Call:
        """What the second run does in place of an operator."""
        if self.runs_there(fn, args, kwargs):
            return self._on_cpu(fn), args, kwargs
        taken = self._taken(fn, args, kwargs)
        if not taken:
            return fn, args, kwargs
        twins = {id(t): self._twin(t, device) for t, device in taken}
        args, kwargs = mapped((args, dict(kwargs)), lambda t: twins.get(id(t), t))
        if fn in _ARITHMETIC and not any(t.dim() for t, _ in taken):
            return partial(_as_kernels_do, fn, twins.values()), args, kwargs
        return fn, args, kwargs

    def fill(self) -> None:
        """Give the twins of the graph that was captured their values, before it runs there.

        The steps that do so run at replays alone. Memory that nobody filled may be positions out of
        bounds, which end a device's context.
        """
        with torch.inference_mode(False), torch.no_grad(), without_modes():
            for twin, value in self.unfilled:
                twin.copy_(value)
        self.unfilled.clear()

    def _taken(self, fn: Any, args: Any, kwargs: Any) -> list[tuple[torch.Tensor, torch.device]]:
        """Tensors of the CPU that an operator of the device reads, and the device they go to."""
        device = None if self._device_type == "cpu" else self._target(args, kwargs)
        if device is None:
            return []
        kept = {id(t) for t in written(fn, args, kwargs)}
        given = {id(t): t for t in tensors((args, kwargs)) if self._varies(t)}
        return [(t, device) for key, t in given.items() if key not in kept]

    def _target(self, args: Any, kwargs: Mapping[str, Any]) -> torch.device | None:
        """The device that an operator runs on; None for the CPU."""
        found = (t.device for t in tensors((args, kwargs)))
        named = kwargs.get("device")
        devices = [*found, *([torch.device(named)] if named is not None else [])]
        return next((d for d in devices if d.type == self._device_type), None)

    def _varies(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu" and not self._is_constant(tensor)

    def _twin(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        key = (memory_key(tensor), tensor.storage_offset(), _layout(tensor, device))
        if key not in self._filled:
            free = self._twins.get(_layout(tensor, device))
            if not free:
                return tensor  # another path than the first run's: the device will refuse it
            self._filled[key] = free.pop()
            self._step(to_device, (tensor, device), {}, [self._filled[key]])
            with without_modes():
                self.unfilled.append((self._filled[key], tensor.clone()))
        return self._filled[key]

    def _on_cpu(self, fn: Any) -> Callable[..., Any]:
        """``fn`` as it is, and as a step."""

        def run(*args: Any, **kwargs: Any) -> Any:
            result = fn(*args, **kwargs)
            if only_views(result, args, kwargs, written(fn, args, kwargs)):
                return result
            given = {memory_key(t) for t in tensors((args, kwargs))}
            made = tensors(result)
            buffers = [None if memory_key(t) in given else _plain(t) for t in made]
            self._step(fn, args, kwargs, buffers)
            changed = {memory_key(t) for t in written(fn, args, kwargs)}
            self._filled = {k: t for k, t in self._filled.items() if k[0] not in changed}
            return result

        return run


def _as_kernels_do(fn: Any, numbers: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    """Arithmetic with a number: in float32 at least, rounded afterwards, and times an inverse."""
    operator, (first, second) = _IN_PLACE.get(fn, fn), args[:2]
    is_number = [any(t is n for n in numbers) for t in (first, second)]
    other, number = (second, first) if is_number[0] else (first, second)
    divides = operator is _ATEN.div.Tensor
    if all(is_number) or not other.is_floating_point() or number.is_complex():
        return fn(*args, **kwargs)
    if divides and is_number[0]:  # a number that is divided is rounded first
        return fn(*args, **kwargs)
    short = other.dtype in _SHORT
    wide = torch.float32 if short else other.dtype
    operands = [t if n or not short else t.float() for t, n in zip(args, is_number, strict=False)]
    if divides:
        operator, operands[1] = _ATEN.mul.Tensor, second.to(wide).reciprocal()
    made = operator(*operands, *args[2:], **kwargs).to(other.dtype)
    return made if fn is _IN_PLACE.get(fn, fn) else first.copy_(made)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, which steps may write to in whatever mode calls come in."""
    with torch.inference_mode(False):
        again = torch.empty(0, dtype=tensor.dtype)
        storage, offset = tensor.untyped_storage(), tensor.storage_offset()
        return again.set_(storage, offset, tensor.size(), tensor.stride())


def _layout(tensor: torch.Tensor, device: torch.device) -> Any:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, device
