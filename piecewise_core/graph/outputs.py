"""How a call's result is rebuilt from graph outputs: read off once, then generated code.

Leaves may be graph tensors, sizes, inputs and parameters returned as they are, objects that
were passed in, and immutable constants; containers are dicts, of subclasses that change nothing
of how one is made too, lists, tuples, named tuples and dataclasses (a transformers ModelOutput is
one).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from piecewise_core.errors import UnsupportedOutput
from piecewise_core.graph.markers import (
    CountMarker,
    CountUsed,
    FloatMarker,
    SizeMarker,
    ViewMarker,
)
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.structure import is_plain

__all__ = ["rebuild_code"]


def rebuild_code(
    result: Any,
    outputs: Mapping[int, int],
    inputs: Mapping[int, int],
    bind: Callable[[torch.Tensor], int],
    objects: Sequence[Any],
) -> OutputCode:
    """Read off how ``result`` is made.

    ``outputs``, ``inputs``: id of a tensor -> its place among graph outputs and flat inputs.
    ``bind``: takes any other tensor, which the model holds, and returns its place among the bound
    ones. ``objects``: identity constants of the call. Raises UnsupportedOutput naming path and
    type.
    """
    writer = _Writer(outputs, inputs, bind, objects)
    text = writer.node(result, "output")
    return OutputCode.of(
        f"def rebuild(o, t, b):\n  return {text}",
        writer.names,
        uses_inputs=writer.uses_inputs,
        single=outputs.get(id(result)) if isinstance(result, torch.Tensor) else None,
        used=tuple(sorted(writer.used)),
        floats=tuple(sorted(writer.floats)),
    )


class _Writer:
    def __init__(
        self,
        outputs: Mapping[int, int],
        inputs: Mapping[int, int],
        bind: Callable[[torch.Tensor], int],
        objects: Sequence[Any],
    ) -> None:
        self._outputs = outputs
        self._inputs = inputs
        self._bind = bind
        self._objects = {id(o): o for o in objects}
        self.names: dict[str, Any] = {}
        self.used: set[int] = set()
        self.floats: set[int] = set()
        self.uses_inputs = False
        self._open: set[int] = set()

    def name(self, value: Any) -> str:
        name = f"_pw_k{len(self.names)}"
        self.names[name] = value
        return name

    def node(self, value: Any, path: str) -> str:
        """The expression that rebuilds ``value``."""
        if _counts(value):
            raise CountUsed(f"{path} is a number that the next call has another one for")
        if isinstance(value, SizeMarker):
            self.used |= set() if value.place is None else {value.place}
            return value.text
        if isinstance(value, FloatMarker):
            self.used.add(value.place)
            self.floats.add(value.place)
            return f"o[{value.place}]"
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if id(value) in self._objects or (is_plain(value) and not isinstance(value, torch.Size)):
            return self.name(value)
        if id(value) in self._open:
            raise UnsupportedOutput(f"{path} contains itself; return a plain container").having(
                path=path
            )
        self._open.add(id(value))
        text = self._container(value, path)
        self._open.discard(id(value))
        return text

    def _tensor(self, value: torch.Tensor) -> str:
        if id(value) in self._outputs:
            self.used.add(self._outputs[id(value)])
            return f"o[{self._outputs[id(value)]}]"
        if id(value) in self._inputs:
            self.uses_inputs = True
            return f"t[{self._inputs[id(value)]}]"
        if isinstance(value, ViewMarker):
            self.uses_inputs = True
            return value.text
        return f"b[{self._bind(value)}]"

    def _container(self, value: Any, path: str) -> str:
        kind = type(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, path)
        if isinstance(value, dict) and _is_rebuilt(value):
            return self._dict(value, path)
        of_torch = isinstance(value, tuple) and hasattr(kind, "n_sequence_fields")
        if kind in (list, tuple, torch.Size) or of_torch:
            items = "".join(f"{self.node(v, f'{path}[{i}]')}, " for i, v in enumerate(value))
            if kind is list:
                return f"[{items}]"
            return f"({items})" if kind is tuple else f"{self.name(kind)}(({items}))"
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = "".join(
                f"{self.node(v, f'{path}.{f}')}, "
                for f, v in zip(value._fields, value, strict=True)
            )
            return f"{self.name(kind)}({items})"
        raise self._refuse(value, path)

    def _dict(self, value: dict[Any, Any], path: str) -> str:
        items = ", ".join(
            f"{self._key(k, path)}: {self.node(v, f'{path}[{k!r}]')}" for k, v in value.items()
        )
        if type(value) is dict:
            return f"{{{items}}}"
        made = f"{self.name(value.default_factory)}, " if isinstance(value, defaultdict) else ""
        return f"{self.name(type(value))}({made}{{{items}}})"

    def _dataclass(self, value: Any, path: str) -> str:
        fields = [f for f in dataclasses.fields(value) if f.init and hasattr(value, f.name)]
        known = {f.name for f in dataclasses.fields(value)}
        extra = [n for n in getattr(value, "__dict__", {}) if n not in known and n[:1] != "_"]
        if extra or any(not f.init for f in dataclasses.fields(value)):
            raise UnsupportedOutput(
                f"{path} is a {type(value).__name__} that its own fields do not rebuild"
                f" ({', '.join(extra) or 'it has fields outside __init__'}); return a plain dict"
            ).having(path=path)
        items = ", ".join(
            f"{f.name}={self.node(getattr(value, f.name), f'{path}.{f.name}')}"
            for f in fields
            if not _is_default(f, getattr(value, f.name))
        )
        return f"{self.name(type(value))}({items})"

    def _key(self, key: Any, path: str) -> str:
        if not _is_key(key):
            kind = type(key).__qualname__
            why = f"{path} has a key of type {kind}; keys must be plain values, or tuples of such"
            raise UnsupportedOutput(why).having(path=path)
        return self.node(key, path)

    def _refuse(self, value: Any, path: str) -> UnsupportedOutput:
        kind = type(value)
        hint = "return tensors in dicts, lists, tuples or dataclasses"
        if "Cache" in kind.__name__:
            hint = (
                "a growing cache cannot be returned: pass use_cache=False, or pass a StaticCache "
                "in as an argument"
            )
        return UnsupportedOutput(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, which tracing would freeze; {hint}"
        ).having(path=path)


def _counts(value: Any) -> bool:
    parts = (value.start, value.stop, value.step) if isinstance(value, (slice, range)) else ()
    parts = tuple(value) if type(value) is frozenset else parts
    return isinstance(value, CountMarker) or any(map(_counts, parts))


def _is_rebuilt(value: dict[Any, Any]) -> bool:
    """Whether its class, given its entries, makes its like, and what it makes is no call's own."""
    kind = type(value)
    base = next(k for k in (defaultdict, OrderedDict, dict) if isinstance(value, k))
    if kind is not base:
        own = any(getattr(kind, name) is not getattr(base, name) for name in _OF_DICTS)
        if own or value.__reduce_ex__(2)[2]:  # attributes of its own
            return False
    factory = value.default_factory if isinstance(value, defaultdict) else None
    closed = getattr(factory, "__closure__", None) or getattr(factory, "__defaults__", None)
    return isinstance(factory, (type, FunctionType, type(None))) and not closed


_OF_DICTS = (
    *("__init__", "__new__", "__getitem__", "__iter__", "__len__", "__setitem__", "__reduce__"),
    *("__reduce_ex__", "items", "keys", "update", "values"),
)


def _is_key(value: Any) -> bool:
    return is_plain(value) or (type(value) is tuple and all(map(_is_key, value)))


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether leaving the field out of the call gives the same value."""
    return field.default is not dataclasses.MISSING and field.default is value and value is None
