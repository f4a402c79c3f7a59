"""A range plan: one generated function that runs a program's pieces in order.

    def run(t, b, s0):
     v_linear, v_mask = _piece0(s0, t[0], b[0], b[1])
     v_attn = _op1(v_linear, attn_mask=v_mask)
     return (v_attn, )

``t``: the call's flat tensors. ``b``: bound tensors. ``s0``: sizes. The source is written once
per region; a plan is that source over one target's compiled pieces.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch

from piecewise_core.errors import OpContractBroken
from piecewise_core.graph.memory import values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.segments import is_item
from piecewise_core.graph.sizes import SizeWriter
from piecewise_core.graph.split import Piece, Program

__all__ = ["Plan", "PlanCode"]

Plan = Callable[..., tuple[Any, ...]]
"""``run(tensors, bound, *sizes) -> graph outputs``."""


class PlanCode:
    """The source of one program's plans.

    ``plan(runnables)`` makes the plan of one target. With ``check`` it also compares what each
    splitting op returned with what its fake kernel promised.
    """

    def __init__(self, program: Program) -> None:
        writer = _Writer(program)
        self.source = writer.source(check=False)
        self.checked_source = writer.source(check=True)
        self._names = writer.names
        self._code = compile(self.source, "<piecewise plan>", "exec")
        self._checked: CodeType | None = None

    def plan(self, runnables: Sequence[Callable[..., Any]], *, check: bool = False) -> Plan:
        """The plan over ``runnables``, one per compilable piece in order."""
        names = {**self._names, **{f"_piece{i}": run for i, run in enumerate(runnables)}}
        if check and self._checked is None:
            self._checked = compile(self.checked_source, "<piecewise checked plan>", "exec")
        exec(self._checked if check and self._checked else self._code, names)
        run: Plan = names["run"]
        return run


class _Writer:
    def __init__(self, program: Program) -> None:
        self._program = program
        self.names: dict[str, Any] = {"math": __import__("math")}
        self._size = SizeWriter(program.traced.symbols)
        self._text: dict[torch.fx.Node, str] = {}
        self._dims: list[str] = []
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

    def source(self, *, check: bool) -> str:
        self._dims = [f"s{i}" for i in range(len(self._program.traced.box.ranges))]
        lines = [f"def run({', '.join(['t', 'b', *self._dims])}):"]
        place = 0
        for piece in self._program.pieces:
            if piece.splitting:
                lines += [f" {line}" for line in self._splitting(piece, check)]
            else:
                lines.append(f" {self._call(piece, place)}")
                place += 1
        results = "".join(f"{self._value(v)}, " for v in self._program.values)
        lines.append(f" return ({results})")
        return "\n".join(lines)

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
            if check:
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
        if node.op == "call_method":
            receiver, *rest = arguments
            return f"{receiver}.{node.target}({', '.join([*rest, *keywords])})"
        if node.op == "call_module":
            target: Any = self._program.traced.graph.get_submodule(str(node.target))
        else:
            target = node.target
        if target is operator.getitem:
            return f"{arguments[0]}[{arguments[1]}]"
        return f"{self._name(target)}({', '.join([*arguments, *keywords])})"

    def _check(self, node: torch.fx.Node, piece: Piece) -> str:
        promised = []
        for value in values(node.meta.get("example_value")):
            if isinstance(value, torch.Tensor):
                shape = self._size(tuple(value.shape))
                stride = self._size(value.stride())
                promised.append(f"({self._name(value.dtype)}, {shape}, {stride})")
        checker = self._name(_OpCheck(op_name(node), source_of(node), piece.index))
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


class _OpCheck:
    """Compares an operator's results with what its fake kernel promised."""

    def __init__(self, op: str, source: str, piece: int) -> None:
        self._op = op
        self._source = source
        self._piece = piece

    def __call__(self, result: Any, promised: Sequence[tuple[Any, Any, Any]]) -> None:
        """Raise OpContractBroken when dtype, shape or strides differ."""
        tensors = [v for v in values(result) if isinstance(v, torch.Tensor)]
        if len(tensors) != len(promised):
            self._refuse(f"{len(promised)} tensors", f"{len(tensors)}")
        for tensor, (dtype, shape, stride) in zip(tensors, promised, strict=True):
            if tensor.dtype is not dtype or tuple(tensor.shape) != tuple(shape):
                self._refuse(f"{dtype} {shape}", f"{tensor.dtype} {tuple(tensor.shape)}")
            matters = [i for i, size in enumerate(shape) if size > 1]
            if tensor.numel() and any(tensor.stride(i) != stride[i] for i in matters):
                self._refuse(f"strides {stride}", f"{tensor.stride()}")

    def _refuse(self, promised: str, got: str) -> None:
        raise OpContractBroken(
            f"splitting op {self._op} (piece {self._piece}{', ' + self._source if self._source else ''}) "
            f"returned {got} where its fake kernel promises {promised}; correct its "
            "register_fake, or return .contiguous()"
        )
