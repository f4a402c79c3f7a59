"""What a recorded function asks of tensors besides values: calls may give another answer.

The function mode hears every method and property. Questions about layout are compared at later
calls; where an input lies in memory is another answer at every call, so it is refused.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch

from piecewise_core.capture.calls import ValueRead
from piecewise_core.capture.course import Course
from piecewise_core.capture.parts import is_all_of_memory, meets, refuse_part
from piecewise_core.errors import CaptureFailed
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.operators import schema_name
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Questions", "question"]

_STRIDES = frozenset({"as_strided", "dim_order", "is_contiguous", "stride"})
_GRADIENTS = frozenset({"grad", "grad_fn", "is_leaf", "requires_grad", "retains_grad"})
_ADDRESSES = frozenset({
    "_base", "_is_view", "_storage", "_typed_storage", "_version", "__cuda_array_interface__",
    "data_ptr", "storage", "storage_type", "untyped_storage",
})  # fmt: skip
_LIBRARIES = ("/torch/", "/triton/", "/piecewise_core/")
"""Whose code asks for addresses to hand them on: a kernel gets those that it is recorded with."""


def question(func: Any) -> str:
    """The name of a tensor's method or property; of other functions, theirs."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", ""))
    return str(name)


class Questions:
    """Notes what was asked in the run that ``course`` follows.

    ``strides``, ``offset``, ``gradients``, ``inference``: whether any tensor was asked for that;
    what is computed of an input lies as it does.
    """

    def __init__(self, course: Course) -> None:
        self._course = course
        self._asked: set[str] = set()
        self._parts: set[int] = set()

    @property
    def names(self) -> frozenset[str]:
        """The kinds of answers that a call must give alike, as a binder knows them."""
        kinds = {"stride": _STRIDES, "offset": {"storage_offset"}, "gradients": _GRADIENTS}
        kinds["inference"] = frozenset({"is_inference"})
        return frozenset(kind for kind, names in kinds.items() if names & self._asked)

    def asked(self, func: Any, args: Any) -> None:
        """``func`` is called. Raises CaptureFailed where the answer is another at every call."""
        name = question(func)
        if name == "__set__" and func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise CaptureFailed(
                "the function sets Tensor.data, which changes a tensor object and no memory: no "
                "replay does. Write to it in place (tensor.copy_(new)); such calls run as written"
            )
        self._asked.add(name)
        tensor = args[0] if args else None
        if name == "untyped_storage" and _is_pickled(sys._getframe(3)):
            raise ValueRead("a tensor that is pickled")
        if name not in _ADDRESSES or not isinstance(tensor, torch.Tensor):
            return
        frame = sys._getframe(3)  # beyond the recorder and its mode
        if self._course.is_given(tensor) and not _is_library(frame.f_code.co_filename):
            raise CaptureFailed(
                f"Tensor.{name} of an input is asked for at {frame.f_code.co_filename}:"
                f"{frame.f_lineno}: where an input lies in memory is another answer at every call, "
                "which a recording cannot give; such calls run as written"
            )

    def kept(self, result: Any, layouts: Sequence[Any]) -> None:
        """A splitting op gave ``result``; graphs read copies of the tensors with ``layouts``."""
        for leaf, layout in zip(pytree.tree_leaves(result), layouts, strict=True):
            if layout is not None and not is_all_of_memory(leaf):
                self._parts.add(memory_key(leaf))

    def reach(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operator is called. Raises CaptureFailed where it reaches what no copy has."""
        name = schema_name(func)
        if not name.startswith("aten::as_strided"):
            return
        names = ("self", "size", "stride", "storage_offset")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        tensor = given["self"]
        if memory_key(tensor) in self._parts:
            refuse_part(tensor)
        if not self._course.is_given(tensor):
            return
        offset = given.get("storage_offset")
        if offset is None:
            offset = tensor.storage_offset()
        else:
            self._asked.add("storage_offset")
        if not meets(self._course.sharing(tensor), given["size"], given["stride"], offset):
            raise CaptureFailed(
                "as_strided reaches memory beyond the input that it is given, which a recording "
                "has no copy of; pass the whole tensor, or such calls run as written"
            )


def _is_pickled(frame: FrameType | None) -> bool:
    """Whether a pickler asks for a tensor's memory, which it reads by no operator.

    Copies of the object alone keep the memory.
    """
    while frame is not None and _is_library(frame.f_code.co_filename):
        if frame.f_code.co_name == "__reduce_ex__":
            return frame.f_back is None or frame.f_back.f_code is not copy.copy.__code__
        frame = frame.f_back
    return False


def _is_library(file: str) -> bool:
    return any(name in file for name in _LIBRARIES)
