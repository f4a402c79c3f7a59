"""Plain values and importable objects as JSON, and back. No pickle: a name, or nothing.

Numbers keep every bit, containers their kind. Classes and functions are saved as where they can be
imported from, after trying that it gives the same object.
"""

from __future__ import annotations

import base64
import enum
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import resolve_name

from piecewise_core.torch_compat.operators import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    overload_name,
    packet_name,
    schema_of,
)
from piecewise_core.torch_compat.targets import FUNCTION_MODULES

__all__ = ["NotSavable", "Values", "imported", "place_of"]

_MODULES = (
    "torch",
    "torch.nn.functional",
    *FUNCTION_MODULES,
    "torch.Tensor",
    "operator",
    "math",
    "builtins",
)
_TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


class NotSavable(Exception):
    """Something that JSON and an import cannot give back; the message names it."""


class Values:
    """Encodes and decodes.

    ``encode_more`` and ``decode_more``: for what only the user of this class knows; they return
    None where they do not know it either.
    """

    def __init__(
        self,
        encode_more: Callable[[Any], Any] = lambda value: None,
        decode_more: Callable[[str, Any], Any] = lambda tag, content: None,
    ) -> None:
        self._encode_more = encode_more
        self._decode_more = decode_more

    def encode(self, value: Any) -> Any:
        """``value`` as JSON: itself, or ``{tag: content}``. Raises NotSavable."""
        if value is None or type(value) in (bool, int, str):
            return value
        found = self._encode_more(value)
        if found is None:
            found = self._containers(value) or self._scalars(value) or _objects(value)
        if found is None:
            raise NotSavable(f"a {type(value).__module__}.{type(value).__qualname__}: {value!r}")
        return found

    def _containers(self, value: Any) -> dict[str, Any] | None:
        kind = type(value)
        if kind in (tuple, list, torch.Size, frozenset):
            tag = "Size" if kind is torch.Size else kind.__name__
            items = sorted(value, key=repr) if kind is frozenset else value
            return {tag: [self.encode(v) for v in items]}
        if isinstance(value, tuple) and hasattr(kind, "n_sequence_fields"):  # torch.return_types
            return {"sequence": [_reference(kind), [self.encode(v) for v in value]]}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"named": [_reference(kind), [self.encode(v) for v in value]]}
        if isinstance(value, dict):
            pairs = [[self.encode(k), self.encode(v)] for k, v in value.items()]
            return {"dict": pairs} if kind is dict else {"mapping": [_reference(kind), pairs]}
        if kind is slice:
            return {"slice": [self.encode(v) for v in (value.start, value.stop, value.step)]}
        return None

    def _scalars(self, value: Any) -> dict[str, Any] | None:
        if type(value) is float:
            return {"float": value.hex()}
        if isinstance(value, complex):
            return {"complex": [value.real.hex(), value.imag.hex()]}
        if type(value) is bytes:
            return {"bytes": base64.b64encode(value).decode()}
        if value is Ellipsis:
            return {"ellipsis": True}
        if isinstance(value, enum.Enum):
            # Traces hold what a member of an IntEnum or a StrEnum stands for.
            return {"enum": [_reference(type(value)), value.name, self.encode(value.value)]}
        if isinstance(value, _TORCH_CONSTANTS):
            return {"torch": str(value).partition(".")[2]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        return None

    def decode(self, data: Any) -> Any:
        """What was encoded. Raises ValueError for what no encoder writes."""
        if data is None or type(data) in (bool, int, str):
            return data
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError(f"no encoded value: {data!r:.80}")
        ((tag, content),) = data.items()
        found = self._decode_more(tag, content)
        if found is not None:
            return found
        reader = _READERS.get(tag)
        if reader is None:
            raise ValueError(f"unknown kind of value: {tag!r:.80}")
        return reader(self, content)

    def _all(self, content: Any) -> Iterator[Any]:
        return map(self.decode, content)


_READERS: dict[str, Callable[[Values, Any], Any]] = {
    "tuple": lambda v, c: tuple(v._all(c)),
    "list": lambda v, c: list(v._all(c)),
    "Size": lambda v, c: torch.Size(v._all(c)),
    "frozenset": lambda v, c: frozenset(v._all(c)),
    "named": lambda v, c: imported(c[0])(*v._all(c[1])),
    "sequence": lambda v, c: imported(c[0])(tuple(v._all(c[1]))),
    "dict": lambda v, c: {v.decode(k): v.decode(i) for k, i in c},
    "mapping": lambda v, c: imported(c[0])((v.decode(k), v.decode(i)) for k, i in c[1]),
    "slice": lambda v, c: slice(*v._all(c)),
    "float": lambda v, c: float.fromhex(c),
    "complex": lambda v, c: complex(*map(float.fromhex, c)),
    "bytes": lambda v, c: base64.b64decode(c, validate=True),
    "ellipsis": lambda v, c: ...,
    "enum": lambda v, c: _member(v, *c),
    "torch": lambda v, c: _constant(c),
    "device": lambda v, c: torch.device(c),
    "object": lambda v, c: imported(c),
    "op": lambda v, c: _overload(c),
    "packet": lambda v, c: _packet(c),
    "higher": lambda v, c: getattr(torch.ops.higher_order, c),
}


# Objects by name ----------------------------------------------------------------------


def _objects(value: Any) -> dict[str, Any] | None:
    if isinstance(value, OpOverload):
        return {"op": [schema_of(value).name, overload_name(value)]}
    if isinstance(value, OpOverloadPacket):
        return {"packet": packet_name(value)}
    if isinstance(value, HigherOrderOperator):
        name = value.name()  # type: ignore[no-untyped-call]
        return {"higher": name} if getattr(torch.ops.higher_order, name, None) is value else None
    if isinstance(value, type) or callable(value):
        return {"object": _reference(value)}
    return None


def _reference(value: Any) -> str:
    found = place_of(value)
    if found is None:
        name = getattr(value, "__qualname__", None) or repr(value)
        raise NotSavable(f"{getattr(value, '__module__', '')}.{name}, which cannot be imported")
    return found


def place_of(value: Any) -> str | None:
    """``"module:qualified.name"`` from which ``value`` itself is imported, or None."""
    for module, name in _candidates(value):
        found = f"{module}:{name}"
        try:
            if imported(found) is value:
                return found
        except (ImportError, AttributeError, ValueError):
            continue
    return None


def _candidates(value: Any) -> Iterator[tuple[str, str]]:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(name, str):
        return
    module = getattr(value, "__module__", None)
    local = "<" in name  # torch's max_pool2d, for one
    if isinstance(module, str) and not local:
        yield module, name
    if callable(value) and (known := resolve_name(value)):
        known = known.removesuffix(".__get__")
        yield "torch", known.removeprefix("torch.")
    if local:
        return
    last = name.rpartition(".")[2]
    for place in _MODULES:
        if place == "torch.Tensor":
            yield "torch", f"Tensor.{last}"
        else:
            yield place, last


def imported(reference: str) -> Any:
    """The object at ``"module:qualified.name"``. Raises ImportError, AttributeError, ValueError."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ValueError(f"no reference to an object: {reference!r:.80}")
    return pkgutil.resolve_name(reference)


def _member(values: Values, reference: str, name: str, *was: Any) -> enum.Enum:
    """The member of an enum, while it stands for what it did. Raises ValueError."""
    found: enum.Enum = imported(reference)[name]
    if [values.encode(found.value)] != [*was]:
        raise ValueError(f"{reference}.{name} stands for another value, or none was kept")
    return found


def _constant(name: str) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, _TORCH_CONSTANTS):
        raise ValueError(f"torch has no constant {name!r:.80}")
    return value


def _packet(name: str) -> Any:
    space, _, op = name.partition("::")
    return getattr(getattr(torch.ops, space), op)


def _overload(parts: Any) -> Any:
    name, overload = parts
    return getattr(_packet(name), overload or "default")
