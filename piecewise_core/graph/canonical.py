"""The canonical form of a piece: what its compiled artifact depends on, and nothing else.

Names of values and symbols are erased. Kept are operations, constants, symbol relations, shapes,
strides, dtypes, devices, and which inputs share memory. Two pieces with equal forms share one
artifact.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.graph.memory import shared
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.split import Piece
from piecewise_core.graph.structure import is_plain
from piecewise_core.torch_compat.operators import OpOverload, OpOverloadPacket
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Form", "canonical_form"]


@dataclass(frozen=True)
class Form:
    """The canonical form of one piece.

    ``text``: one line per node; equal in every process, whatever index its devices have.
    ``devices``: those with an index ("cuda:1"), in the order in which ``text`` numbers them.
    ``local``: what in ``text`` only this process can tell from others of its kind.
    """

    text: str
    devices: tuple[str, ...] = ()
    local: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """A short digest; equal pieces of one process, on the same devices, have the same."""
        whole = "\n".join([*self.devices, self.text])
        return hashlib.sha256(whole.encode()).hexdigest()[:32]


def canonical_form(piece: Piece) -> Form:
    """The canonical form of a compilable piece."""
    if piece.graph is None:
        raise ValueError("a splitting piece has no canonical form")
    # A piece that must not be compiled shares nothing with one that is.
    as_written = [] if piece.hazard is None else ["as written"]
    seen = _Seen()
    text = "\n".join([*as_written, *_Writer(piece.graph, piece.inputs, seen).lines()])
    return Form(text, tuple(seen.devices), tuple(dict.fromkeys(seen.local)))


class _Seen:
    """What a form refers to outside of its text."""

    def __init__(self) -> None:
        self.devices: dict[str, int] = {}
        self.local: list[str] = []

    def device(self, device: torch.device) -> str:
        """The device with its index replaced by its place among those met."""
        if device.index is None:
            return str(device)
        return f"{device.type}#{self.devices.setdefault(str(device), len(self.devices))}"

    def only_here(self, what: str, thing: object) -> str:
        """Text for something that has no value to compare: it is shared only with itself."""
        self.local.append(what)
        return f"{what}@{id(thing)}"


class _Writer:
    def __init__(
        self, module: torch.fx.GraphModule, inputs: Sequence[torch.fx.Node], seen: _Seen
    ) -> None:
        self._module = module
        self._seen = seen
        self._number: dict[torch.fx.Node, int] = {}
        self._symbols: dict[str, str] = {}
        self._memory: dict[int, int] = {}
        self._shared = shared(inputs)

    def lines(self) -> list[str]:
        found = []
        for node in self._module.graph.nodes:
            self._number[node] = len(self._number)
            found.append(self._line(node))
        return found

    def _line(self, node: torch.fx.Node) -> str:
        if node.op == "placeholder":
            return f"in {self._value(node.meta.get('example_value'))}"
        if node.op == "output":
            return f"out {self._arg(node.args)}"
        if node.op == "get_attr":
            return f"attr {self._attribute(str(node.target))}"
        target = node.target if node.op == "call_method" else self._target(node.target)
        kwargs = {k: node.kwargs[k] for k in sorted(node.kwargs)}
        return f"{node.op} {target} {self._arg(node.args)} {self._arg(kwargs)}"

    def _attribute(self, target: str) -> str:
        found = operator.attrgetter(target)(self._module)
        if isinstance(found, torch.fx.GraphModule):
            return "{" + "\n".join(_Writer(found, (), self._seen).lines()) + "}"
        return self._seen.only_here(type(found).__qualname__, found)

    def _value(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            memory, number = memory_key(value), ""
            if memory in self._shared:
                number = f" mem{self._memory.setdefault(memory, len(self._memory))}"
            return (
                f"{value.dtype} {self._seen.device(value.device)} {self._sizes(value.shape)} "
                f"{self._sizes(value.stride())} +{self._sizes((value.storage_offset(),))}"
                f"{' conj' if value.is_conj() else ''}{' neg' if value.is_neg() else ''}{number}"
            )
        if value is None:
            return "unused size"
        if isinstance(value, (torch.SymInt, int)):
            return f"size {self._sizes((value,))}"
        if not is_plain(value) or isinstance(value, type):
            self._seen.local.append(type(value).__qualname__)
        return f"{type(value).__qualname__} {value!r}"

    def _sizes(self, sizes: Sequence[Any]) -> str:
        return "[" + ", ".join(self._size(expression(s)) for s in sizes) + "]"

    def _size(self, found: Any) -> str:
        if not isinstance(found, sympy.Basic):
            return str(found)
        rename = {
            s: sympy.Symbol(self._symbols.setdefault(str(s), f"d{len(self._symbols)}"))
            for s in sorted(found.free_symbols, key=str)
        }
        return str(found.xreplace(rename))

    def _arg(self, arg: Any) -> str:
        if isinstance(arg, torch.fx.Node):
            return f"%{self._number[arg]}"
        if isinstance(arg, (tuple, list)):
            return f"{type(arg).__name__}({', '.join(self._arg(a) for a in arg)})"
        if isinstance(arg, dict):
            return f"{{{', '.join(f'{k}={self._arg(v)}' for k, v in arg.items())}}}"
        if isinstance(arg, slice):
            return f"slice({self._arg(arg.start)}, {self._arg(arg.stop)}, {self._arg(arg.step)})"
        return self._constant(arg)

    def _constant(self, value: Any) -> str:
        if isinstance(value, float):
            return value.hex()
        if value is None or isinstance(value, (bool, int, complex, str, bytes, type(Ellipsis))):
            return repr(value)
        if isinstance(value, enum.Enum) and is_plain(value.value):
            return f"{type(value).__qualname__}.{value.name}={value.value!r}"
        if isinstance(value, torch.device):
            return self._seen.device(value)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value)
        return self._seen.only_here(type(value).__qualname__, value)

    def _target(self, target: Any) -> str:
        if isinstance(target, (OpOverload, OpOverloadPacket)):
            return str(target)
        module = str(getattr(target, "__module__", None))
        name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None)
        known = module in ("_operator", "builtins") or module.split(".")[0] == "torch"
        if name and (known or target is getattr(operator, str(name), None)):
            return f"{module}.{name}"
        return self._seen.only_here(f"{module}.{name}", target)
