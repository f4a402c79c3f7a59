"""A traced graph as JSON: its nodes, and of each value its sizes, layout and memory.

Sizes are saved as Python source over ``s0``, ``s1``, ..., one per dim, and come back as symbols of
a new ShapeEnv; tensors come back fake, sharing memory as they did. Constant tensors that the trace
made lie beside the JSON.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from piecewise_core.errors import TraceFailed
from piecewise_core.graph.memory import values
from piecewise_core.graph.names import source_of
from piecewise_core.graph.savable import NotSavable, Values
from piecewise_core.graph.sizes import SizeWriter
from piecewise_core.graph.varying import varies, why_varying
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.fakes import FakeTensor, FakeTensorMode
from piecewise_core.torch_compat.storages import memory_key, negated

__all__ = ["GraphReader", "GraphWriter", "constants_from_bytes", "constants_to_bytes"]

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Math:
    """``math`` over symbols: what torch has its own function for, and the rest as it is."""

    sqrt = staticmethod(torch.sym_sqrt)

    def __getattr__(self, name: str) -> Any:
        return getattr(math, name)


_ARITHMETIC: Mapping[str, Any] = {
    "abs": abs,
    "float": torch.sym_float,
    "int": torch.sym_int,
    "math": _Math(),
    "max": torch.sym_max,
    "min": torch.sym_min,
    "round": round,
    "torch": torch,
}
"""What the source of a size may call; none of it adds a guard."""


class GraphWriter:
    """Writes graphs over one trace's symbols. ``tensors``: the constants met, in order."""

    def __init__(self, symbols: Mapping[sympy.Symbol, int]) -> None:
        self._size = SizeWriter(symbols)
        self._values = Values(encode_more=self._special)
        self._memory: dict[int, int] = {}
        self.tensors: list[torch.Tensor] = []

    def graph(self, module: fx.GraphModule) -> list[Any]:
        """One entry per node. Raises NotSavable."""
        return [self._node(module, node) for node in module.graph.nodes]

    def value(self, value: Any) -> Any:
        """An argument, size or plain value. Raises NotSavable."""
        return self._values.encode(value)

    def _node(self, module: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
        if varies(node):
            raise NotSavable(why_varying(node))
        found = {
            "op": node.op,
            "name": node.name,
            "target": self._target(module, node),
            "args": self.value(node.args),
            "kwargs": self.value(node.kwargs),
            "value": self._meaning(node.meta.get("example_value")),
            "source": source_of(node) or None,
        }
        return {k: v for k, v in found.items() if v is not None}

    def _target(self, module: fx.GraphModule, node: fx.Node) -> Any:
        if node.op == "call_function":
            return self.value(node.target)
        if node.op == "get_attr":
            return self._attribute(module, str(node.target))
        if node.op == "call_module":
            raise NotSavable(f"a call of module {node.target}, which is no traced code")
        return str(node.target)

    def _attribute(self, module: fx.GraphModule, target: str) -> Any:
        held: Any = module
        for part in target.split("."):
            held = getattr(held, part)
        if isinstance(held, fx.GraphModule):
            return {"name": target, "graph": self.graph(held)}
        if isinstance(held, torch.Tensor) and not isinstance(held, FakeTensor):
            self.tensors.append(held.detach())
            where = str(held.device)
            return {"name": target, "tensor": len(self.tensors) - 1, "device": where}
        raise NotSavable(f"attribute {target}, a {type(held).__qualname__}")

    def _special(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, _SYMBOLIC):
            return {"size": self.source(value)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._layout(value)}
        if isinstance(value, fx.immutable_collections.immutable_list):
            return {"list": [self.value(v) for v in value]}
        if isinstance(value, fx.immutable_collections.immutable_dict):
            return {"dict": [[self.value(k), self.value(v)] for k, v in value.items()]}
        return None

    def source(self, value: Any) -> str:
        """A size as Python source. Raises NotSavable."""
        try:
            return self._size(value)
        except TraceFailed as error:
            raise NotSavable(f"a size that depends on data: {error}") from error

    def _meaning(self, value: Any) -> Any:
        """What is known of a node's value; None for what nobody asks about."""
        try:
            return self.value(value)
        except NotSavable:
            if any(isinstance(v, torch.Tensor) for v in values(value)):
                raise
            return None

    def _layout(self, value: torch.Tensor) -> dict[str, Any]:
        if functorch.is_functorch_wrapped_tensor(value):
            raise NotSavable("a value inside torch.vmap or torch.func.grad")
        memory = memory_key(value)
        return {
            "dtype": str(value.dtype).partition(".")[2],
            "device": str(value.device),
            "shape": [self.source(s) for s in value.shape],
            "stride": [self.source(s) for s in value.stride()],
            "offset": self.source(value.storage_offset()),
            "memory": self._memory.setdefault(memory, len(self._memory)),
            "conj": value.is_conj(),
            "neg": value.is_neg(),
        }


def constants_to_bytes(tensors: Sequence[torch.Tensor]) -> bytes:
    """Constant tensors, on the CPU."""
    buffer = io.BytesIO()
    torch.save([t.cpu() for t in tensors], buffer)
    return buffer.getvalue()


def constants_from_bytes(data: bytes) -> list[torch.Tensor]:
    """The constant tensors; the reader takes nothing but tensors."""
    found: list[torch.Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return found


class GraphReader:
    """Reads graphs over new symbols.

    ``sizes``: one SymInt or int per dim. ``mode``: the fake mode of the values. ``tensors``: the
    constants. ``device``: where tensors lie now, whatever index they were saved with.
    """

    def __init__(
        self,
        sizes: Sequence[Any],
        mode: FakeTensorMode,
        tensors: Sequence[torch.Tensor],
        device: torch.device | None,
    ) -> None:
        self._names = {**_ARITHMETIC, **{f"s{i}": s for i, s in enumerate(sizes)}}
        self._mode = mode
        self._tensors = tensors
        self._device = device
        self._bases: dict[int, torch.Tensor] = {}
        self._numbers: dict[str, Any] = {}

    def graph(self, nodes: Sequence[Mapping[str, Any]]) -> fx.GraphModule:
        """The graph. Raises ValueError, KeyError, AttributeError and what imports raise."""
        graph = fx.Graph()
        made: dict[str, fx.Node] = {}
        root: dict[str, Any] = {}

        def more(tag: str, content: Any) -> Any:
            return made[content] if tag == "node" else self._special(tag, content)

        values = Values(decode_more=more)
        for node in nodes:
            target = node["target"]
            if node["op"] == "call_function":
                target = values.decode(target)
            elif node["op"] == "get_attr":
                target = self._attribute(root, target)
            args, kwargs = values.decode(node["args"]), values.decode(node["kwargs"])
            new = graph.create_node(node["op"], target, args, kwargs, node["name"])
            made[node["name"]] = new
            if "value" in node:
                new.meta["example_value"] = values.decode(node["value"])
            if "source" in node:
                new.meta["stack_trace"] = _frame(node["source"])
        module = torch.nn.Module()
        for name, held in root.items():
            _set(module, name, held)
        return fx.GraphModule(module, graph)

    def value(self, data: Any) -> Any:
        """An argument, size or plain value."""
        return Values(decode_more=self._special).decode(data)

    def _attribute(self, root: dict[str, Any], saved: Mapping[str, Any]) -> str:
        name = str(saved["name"])
        if name not in root:
            root[name] = self.graph(saved["graph"]) if "graph" in saved else self._tensor(saved)
        return name

    def _tensor(self, saved: Mapping[str, Any]) -> torch.Tensor:
        """A constant where it was: a number on the CPU stays there, whatever the model is on."""
        device = self._placed(torch.device(saved["device"]))
        held: torch.Tensor = self._tensors[saved["tensor"]]
        return held.to(device)

    def _special(self, tag: str, content: Any) -> Any:
        if tag == "size":
            return self.number(content)
        if tag == "tensor":
            return self._fake(content)
        if tag == "device":
            return self._placed(torch.device(content))
        return None

    def number(self, source: str) -> Any:
        """A size from its source."""
        if source.isdecimal():
            return int(source)
        if source not in self._numbers:
            self._numbers[source] = eval(source, {"__builtins__": {}}, self._names)
        return self._numbers[source]

    def _placed(self, device: torch.device) -> torch.device:
        moved = self._device is not None and device.type == self._device.type
        return self._device if moved and self._device is not None else device

    def _fake(self, saved: Mapping[str, Any]) -> torch.Tensor:
        size = [self.number(s) for s in saved["shape"]]
        stride = [self.number(s) for s in saved["stride"]]
        dtype = getattr(torch, saved["dtype"])
        device = self._placed(torch.device(saved["device"]))
        with torch.inference_mode(False), torch.no_grad():
            base = self._bases.get(saved["memory"])
            if base is None:
                made = torch.empty_strided(size, stride, dtype=dtype, device="meta")
                self._bases[saved["memory"]] = made
            else:
                typed = base if base.dtype == dtype else base.view(dtype)
                made = typed.as_strided(size, stride, self.number(saved["offset"]))
            made = torch.conj(made) if saved["conj"] else made
            made = negated(made) if saved["neg"] else made
            # What the mode itself makes of a meta tensor, without going through its dispatch.
            return FakeTensor(self._mode, made, device)


def _frame(source: str) -> str:
    """A stack trace that ends at ``file:line``."""
    file, _, line = source.rpartition(":")
    return f'  File "{file}", line {line}, in traced code\n'


def _set(module: torch.nn.Module, name: str, held: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            setattr(module, part, torch.nn.Module())
        module = getattr(module, part)
    if isinstance(held, torch.Tensor):
        module.register_buffer(last, held)
    else:
        setattr(module, last, held)
