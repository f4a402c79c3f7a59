"""A traced graph to JSON: its nodes, and of each value its sizes, layout and memory.

Sizes are saved as Python source over ``s0``, ``s1``, ..., one per dim. Constant tensors that the
trace made lie beside the JSON.
"""

from __future__ import annotations

import io
import operator
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
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["GraphWriter", "constants_to_bytes"]

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


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
            raise NotSavable(f"sizes that data decides: {why_varying(node)}")
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
        held = operator.attrgetter(target)(module)
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
