"""Values as messages show them: type, shape, a short beginning, never a user's data."""

from __future__ import annotations

import enum
import inspect
import itertools
from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf

__all__ = ["cut_short", "keys_text", "shown", "shown_form", "typed"]

_TEXT, _BEGINNING = 40, 20
"""Characters that are shown of a text as a whole, and of a longer one."""

_ITEMS = 3
_KEYS = 8
_ARGUMENTS = 12
_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)


def shown(value: Any) -> str:
    """``value`` in a few words; its own ``repr`` is never asked."""
    if value is None or value is ... or type(value) in (bool, float, complex):
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, int):
        return str(int(value)) if value.bit_length() <= 64 else f"int of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return _text(value)
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, _PLAIN):
        return str(value)
    if isinstance(value, slice):
        return f"slice({shown(value.start)}, {shown(value.stop)}, {shown(value.step)})"
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return _container(value)
    if inspect.isclass(value):
        return f"class {value.__qualname__}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"function {value.__qualname__}"
    return f"{type(value).__qualname__} object"


def typed(value: Any) -> str:
    """``shown`` with the type in front where it does not say so itself: ``int 3``."""
    plain = type(value) in (bool, int, float, complex, str, bytes, type(None))
    text = shown(value)
    kind = type(value).__name__
    return f"{kind} {text}" if plain and not text.startswith(kind) else text


def _tensor(value: torch.Tensor) -> str:
    """A tensor by dtype, shape and device."""
    kind = "tensor" if type(value) is torch.Tensor else type(value).__name__
    if value.is_nested:
        return f"nested {kind} of {value.dtype}"
    where = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{kind} of {value.dtype} and shape {tuple(value.shape)}{where}"


def _text(value: str | bytes) -> str:
    kind, plain = (str, str(value)) if isinstance(value, str) else (bytes, bytes(value))
    if len(plain) <= _TEXT:
        return repr(plain)
    return f"{kind.__name__} of length {len(plain)} that begins {plain[:_BEGINNING]!r}"


def _container(value: Any) -> str:
    kind = type(value).__name__
    items = list(itertools.islice(value.items() if isinstance(value, dict) else value, _ITEMS))
    if isinstance(value, dict):
        items = [key for key, _ in items]
        kind += " with keys" if items else ""
    listed = ", ".join(_inner(item) for item in items)
    more = f", ... ({len(value)} in all)" if len(value) > _ITEMS else ""
    return f"{kind} [{listed}{more}]"


def _inner(item: Any) -> str:
    """An item of a container: a container in it by type and length only."""
    if isinstance(item, (list, tuple, set, frozenset, dict)):
        return f"{type(item).__name__} of {len(item)}"
    return shown(item)


def keys_text(keys: Iterable[Any]) -> str:
    """The keys of a mapping, the first of them where there are many."""
    found = list(keys)
    listed = ", ".join(shown(key) for key in found[:_KEYS])
    return f"[{listed}{f', ... ({len(found)} in all)' if len(found) > _KEYS else ''}]"


def cut_short(text: str, longest: int) -> str:
    """``text``, what is in the middle of a long one left out: somebody else's message, say."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... ({len(text)} characters in all) ... {text[-half:]}"


def shown_form(structure: Structure) -> str:
    """A form of calls: ``x: float32 [rows, 4], flag=True``."""
    parts = [
        part
        for name, node in structure.arguments.items()
        for part in _argument(node, structure.signature.parameters[name].kind.name)
    ]
    more = f", and {len(parts) - _ARGUMENTS} more" if len(parts) > _ARGUMENTS else ""
    return (", ".join(parts[:_ARGUMENTS]) or "no arguments") + more


def _argument(node: Node, kind: str) -> Iterable[str]:
    if isinstance(node, Container) and kind.startswith("VAR"):
        # Whether an argument was given by place or by keyword is a part of the form.
        given = "" if kind == "VAR_KEYWORD" else " by place"
        return [f"{_node(child)}{given}" for child in node.children]
    return [_node(node)]


def _node(node: Node) -> str:
    if isinstance(node, TensorLeaf):
        sizes = (node.dims[i].name if i in node.dims else str(n) for i, n in enumerate(node.sizes))
        dtype = str(node.dtype).removeprefix("torch.")
        return f"{node.path}: {dtype} [{', '.join(sizes)}]"
    if isinstance(node, Constant):
        return f"{node.path}={shown(node.value)}"
    if len(node.children) > _ITEMS:
        return f"{node.path}: {node.kind.__name__} of {len(node.children)}"
    inner = ", ".join(map(_node, node.children))
    return f"{node.path}: {node.kind.__name__} ({inner})"
