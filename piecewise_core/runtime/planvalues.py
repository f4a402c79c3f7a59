"""Arguments and results of a plan's statements as source, and which local variables they use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

import torch

from piecewise_core.graph.sizes import SizeWriter
from piecewise_core.graph.split import Program

__all__ = ["PlanValues"]


class PlanValues:
    """Gives every value of a program its source.

    ``names``: objects that the source names. No name of ours can be one of the program's: locals
    are ``v_`` and a node's name, objects ``_k`` and a number; keywords and strings of the program
    are never read as names. ``used``: the locals that ``source`` and ``local`` met since ``begin``.
    """

    def __init__(self, program: Program) -> None:
        self.names: dict[str, Any] = {"math": math, "torch": torch}
        self.used: set[str] = set()
        self.size = SizeWriter(program.traced.symbols)
        self._text: dict[torch.fx.Node, str] = {}
        self._locals: set[torch.fx.Node] = set()
        self._given(program)

    def _given(self, program: Program) -> None:
        """The program's inputs and constants."""
        traced = program.traced
        placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
        for node, source in zip(placeholders, traced.inputs, strict=True):
            if source.tensor is not None:
                self._text[node] = f"t[{source.tensor}]"
            elif source.bound is not None:
                self._text[node] = f"b[{source.bound}]"
        for node in traced.graph.graph.nodes:
            if node.op == "get_attr":
                self._text[node] = self.name(_attribute(traced.graph, str(node.target)))

    def begin(self) -> None:
        """A statement begins: no local is used yet."""
        self.used = set()

    def name(self, value: Any) -> str:
        """The name of an object."""
        name = f"_k{len(self.names)}"
        self.names[name] = value
        return name

    def local(self, node: torch.fx.Node) -> str:
        """The local variable that holds a node's value from now on."""
        self._text[node] = f"v_{node.name}"
        self._locals.add(node)
        self.used.add(self._text[node])
        return self._text[node]

    def is_tensor(self, node: torch.fx.Node) -> bool:
        """Whether a local variable holds a node's value, and it is a tensor."""
        return node in self._locals and isinstance(node.meta.get("example_value"), torch.Tensor)

    def source(self, value: Any) -> str:
        """The source of one argument, with whatever nodes are nested in it."""
        if isinstance(value, torch.fx.Node):
            return self._node(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return f"{self.name(type(value))}({', '.join(map(self.source, value))})"
        if isinstance(value, (tuple, list)):
            items = "".join(f"{self.source(v)}, " for v in value)
            return f"({items})" if isinstance(value, tuple) else f"[{items}]"
        if isinstance(value, dict):
            items = ", ".join(f"{self.source(k)}: {self.source(v)}" for k, v in value.items())
            return f"{{{items}}}"
        if isinstance(value, slice):
            parts = ", ".join(map(self.source, (value.start, value.stop, value.step)))
            return f"{self.name(slice)}({parts})"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        return self.name(value)

    def _node(self, node: torch.fx.Node) -> str:
        if node not in self._text:
            return self.size(node.meta["example_value"])
        if node in self._locals:
            self.used.add(self._text[node])
        return self._text[node]

    def arguments(self, args: Any, kwargs: Mapping[str, Any]) -> str:
        """What stands between a call's parentheses."""
        plain = {k: v for k, v in kwargs.items() if k.isidentifier() and not iskeyword(k)}
        other = {k: v for k, v in kwargs.items() if k not in plain}  # aten calls one "from"
        found = [*map(self.source, args), *(f"{k}={self.source(v)}" for k, v in plain.items())]
        return ", ".join([*found, f"**{self.source(other)}"] if other else found)


def _attribute(module: torch.nn.Module, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found
