"""A traced graph from JSON, over the symbols of a new ShapeEnv.

Tensors come back fake, sharing memory as they did; constant tensors as they were.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from piecewise_core.graph.savable import Values
from piecewise_core.torch_compat.fakes import FakeTensor, FakeTensorMode
from piecewise_core.torch_compat.modules import graph_module
from piecewise_core.torch_compat.storages import negated, resize_memory

__all__ = ["GraphReader", "constants_from_bytes"]


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
        self._nbytes: dict[Any, Any] = {}
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
        return graph_module(root, graph)

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
                made = self._bases[saved["memory"]] = self._memory(saved, size, stride, dtype)
            else:
                typed = base if base.dtype == dtype else base.view(dtype)
                made = typed.as_strided(size, stride, self.number(saved["offset"]))
            made = torch.conj(made) if saved["conj"] else made
            made = negated(made) if saved["neg"] else made
            # What the mode itself makes of a meta tensor, without going through its dispatch.
            return FakeTensor(self._mode, made, device)

    def _memory(
        self, saved: Mapping[str, Any], size: Sequence[Any], stride: Sequence[Any], dtype: Any
    ) -> torch.Tensor:
        """A tensor in memory of its own. How large that is in symbols takes torch long to say."""
        alike = (*saved["shape"], *saved["stride"], dtype)
        if alike in self._nbytes:
            empty = torch.empty(0, dtype=dtype, device="meta")
            resize_memory(empty, self._nbytes[alike])
            return empty.as_strided(size, stride, 0)
        made = torch.empty_strided(size, stride, dtype=dtype, device="meta")
        self._nbytes[alike] = made.untyped_storage().nbytes()
        return made


def _frame(source: str) -> str:
    """A stack trace that ends at ``file:line``."""
    file, _, line = source.rpartition(":")
    return f'  File "{file}", line {line}, in traced code\n'
