"""The source of a range plan: one function that runs a program's pieces in order."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.graph.contexts import functorch_units
from piecewise_core.graph.effects import addressed, is_view, written_by_layout
from piecewise_core.graph.memory import memory_of, storages, tensor_inputs, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.segments import is_item
from piecewise_core.graph.split import Piece, Program
from piecewise_core.runtime.laid import Laid, Promise
from piecewise_core.runtime.planlines import Line, freeing
from piecewise_core.runtime.planunits import Unit
from piecewise_core.runtime.planvalues import PlanValues

__all__ = ["PlanSource"]


class PlanSource:
    """Writes the source of ``run(t, b, s0, ...)``.

    ``names``: what the source uses, ``_piece0``, ``_overlap`` and ``_written`` left out. ``ops``:
    the name that each operation of a splitting piece is called by, views left out. ``laid``: by
    that name, what brings its results to the layout promised. ``whole``: names of those of whose
    results the program takes elements by where they lie. ``count``: called for each that is
    copied for it.
    """

    def __init__(self, program: Program, count: Callable[[], None] = lambda: None) -> None:
        self._program = program
        self._count = count
        self._told: set[str] = set()
        self._values = PlanValues(program)
        self.names = self._values.names
        self.laid: dict[str, Laid] = {}
        self.ops: dict[torch.fx.Node, str] = {}
        self._units: dict[torch.fx.Node, Unit] = {}
        # Where the layout decides what is computed, a copy in another one is no way out.
        self._decided = written_by_layout(program.traced.graph.graph)
        self._addressed, self._needed = addressed(program.traced.graph.graph)
        self.whole: set[str] = set()
        self._dims = [f"s{i}" for i in range(len(program.traced.box.ranges))]

    def text(self, *, check: bool, guarded: bool, stepwise: bool = False, laid: bool = True) -> str:
        """The source.

        ``check``: whether splitting ops' results are compared with their fake kernels' promises in
        dtype and shape too. ``laid``: whether they are brought to the layout promised.
        ``guarded``: whether calls that ``_overlap(t, b)`` finds run ``_written`` instead.
        ``stepwise``: whether ``run`` is a generator that gives ``(index, tensors made)`` behind
        each piece.
        """
        parameters = ", ".join(["t", "b", *self._dims])
        lines: list[Line] = []
        place = 0
        for piece in self._program.pieces:
            if piece.splitting:
                lines += self._splitting(piece, check, laid)
            else:
                lines.append(self._call(piece, place))
                place += 1
            if stepwise:
                lines.append(self._made(piece))
        self._values.begin()
        results = "".join(f"{self._values.source(v)}, " for v in self._program.values)
        lines.append(self._line(f"return ({results})"))
        guard = [f" if _overlap(t, b): return _written({parameters})"] if guarded else []
        body = [f" {line}" for line in freeing(lines)]
        return "\n".join([f"def run({parameters}):", *guard, *body])

    def _line(self, text: str, depth: int = 0) -> Line:
        """The statement that was just written."""
        return Line(text, frozenset(self._values.used), depth)

    def _call(self, piece: Piece, place: int) -> Line:
        """The line that calls a compilable piece."""
        self._values.begin()
        arguments = ", ".join([*self._dims, *(self._values.source(n) for n in piece.inputs)])
        call = f"_piece{place}({arguments})"
        results = "".join(f"{self._values.local(n)}, " for n in piece.outputs)
        return self._line(f"{results}= {call}" if results else call)

    def _made(self, piece: Piece) -> Line:
        """The line that gives away what a piece made."""
        self._values.begin()
        nodes = piece.nodes if piece.splitting else piece.outputs
        made = [self._values.source(n) for n in nodes if self._values.is_tensor(n)]
        return self._line(f"yield {piece.index}, ({''.join(f'{m}, ' for m in made)})")

    def _splitting(self, piece: Piece, check: bool, laid: bool) -> list[Line]:
        """The lines that run a splitting piece as written."""
        self._piece = piece
        enter = [self._values.name(_Autocast(n.args)) for n in piece.entered]
        depth = 1 if enter else 0
        lines = []
        if enter:
            lines.append(Line(f"with {', '.join(f'{e}()' for e in enter)}:"))
        for first, *rest in functorch_units(piece.nodes):
            if rest:
                lines.append(self._unit([first, *rest], depth))
                continue
            self._values.begin()
            call = self._as_written(first)
            lines.append(self._line(f"{self._values.local(first)} = {call}", depth))
            if laid and first in self.ops:
                lines += self._lay(first, check, depth)
            lines += self._items(first, depth)
        return lines

    def _unit(self, nodes: Sequence[torch.fx.Node], depth: int) -> Line:
        """The line that runs all of a vmap."""
        if nodes[0] not in self._units:
            unit = Unit(self._program, nodes)
            self._units[nodes[0]], self.ops[nodes[0]] = unit, self._values.name(unit)
        unit = self._units[nodes[0]]
        self._values.begin()
        arguments = ", ".join([*self._dims, *map(self._values.source, unit.inputs)])
        call = f"{self.ops[nodes[0]]}({arguments})"
        results = "".join(f"{self._values.local(n)}, " for n in unit.outputs)
        return self._line(f"{results}= {call}" if results else call, depth)

    def _items(self, node: torch.fx.Node, depth: int) -> Iterator[Line]:
        """The lines that take a result apart, whatever is nested in what."""
        for user in node.users:
            if is_item(user):
                self._values.begin()
                whole = self._values.source(node)
                yield self._line(f"{self._values.local(user)} = {whole}[{user.args[1]}]", depth)
                yield from self._items(user, depth)

    def _as_written(self, node: torch.fx.Node) -> str:
        if is_view(node) and node.op == "call_method":
            receiver = self._values.source(node.args[0])
            return f"{receiver}.{node.target}({self._values.arguments(node.args[1:], node.kwargs)})"
        if is_view(node) and node.target is operator.getitem:
            whole, place = map(self._values.source, node.args)
            return f"{whole}[{place}]"
        return f"{self._op(node)}({self._values.arguments(node.args, node.kwargs)})"

    def _op(self, node: torch.fx.Node) -> str:
        """The name of what ``node`` calls."""
        target: Any = node.target
        if node.op == "call_method":
            target = getattr(torch.Tensor, str(node.target))
        elif node.op == "call_module":
            target = self._program.traced.graph.get_submodule(str(node.target))
        if is_view(node):
            return self._values.name(target)
        if node not in self.ops:
            self.ops[node] = self._values.name(target)
            if storages(node) & self._addressed:
                self.whole.add(self.ops[node])
            laid = self.lay_op(node, self._piece)
            if laid is not None:
                self.laid[self.ops[node]] = laid
        return self.ops[node]

    def _lay(self, node: torch.fx.Node, check: bool, depth: int) -> Iterator[Line]:
        """The line that brings an operation's results to the layout promised."""
        if self.ops[node] not in self.laid:
            return
        self._values.begin()
        name, value = self._values.name(self.laid[self.ops[node]]), self._values.source(node)
        fitted = f"{value} = {name}({', '.join([value, *self._dims])})"
        alone = node.meta.get("example_value")
        if not check and isinstance(alone, torch.Tensor):
            # What costs little at every call; dims of size 1 may send it the long way round.
            fitted = f"if {value}.stride() != {self._values.size(alone.stride())}: {fitted}"
        yield self._line(fitted, depth)

    def _promise(self, tensors: Sequence[torch.Tensor]) -> Promise:
        """What ``tensors`` are at sizes."""
        size, name = self._values.size, self._values.name
        each = [f"({name(t.dtype)}, {size(tuple(t.shape))}, {size(t.stride())}), " for t in tensors]
        source = f"lambda {', '.join(self._dims)}: ({''.join(each)})"
        made: Promise = eval(compile(source, "<piecewise promise>", "eval"), self.names)
        return made

    def lay_op(self, node: torch.fx.Node, piece: Piece) -> Laid | None:
        """What checks a splitting op's results; None where the program reshapes them in place."""
        if storages(node) & self._program.reshaped:
            return None
        tensors = [v for v in values(node.meta.get("example_value")) if _is_plain(v)]
        given = frozenset().union(*map(storages, tensor_inputs(node)))
        where = f"piece {piece.index}{', ' + source_of(node) if source_of(node) else ''}"
        return Laid(
            f"splitting op {op_name(node)} ({where})",
            "its fake kernel",
            "correct its register_fake, or return .contiguous()",
            self._promise(tensors),
            [False] * len(tensors) if node in self._needed else self._own(tensors, given),
            self._count,
            exact=self._program.traced.reads_layout,
            told=self._told,
        )

    def lay_piece(self, piece: Piece, compiler: str) -> Laid:
        """What checks the results of a compilable piece's code, made by ``compiler``."""
        tensors = [n.meta["example_value"] for n in piece.outputs]
        given = frozenset().union(*map(storages, piece.inputs))
        where = f"piece {piece.index}{', ' + piece.source if piece.source else ''}"
        return Laid(
            f"the code of compiler {compiler!r} for {where}",
            "the traced graph",
            "the compiler must keep what that gives",
            self._promise(tensors),
            self._own(tensors, given),
            self._count,
            several=True,
            told=self._told,
        )

    def _own(self, tensors: Sequence[torch.Tensor], given: frozenset[int]) -> list[bool]:
        """Per tensor, whether a copy does: nobody shares its memory or asks how it lies."""
        memory = [memory_of(t) for t in tensors]
        if self._program.traced.reads_layout:
            return [False] * len(tensors)
        taken = given | self._decided
        return [m not in taken and memory.count(m) == 1 for m in memory]


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


class _Autocast:
    """Opens again, around a splitting piece, the autocast region it was traced in."""

    def __init__(self, args: Any) -> None:
        self._args = args

    def __call__(self) -> torch.autocast:
        device_type, dtype, enabled, cache = self._args
        return torch.autocast(device_type, dtype, enabled, cache)
