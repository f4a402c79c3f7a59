"""What one run of a function did, values left out: operators, their tensors, the memory they share.

Two runs on inputs that lie otherwise in memory are compared by it: where both did the same, what
was recorded of one serves calls like the other. Values are numbered as they come up; a conversion
that may be the tensor itself (`contiguous`) is the same value either way.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from piecewise_core.capture.calls import tensors, written
from piecewise_core.capture.hostdata import is_lift
from piecewise_core.graph.structure import is_plain
from piecewise_core.torch_compat.dispatcher import TorchDispatchMode, without_modes
from piecewise_core.torch_compat.operators import schema_name
from piecewise_core.torch_compat.storages import memory_key, storage_key

__all__ = ["Course", "Following"]

_QUIET = frozenset({"prim", "profiler"})
"""Operators that compute nothing."""

_ITSELF = frozenset({
    "aten::contiguous", "aten::flatten", "aten::ravel", "aten::reshape", "aten::reshape_as",
    "aten::resolve_conj", "aten::resolve_neg", "aten::to", "aten::type_as",
})  # fmt: skip
"""Operators that return what they are given or a copy of it, as it lies."""

_BY_MEMORY = frozenset({
    "aten::as_strided", "aten::as_strided_", "aten::as_strided_copy", "aten::as_strided_scatter",
    "aten::resize_", "aten::resize_as_", "aten::set_", "aten::shallow_copy_data_",
})  # fmt: skip
"""Operators that take elements by where they lie."""

_NUMBER = re.compile(r"%\d+")


class Course:
    """Filled while a function runs on ``inputs``."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        self._inputs = inputs
        self.forget()

    def forget(self) -> None:
        """The run was given up and starts anew."""
        self._steps: list[str] = []
        self._result = ""
        self._is_over = False
        self._numbers: Any = WeakIdKeyDictionary()
        self._count = 0
        self._memory: dict[int, tuple[StorageWeakRef, int]] = {}
        self._places: list[int] = []
        self._written: set[int] = set()
        self._by_memory = False
        self._outside: list[torch.Tensor] = []
        for tensor in self._inputs:
            self._meet(tensor)
        self._names = [self._numbers[tensor] for tensor in self._inputs]
        self._given = frozenset(self._memory)

    def is_given(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies in the memory of an input."""
        return memory_key(tensor) in self._given

    def sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The inputs in whose memory ``tensor`` lies."""
        memory = memory_key(tensor)
        return [t for t in self._inputs if memory_key(t) == memory]

    def note(self, op: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One operator ran and gave ``result``."""
        if getattr(op, "namespace", "") in _QUIET:
            return
        name = schema_name(op)
        text = f"{op} {self._text((args, kwargs), is_lift(op))}"
        source = next(iter(tensors(args)), None) if name in _ITSELF else None
        if source is not None and isinstance(result, torch.Tensor) and _alike(result, source):
            self._numbers[result] = self._numbers[source]
            return  # torch does not call it at all where it is the tensor itself
        self._steps.append(text)
        self._by_memory |= name in _BY_MEMORY
        self._written |= {self._at(tensor) for tensor in written(op, args, kwargs)}
        for tensor in tensors(result):
            self._meet(tensor)

    def returned(self, result: Any) -> None:
        """The run is over."""
        self._is_over = True
        self._result = self._text(result)

    def is_like(self, other: Course) -> bool:
        """Whether both runs did the same, whatever their inputs' layout.

        Where ``other`` was given one tensor several times, the last of its numbers stands for it.
        """
        if self._by_memory or other._by_memory:
            return False
        one = {f"%{i}": f"%{name}" for i, name in enumerate(other._names)}
        ours, theirs = (
            [_NUMBER.sub(lambda found: one.get(found[0], found[0]), text) for text in texts]
            for texts in ([*self._steps, self._result], [*other._steps, other._result])
        )
        return ours == theirs and self._shared() == other._shared()

    def _shared(self) -> set[frozenset[int]]:
        """Which tensors lie together, of those in memory that was written to."""
        groups: dict[int, list[int]] = {}
        for number, place in enumerate(self._places):
            groups.setdefault(place, []).append(number)
        return {frozenset(groups[place]) for place in self._written if place in groups}

    def _meet(self, tensor: torch.Tensor) -> int:
        """A value that was not there before."""
        number = self._numbers[tensor] = self._count
        self._count += 1
        self._places.append(self._at(tensor))
        return number

    def _at(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's memory."""
        storage = tensor.untyped_storage()
        found = self._memory.get(storage_key(storage))
        if found is None:
            # Weak: a run frees its memory as it goes. A number is not given out again meanwhile.
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            found = self._memory[storage_key(storage)] = weak, len(self._memory)
        return found[1]

    def _text(self, value: Any, lifts: bool = False) -> str:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, lifts)
        if isinstance(value, Mapping):
            return f"{type(value).__name__}{[(k, self._text(v, lifts)) for k, v in value.items()]}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}{[self._text(v, lifts) for v in value]}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return f"{type(value).__name__}{[*map(self._text, _fields(value))]}"
        return repr(value) if is_plain(value) else f"object {id(value)}"

    def _tensor(self, tensor: torch.Tensor, lifts: bool) -> str:
        known = self._numbers.get(tensor)
        if known is not None:
            # What is handed back as it is, is the caller's tensor. A copy of it is not.
            itself = self._is_over and any(tensor is given for given in self._inputs)
            return f"%{known} {tuple(tensor.shape)} {itself}"
        number = self._meet(tensor)
        if lifts:
            with without_modes():  # others that look are shown what the model does alone
                return f"%{number} {tensor.dtype} {tensor.tolist()}"
        self._outside.append(tensor)
        return f"%{number} outside {id(tensor)}"


class Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that runs in a Course."""

    def __init__(self, course: Course) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._course = course

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._course.note(func, args, kwargs or {}, result)
        return result


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype and one.device == other.device


def _fields(value: Any) -> Iterator[Any]:
    return (getattr(value, field.name, None) for field in dataclasses.fields(value))
