"""What a recorded run makes of Python data: the same at every replay, whatever was done to it.

A capture may not copy from the host, and memory that Python filled is filled by no replay. So what
goes to a device goes there in the first run, and the second is given it. Where a run writes to
such data, or returns it, it works on a copy that every replay makes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.capture.calls import mapped, tensors
from piecewise_core.capture.valuereads import is_read
from piecewise_core.graph.hostdata import bytes_of, is_list_of_lists, positions
from piecewise_core.torch_compat.operators import schema_name
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Call", "HostData", "is_lift", "on_host"]

_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
_CLONE, _TO = torch.ops.aten.clone.default, torch.ops.aten._to_copy.default
_TAKING = frozenset({
    "aten::copy_", "aten::index", "aten::index_put", "aten::index_put_", "aten::where",
})  # fmt: skip
"""Operators that bring what they are given to the device of their first argument."""

Call = tuple[Any, Any, Mapping[str, Any]]


class HostData:
    """What two runs make of Python data, known by its value.

    ``fresh``: values whose memory the first run wrote to or returned. ``segments``: where those
    that it made were made. ``given``: memory of values that the second run has as they are.
    """

    def __init__(self) -> None:
        self.fresh: set[Any] = set()
        self.segments: dict[Any, set[int]] = {}
        self.given: set[int] = set()
        # Weak: a run frees its memory as it goes. A number is not given out again meanwhile.
        self._kept: dict[int, StorageWeakRef] = {}
        self._value_at: dict[int, Any] = {}
        self._constant: set[int] = set()
        self._moved: dict[Any, torch.Tensor] = {}
        self._numbers: dict[Any, Any] = {}

    def begin(self) -> None:
        """The second run begins."""
        self._kept.clear()
        self._value_at.clear()
        self._constant.clear()

    def apart(self, found: Iterable[torch.Tensor]) -> None:
        """The first run wrote to ``found``, or returned it."""
        self.fresh |= {self._value_at[m] for m in map(_memory, found) if m in self._value_at}

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether Python may read ``tensor``: it is data that Python itself has given."""
        return _memory(tensor) in self._value_at or _memory(tensor) in self.given

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Whether the CPU made ``tensor`` of nothing but Python data."""
        return _memory(tensor) in self._constant

    def lifted(self, tensor: torch.Tensor, segment: int) -> None:
        """The first run made ``tensor`` of Python data in ``segment``."""
        value = _value(tensor)
        self._note(tensor)
        self._value_at[_memory(tensor)] = value
        self.segments.setdefault(value, set()).add(segment)

    def instead(self, fn: Any, args: Any, kwargs: Any) -> Call:
        """What the second run does in place of an operator."""
        if is_lift(fn):
            value = _value(args[0])
            self._note(args[0])
            if value in self.fresh or value not in self.segments:
                return _CLONE, (args[0],), {}
            self.given.add(_memory(args[0]))
            return fn, args, kwargs
        if is_read(fn) and _value(args[0]) in self._numbers:
            number = self._numbers[_value(args[0])]
            return lambda tensor: number, args, kwargs
        target = _target(fn, args, kwargs)
        if target is None:
            return fn, args, kwargs
        if fn is _TO:
            there = self._there(args[0], target, kwargs.get("dtype"))
            return (fn, args, kwargs) if there is args[0] else (_CLONE, (there,), {})
        return fn, mapped(args, lambda t: self._there(t, target, None)), kwargs

    def saw(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Either run did this: what the CPU makes of nothing but constants is one."""
        given = tensors((args, kwargs))
        seeded = torch.Tag.nondeterministic_seeded in getattr(fn, "tags", ())
        on_cpu = not seeded and all(_is_on_cpu(t) and _memory(t) in self._constant for t in given)
        for tensor in tensors(result) if on_cpu else ():
            if _is_on_cpu(tensor):
                self._note(tensor)

    def brought(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """The first run did this: keep what it brought to a device, or to Python."""
        if is_read(fn):
            self._numbers[_value(args[0])] = result
        target = _target(fn, args, kwargs)
        if target is None:
            return
        dtype = kwargs.get("dtype") if fn is _TO else None
        for tensor in tensors((args, kwargs)):
            if self._goes(tensor, target):
                moved = result.clone() if fn is _TO else tensor.to(target)
                self._moved.setdefault((_value(tensor), target, dtype), moved)

    def _there(self, tensor: torch.Tensor, target: torch.device, dtype: Any) -> torch.Tensor:
        """What the first run brought to ``target`` of a tensor; the tensor itself if nothing."""
        if not self._goes(tensor, target):
            return tensor
        return self._moved.get((_value(tensor), target, dtype), tensor)

    def _goes(self, tensor: torch.Tensor, target: torch.device) -> bool:
        return tensor.device != target and _memory(tensor) in self._constant

    def _note(self, tensor: torch.Tensor) -> None:
        self._kept[_memory(tensor)] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._constant.add(_memory(tensor))


def is_lift(fn: Any) -> bool:
    """Whether torch says with this operator that Python data has become a tensor."""
    return fn in _LIFTS


def on_host(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """A torch function that would bring Python data to a device, in two steps that modes see.

    Data first becomes a tensor of the CPU, which is then copied. None for every other function.
    """
    if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        return _with_positions(func, args)
    if func is torch.Tensor.new_tensor:
        device, data = kwargs.get("device") or args[0].device, (args[1:2] or (None,))[0]
    elif func in (torch.tensor, torch.as_tensor, torch.asarray):
        device, data = kwargs.get("device") or torch.get_default_device(), (args or (None,))[0]
    else:
        return None
    device = torch.device(device)
    if device.type in ("cpu", "meta") or data is None or isinstance(data, torch.Tensor):
        return None
    return lambda: func(*args, **{**kwargs, "device": "cpu"}).to(device)


def _with_positions(func: Any, args: Any) -> Callable[[], Any] | None:
    """Indexing by lists: a mask of Python's is positions, which no kernel has to count."""
    into, index, *rest = args
    items = index if isinstance(index, tuple) else (index,)
    found = [positions(item) for item in items]
    if not isinstance(into, torch.Tensor) or all(p is None for p in found):
        return None
    if is_list_of_lists(index):
        return None
    new = tuple(
        item if p is None else p.to(into.device) for item, p in zip(items, found, strict=True)
    )
    return lambda: func(into, new if isinstance(index, tuple) else new[0], *rest)


def _target(fn: Any, args: Any, kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device that an operator brings a tensor of the CPU to, if it does."""
    if fn is _TO:
        device = kwargs.get("device")
        return device if device is not None and device.type != "cpu" else None
    name = schema_name(fn)
    if name not in _TAKING or args[0].device.type == "cpu":
        return None
    return args[0].device  # type: ignore[no-any-return]


def _is_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _value(tensor: torch.Tensor) -> Any:
    """What tells a tensor's value from others."""
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), bytes_of(tensor)


def _memory(tensor: torch.Tensor) -> int:
    found: int = memory_key(tensor)
    return found
