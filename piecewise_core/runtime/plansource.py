"""The source of a range plan: one function that runs a program's pieces in order."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import Any

import torch

from piecewise_core.graph.effects import is_view
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.segments import is_item
from piecewise_core.graph.sizes import SizeWriter
from piecewise_core.graph.split import Piece, Program
from piecewise_core.runtime.opcheck import OpCheck

__all__ = ["PlanSource"]


class PlanSource:
    """Writes the source of ``run(t, b, s0, ...)``.

    ``names``: what the source uses, ``_piece0``, ``_overlap`` and ``_written`` left out. ``ops``:
    the name that each operation of a splitting piece is called by, views left out.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.names: dict[str, Any] = {"math": math, "torch": torch}
        self.ops: dict[torch.fx.Node, str] = {}
        self._size = SizeWriter(program.traced.symbols)
        self._text: dict[torch.fx.Node, str] = {}
        self._dims = [f"s{i}" for i in range(len(program.traced.box.ranges))]
        self._bind_inputs()

    def _bind_inputs(self) -> None:
        traced = self._program.traced
        placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
        for node, source in zip(placeholders, traced.inputs, strict=True):
            if source.tensor is not None:
                self._text[node] = f"t[{source.tensor}]"
            elif source.bound is not None:
                self._text[node] = f"b[{source.bound}]"
        for node in traced.graph.graph.nodes:
            if node.op == "get_attr":
                self._text[node] = self._name(_attribute(traced.graph, str(node.target)))

    def text(self, *, check: bool, guarded: bool) -> str:
        """The source.

        ``check``: whether splitting ops' results are compared with their fake kernels' promises.
        ``guarded``: whether calls that ``_overlap(t, b)`` finds run ``_written`` instead.
        """
        parameters = ", ".join(["t", "b", *self._dims])
        lines: list[str] = []
        place = 0
        for piece in self._program.pieces:
            if piece.splitting:
                lines += self._splitting(piece, check)
            else:
                lines.append(self._call(piece, place))
                place += 1
        results = "".join(f"{self._value(v)}, " for v in self._program.values)
        guard = [f" if _overlap(t, b): return _written({parameters})"] if guarded else []
        body = [f" {line}" for line in _freeing([*lines, f"return ({results})"])]
        return "\n".join([f"def run({parameters}):", *guard, *body])

    def _call(self, piece: Piece, place: int) -> str:
        """The line that calls a compilable piece."""
        arguments = ", ".join([*self._dims, *(self._value(n) for n in piece.inputs)])
        call = f"_piece{place}({arguments})"
        if not piece.outputs:
            return call
        return f"{''.join(f'{self._local(n)}, ' for n in piece.outputs)}= {call}"

    def _splitting(self, piece: Piece, check: bool) -> list[str]:
        """The lines that run a splitting piece as written."""
        lines = []
        enter = [self._name(e) for e in (_Autocast(n.args) for n in piece.entered)]
        for node in piece.nodes:
            lines.append(f"{self._local(node)} = {self._as_written(node)}")
            if check and not storages(node) & self._program.reshaped:
                lines.append(self._check(node, piece))
            for user in node.users:
                if is_item(user):
                    lines.append(f"{self._local(user)} = {self._local(node)}[{user.args[1]}]")
        if not enter:
            return lines
        return [f"with {', '.join(f'{e}()' for e in enter)}:", *(f" {line}" for line in lines)]

    def _as_written(self, node: torch.fx.Node) -> str:
        arguments = [self._value(a) for a in node.args]
        keywords = [f"{k}={self._value(v)}" for k, v in node.kwargs.items()]
        if is_view(node) and node.op == "call_method":
            receiver, *rest = arguments
            return f"{receiver}.{node.target}({', '.join([*rest, *keywords])})"
        if is_view(node) and node.target is operator.getitem:
            return f"{arguments[0]}[{arguments[1]}]"
        return f"{self._op(node)}({', '.join([*arguments, *keywords])})"

    def _op(self, node: torch.fx.Node) -> str:
        """The name of what ``node`` calls."""
        target: Any = node.target
        if node.op == "call_method":
            target = getattr(torch.Tensor, str(node.target))
        elif node.op == "call_module":
            target = self._program.traced.graph.get_submodule(str(node.target))
        if is_view(node):
            return self._name(target)
        if node not in self.ops:
            self.ops[node] = self._name(target)
        return self.ops[node]

    def _check(self, node: torch.fx.Node, piece: Piece) -> str:
        promised = []
        for value in values(node.meta.get("example_value")):
            if isinstance(value, torch.Tensor):
                shape = self._size(tuple(value.shape))
                stride = self._size(value.stride())
                promised.append(f"({self._name(value.dtype)}, {shape}, {stride})")
        checker = self._name(OpCheck(op_name(node), source_of(node), piece.index))
        return f"{checker}({self._local(node)}, ({''.join(f'{p}, ' for p in promised)}))"

    def _local(self, node: torch.fx.Node) -> str:
        self._text[node] = f"v_{node.name}"
        return self._text[node]

    def _value(self, value: Any) -> str:
        """The source of one argument, with whatever nodes are nested in it."""
        if isinstance(value, torch.fx.Node):
            if value in self._text:
                return self._text[value]
            return self._size(value.meta["example_value"])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return f"{self._name(type(value))}({', '.join(map(self._value, value))})"
        if isinstance(value, (tuple, list)):
            items = "".join(f"{self._value(v)}, " for v in value)
            return f"({items})" if isinstance(value, tuple) else f"[{items}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k!r}: {self._value(v)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            parts = ", ".join(map(self._value, (value.start, value.stop, value.step)))
            return f"slice({parts})"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        return self._name(value)

    def _name(self, value: Any) -> str:
        name = f"_k{len(self.names)}"
        self.names[name] = value
        return name


def _freeing(lines: Iterable[str]) -> list[str]:
    """``lines``, with every local variable deleted behind its last use, as a model's own would be.

    A plan would otherwise hold every value between pieces until it returns.
    """
    freed: list[str] = []
    done: set[str] = set()
    for line in reversed(list(lines)):
        last = [v for v in dict.fromkeys(re.findall(r"\bv_\w+", line)) if v not in done]
        done.update(last)
        if last and not line.startswith("return"):
            indent = line[: len(line) - len(line.lstrip())]
            freed.append(f"{indent}del {', '.join(last)}")
        freed.append(line)
    return freed[::-1]


def _attribute(module: torch.nn.Module, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found


class _Autocast:
    """Opens again, around a splitting piece, the autocast region it was traced in."""

    def __init__(self, args: Any) -> None:
        self._args = args

    def __call__(self) -> torch.autocast:
        device_type, dtype, enabled, cache = self._args
        return torch.autocast(device_type, dtype, enabled, cache)
