"""Modes that tell a recorder what runs: torch functions, and the operators behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from piecewise_core.capture.calls import ValueRead, tensors
from piecewise_core.capture.collectives import waited_for, without_handles
from piecewise_core.capture.hostdata import Call, on_host
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.composite import parts_of_conversion
from piecewise_core.graph.wrappers import is_wrapper
from piecewise_core.torch_compat.dispatcher import (
    TorchDispatchMode,
    count_dispatch_modes,
    mode_stack,
    without_modes,
)
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.operators import HigherOrderOperator, schema_name

__all__ = ["DataInSteps", "Functions", "Operators", "Watcher", "being_watched"]

_READS = (
    *("item", "tolist", "numpy", "__array__", "__dlpack__"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__"),
    *("__repr__", "__format__", "__reduce_ex__"),
)
"""Tensor methods that give Python a value: it would be fixed at capture."""

_OF_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
"""Functions that read the tensors in a list that they are given, unseen by any dispatch mode."""


class Watcher(Protocol):
    """Who is told. ``busy``: whether a splitting op is running, into which nobody looks.

    ``device_type``: of what is captured.
    """

    device_type: str

    @property
    def busy(self) -> bool: ...

    def is_splitting(self, op: str, target: Any, args: Any, kwargs: Any) -> bool:
        """Whether a function, method or operator ends a capture."""

    def asked(self, fn: Any, args: Any) -> None:
        """A torch function, method or property is called."""

    def may_be_read(self, tensor: Any) -> bool:
        """Whether Python may have a tensor's value."""

    def split_at_function(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a splitting torch function."""

    def split_at(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a splitting operator."""

    def inside(self, fn: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator within a splitting op."""

    def before(self, fn: Any, args: Any, kwargs: Any) -> Call:
        """An ordinary operator is about to run; returns what runs in its place."""

    def looked_into(self, fn: Any) -> Any:
        """What runs for an operator: itself, or what also looks at what it is made of."""

    def saw(self, fn: Any, args: Any, kwargs: Any, result: Any) -> None:
        """It ran."""


class Functions(TorchFunctionMode):
    """Sees torch functions and methods of tensors; raises CaptureFailed where Python is given a
    tensor's value.
    """

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not self._watcher.busy:
            self._watcher.asked(func, args)
            method = getattr(torch.Tensor, name, None) is func
            if method and name in _READS and not self._watcher.may_be_read(args[0]):
                raise ValueRead(f"Tensor.{name}()")
            if func in _OF_DATA and not all(map(self._watcher.may_be_read, _listed(args, kwargs))):
                raise ValueRead(f"a tensor in the list that {name}() is given")
            op, target = ("call_method", name) if method else ("call_function", func)
            if self._watcher.is_splitting(op, target, args, kwargs):
                args, kwargs = without_handles((args, kwargs))
                return self._watcher.split_at_function(func, args, kwargs)
            if isinstance(func, HigherOrderOperator):
                raise CaptureFailed(_decides(func))
            in_steps = on_host(func, args, kwargs)
            if in_steps is not None:
                return in_steps()
        return func(*args, **kwargs)


def _listed(args: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors in lists among arguments."""
    given = [*args, *kwargs.values()]
    return tensors([each for each in given if type(each) in (list, tuple)])


def _decides(operator: Any) -> str:
    name = f"higher_order::{operator.name()}"
    return (
        f"{name} runs functions of its own, on conditions that may change from call to call; add "
        f'"{name}" to splitting_ops, or use pw.compile'
    )


class DataInSteps(TorchFunctionMode):
    """Brings Python data to a device as a recording does, and changes nothing else."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        in_steps = on_host(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if in_steps is None else in_steps()


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whole operators."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watcher = watcher

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = without_handles((args, kwargs or {}))
        given = tensors([*args, *kwargs.values()])
        if any(map(is_wrapper, given)):
            return NotImplemented  # its class says what runs
        if any(map(self._has_no_data, given)):
            with without_modes():  # asked about a layout: a DTensor does, for each new size
                return func(*args, **kwargs)
        if schema_name(func) == "_c10d_functional::_wrap_tensor_autograd":
            # It only makes a tensor of the kind that waits when it is first used.
            with without_modes():
                return func(*args, **kwargs)
        if self._watcher.busy:
            return self._watcher.inside(func, args, kwargs)
        if self._watcher.is_splitting("call_function", func, args, kwargs):
            return self._watcher.split_at(func, args, kwargs)
        parts = parts_of_conversion(func)
        if parts is not None:
            with self:  # so that the copy within is seen, which may go to a device
                return parts(*args, **kwargs)
        func, args, kwargs = self._watcher.before(func, args, kwargs)
        result = waited_for(func, self._watcher.looked_into(func)(*args, **kwargs))
        self._watcher.saw(func, args, kwargs, result)
        return result

    def _has_no_data(self, tensor: torch.Tensor) -> bool:
        other = tensor.is_meta and self._watcher.device_type != "meta"
        return other or isinstance(tensor, FakeTensor)

    @contextmanager
    def left(self) -> Iterator[None]:
        """Step out of it: a driver may keep a mode of its own beneath it."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]


def being_watched() -> bool:
    """Whether this thread's operators are recorded: what does not pass the dispatcher is lost."""
    if not count_dispatch_modes():
        return False
    return any(isinstance(mode, Operators) for mode in mode_stack())
