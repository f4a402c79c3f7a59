"""What tells a value from others that a trace would treat otherwise: as JSON, to be compared."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import pickle
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from enum import EnumMeta
from types import CodeType, MappingProxyType, ModuleType
from typing import Any

import torch

from piecewise_core.graph.codedigests import class_digest, code_digest, function_digest
from piecewise_core.graph.savable import NotSavable, Values, place_of
from piecewise_core.graph.structure import is_plain

__all__ = ["VALUES", "contents", "identity", "is_number", "tensor_facts"]

VALUES = Values()

_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_CONTAINERS = (list, dict, tuple, OrderedDict, deque, defaultdict, MappingProxyType, object)
_UNKNOWN = itertools.count()


def identity(value: Any) -> Any:
    """What tells ``value`` from others that a trace would treat otherwise."""
    if isinstance(value, torch.Tensor):
        return tensor_facts(value)
    if isinstance(value, ModuleType):
        return {"module": value.__name__}
    if isinstance(value, CodeType):
        return {"code": code_digest(value)}
    if is_plain(value) and not isinstance(value, type):
        try:
            return {"value": VALUES.encode(value)}
        except NotSavable:
            return {"value": repr(value)}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(map(repr, value))}
    kind = value if isinstance(value, type) else type(value)
    if kind is functools.partial and value is not kind:  # what it holds may have no name
        return {"partial": [contents(held) for held in (value.func, value.args, value.keywords)]}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        found: dict[str, Any] = {
            "object": place_of(value) or f"{value.__module__}:{value.__qualname__}"
        }
        if isinstance(value, EnumMeta):
            members: Mapping[str, Any] = value.__members__
            found["members"] = [[name, contents(m.value)] for name, m in members.items()]
        # Functions of one name may differ: lambdas, and what another function makes.
        code = function_digest(value) or class_digest(kind)
    else:
        found = {"type": f"{kind.__module__}:{kind.__qualname__}"}
        code = class_digest(kind)  # methods may have been replaced
        if _is_opaque(kind):
            found["held"] = _held(value)
    return {**found, "code": code} if code else found


def tensor_facts(tensor: torch.Tensor) -> dict[str, Any]:
    """Name -> answer, as JSON. Not its device's index, which changes from process to process."""
    kind = type(tensor)
    found: dict[str, Any] = {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "dtype": str(tensor.dtype).partition(".")[2],
        "device": tensor.device.type,
        "shape": [int(size) for size in tensor.shape],
    }
    if tensor.layout is torch.strided:
        found["stride"] = [int(step) for step in tensor.stride()]
        found["offset"] = int(tensor.storage_offset())
    else:
        found["layout"] = str(tensor.layout)
    asked = {
        "requires_grad": tensor.requires_grad,
        "computed": not tensor.is_leaf,
        "conjugate": tensor.is_conj(),
        "negative": tensor.is_neg(),
        "named": any(getattr(tensor, "names", ())),
        "grad": tensor.is_leaf and tensor.grad is not None,
        "index": tensor.device.index is not None,
    }
    found["is"] = [name for name, answer in asked.items() if answer]
    return found


def contents(value: Any) -> Any:
    """``identity``, of containers with all that is in them."""
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [contents(v) for v in value]}
    if isinstance(value, dict):
        return {type(value).__name__: [[contents(k), contents(v)] for k, v in value.items()]}
    return identity(value)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a scalar of numpy, which nobody can write to."""
    return any(c.__module__ == "numpy" and c.__name__ == "generic" for c in type(value).__mro__)


def _is_opaque(kind: type) -> bool:
    """Whether no attribute tells what an object holds: a compiled pattern, a date, a range."""
    of_python = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    return of_python and bool(kind.__flags__ & _IMMUTABLE) and kind not in _CONTAINERS


def _held(value: Any) -> str:
    """A digest of what it would be rebuilt from; of what cannot be, one that never comes again."""
    try:
        made = pickle.dumps(value, protocol=4)
    except Exception:  # a lock, an iterator
        return f"unknown {next(_UNKNOWN)} {os.urandom(8).hex()}"
    return hashlib.sha256(made).hexdigest()[:32]
