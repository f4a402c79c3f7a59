"""What a CPU does between capture_begin and capture_end, as steps that can be done again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.building_blocks import (
    HigherOrderOperator,
    NativePiece,
    TorchDispatchMode,
    changes_itself,
    memory_key,
    pytree,
    schema_of,
    storage_key,
    without_modes,
)
from piecewise_cpu.arena import Arena
from piecewise_cpu.kernels import NotFlat, Step, flat_call

__all__ = ["DependsOnValues", "Recording"]

logger = logging.getLogger(__name__)

_ALLOCATES = ("aten::empty", "aten::new_empty")
_TELLS_PYTHON = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class DependsOnValues(RuntimeError):
    """An operator that a fixed list of calls cannot stand for."""


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call,misc,unused-ignore]
    """Notes operators, and the kernel calls of compiled pieces.

    Everything also runs: a CPU has no way not to. ``steps``: what a replay does. A step's results
    lie where the capture's did.
    """

    supports_higher_order_operators = True  # they come here, to be refused by name

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self._arena = arena

    def start(self) -> None:
        """Begin to see this thread's operators."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """See no more."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    # Operators ------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and note it unless it only allocates or makes views."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            raise DependsOnValues(
                f"{func} runs functions of its own, which are no fixed list of calls: take "
                f'compiler="inductor", or add "higher_order::{func}" to splitting_ops'
            )
        if _depends_on_values(func, args, kwargs):
            raise DependsOnValues(f"what {func} returns, or its size, depends on values")
        if func.namespace == "_c10d_functional":  # waits for what is there, or wraps it
            return func(*args, **kwargs)
        if changes_itself(func):
            return _reshaped(func, args, kwargs)
        memory = {_memory(t) for t in _tensors((args, kwargs))}
        with without_modes():
            # Sizes and strides as they are now, whatever becomes of the tensor objects.
            fixed_args, fixed_kwargs = pytree.tree_map_only(torch.Tensor, _fixed, (args, kwargs))
        made = func(*args, **kwargs)
        if {_memory(t) for t in _tensors((args, kwargs))} != memory:  # an operator without a tag
            raise DependsOnValues(f"{func} gives a tensor other memory")
        if any(t.is_meta for t in _tensors(made)):
            return made  # a layout that was asked for: there is no data to repeat
        result = self._placed(made, memory)
        if not schema_of(func).name.startswith(_ALLOCATES):
            self._note(partial(func, *fixed_args, **fixed_kwargs), memory, result, schema_of(func))
        return result

    def _placed(self, result: Any, memory: set[int]) -> Any:
        """``result``, its new memory in the arena, where other sizes have theirs."""
        leaves, spec = pytree.tree_flatten(result)
        new = [_memory(t) for t in leaves if isinstance(t, torch.Tensor)]
        with without_modes():
            placed = [
                self._copied(leaf)
                if isinstance(leaf, torch.Tensor)
                and _memory(leaf) not in memory
                and new.count(_memory(leaf)) == 1
                and _is_plain(leaf)
                else leaf
                for leaf in leaves
            ]
        return pytree.tree_unflatten(placed, spec)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        place = self._arena.empty_strided(tensor.shape, tensor.stride(), tensor.dtype)
        return place.copy_(tensor)

    def _note(self, call: Step, memory: set[int], result: Any, schema: Any) -> None:
        fresh = [t for t in _tensors(result) if _memory(t) not in memory]
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        if fresh:
            self.steps.append(_repeat(call, result, memory))
        elif writes:
            self.steps.append(call)

    # Compiled pieces ------------------------------------------------------------------

    def piece(self, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run a compiled piece and note its kernel calls; the whole piece where that cannot be."""
        kept, noted = self.steps, []  # type: tuple[list[Step], list[Step]]
        try:
            if not isinstance(run, NativePiece):
                raise NotFlat("no native code is behind it")
            flat = flat_call(run.call, self._arena, noted)
        except NotFlat as reason:
            return self._whole(run, args, reason)

        def unseen(given: Any) -> Any:
            begun, kept = self._arena.mark(), frozenset[int]()
            try:
                with without_modes():
                    result = flat(given)
                kept = frozenset(map(_memory, _tensors(result)))
                return result
            finally:
                # Steps come one after the other: what stays inside serves the next piece.
                self._arena.take_back(begun, kept)

        # Operators of the wrappers around the generated code, copies to inputs, are noted too.
        self.steps = noted
        try:
            result = run.with_call(unseen)(*args)
        except NotFlat as reason:
            self.steps = kept
            return self._whole(run, args, reason)
        finally:
            self.steps = kept
        kept += noted
        return result

    def _whole(self, run: Callable[..., Any], args: Sequence[Any], reason: NotFlat) -> Any:
        logger.debug("a piece is replayed as a whole: %s", reason)
        with without_modes():
            result = run(*args)

        def call() -> Any:
            return run(*args)

        memory = {_memory(t) for t in _tensors(args)}
        result = self._placed(result, memory)
        self.steps.append(_repeat(call, result, memory))
        return result


def _repeat(call: Step, result: Any, memory: set[int]) -> Step:
    """``call``, its new results copied to where they were at the capture."""
    leaves = pytree.tree_leaves(result)
    with without_modes():
        targets = [
            _fixed(leaf) if isinstance(leaf, torch.Tensor) and _memory(leaf) not in memory else None
            for leaf in leaves
        ]

    def step() -> None:
        for target, leaf in zip(targets, pytree.tree_leaves(call()), strict=True):
            if target is not None:
                target.copy_(leaf)

    return step


def _fixed(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor object over the same memory."""
    return torch.ops.aten.alias.default(tensor)  # type: ignore[no-any-return]


def _reshaped(func: Any, args: Any, kwargs: Any) -> Any:
    """Change the sizes or strides of a tensor object: nothing that a replay repeats."""
    storage = args[0].untyped_storage()
    before = storage_key(storage), storage.nbytes(), storage.data_ptr()
    result = func(*args, **kwargs)
    storage = args[0].untyped_storage()
    if (storage_key(storage), storage.nbytes(), storage.data_ptr()) != before:
        raise DependsOnValues(f"{func} gives a tensor other memory")
    return result


def _tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return int(memory_key(tensor))


def _depends_on_values(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether values of the arguments decide what Python gets, or how large a result is."""
    if schema_of(func).name == "aten::index":  # sized by masks, not by whole numbers
        return any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
    if schema_of(func).name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return not _TELLS_PYTHON.isdisjoint(func.tags)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor can lie anywhere else, as it is."""
    ordinary = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not ordinary or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized:
        return False
    return all(
        step > 0 or size < 2 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
