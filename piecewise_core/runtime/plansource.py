"""The source of a range plan: one function that runs a program's pieces in order."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.graph.contexts import functorch_units
from piecewise_core.graph.effects import is_view
from piecewise_core.graph.memory import storages
from piecewise_core.graph.segments import is_item
from piecewise_core.graph.split import Piece, Program
from piecewise_core.graph.varying import varies_itself
from piecewise_core.runtime.forking import Forking
from piecewise_core.runtime.laid import Laid
from piecewise_core.runtime.planlines import Line, freeing
from piecewise_core.runtime.planunits import Unit
from piecewise_core.runtime.planvalues import PlanValues
from piecewise_core.runtime.promises import Promises
from piecewise_core.runtime.varyingunit import VaryingUnit

__all__ = ["PlanSource"]


class PlanSource:
    """Writes the source of ``run(t, b, s0, ...)``.

    ``names``: what the source uses, ``_piece0``, ``_overlap`` and ``_written`` left out. ``ops``:
    the name that each operation of a splitting piece is called by, views left out. ``laid``: by
    that name, what brings its results to the layout promised. ``whole``: names of those of whose
    results the program takes elements by where they lie. ``promises``: what results must be.
    ``count``: called for each that is copied for it.
    """

    def __init__(self, program: Program, count: Callable[[], None] = lambda: None) -> None:
        self._program = program
        self._values = PlanValues(program)
        self.names = self._values.names
        self.laid: dict[str, Laid] = {}
        self.ops: dict[torch.fx.Node, str] = {}
        self._units: dict[torch.fx.Node, Unit] = {}
        self.whole: set[str] = set()
        self._dims = [f"s{i}" for i in range(len(program.traced.box.ranges))]
        self.promises = Promises(program, self._values, self._dims, count)

    def text(
        self,
        *,
        check: bool,
        guarded: bool,
        stepwise: bool = False,
        laid: bool = True,
        forked: bool = False,
    ) -> str:
        """The source.

        ``check``: whether splitting ops' results are compared with their fake kernels' promises in
        dtype and shape too. ``laid``: whether they are brought to the layout promised.
        ``guarded``: whether calls that ``_overlap(t, b)`` finds run ``_written`` instead.
        ``stepwise``: whether ``run`` is a generator that gives ``(index, tensors made)`` behind
        each piece. ``forked``: whether forks are run as such, by ``_fork()``, ``_side()`` around
        the second lane, and ``_join()``.
        """
        parameters = ", ".join(["t", "b", *self._dims])
        place = itertools.count()
        forking = Forking()
        for piece in self._program.pieces:
            made = list(self._lines(piece, place, check, laid))
            if stepwise:
                made.append(self._made(piece))
            forking.add(made, piece.lane if forked else None)
        lines = forking.joined()
        self._values.begin()
        results = "".join(f"{self._values.source(v)}, " for v in self._program.values)
        lines.append(self._line(f"return ({results})"))
        guard = [f" if _overlap(t, b): return _written({parameters})"] if guarded else []
        body = [f" {line}" for line in freeing(lines)]
        return "\n".join([f"def run({parameters}):", *guard, *body])

    def _lines(self, piece: Piece, place: Iterator[int], check: bool, laid: bool) -> Iterator[Line]:
        """The lines that run one piece."""
        if piece.varies:
            yield self._varying(piece)
        elif piece.splitting:
            yield from self._splitting(piece, check, laid)
        else:
            yield self._call(piece, f"_piece{next(place)}")

    def _line(self, text: str, depth: int = 0) -> Line:
        """The statement that was just written."""
        return Line(text, frozenset(self._values.used), depth)

    def _call(self, piece: Piece, name: str) -> Line:
        """The line that calls what runs a piece."""
        self._values.begin()
        arguments = ", ".join([*self._dims, *(self._values.source(n) for n in piece.inputs)])
        call = f"{name}({arguments})"
        results = "".join(f"{self._values.local(n)}, " for n in piece.outputs)
        return self._line(f"{results}= {call}" if results else call)

    def _made(self, piece: Piece) -> Line:
        """The line that gives away what a piece made."""
        self._values.begin()
        nodes = piece.nodes if piece.splitting and not piece.varies else piece.outputs
        made = [self._values.source(n) for n in nodes if self._values.is_tensor(n)]
        return self._line(f"yield {piece.index}, ({''.join(f'{m}, ' for m in made)})")

    def _splitting(self, piece: Piece, check: bool, laid: bool) -> list[Line]:
        """The lines that run a splitting piece as written."""
        self._piece = piece
        autocast: Any = torch.autocast  # opened again around a piece that was traced in it
        enter = [self._values.name(partial(autocast, *n.args)) for n in piece.entered]
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

    def _varying(self, piece: Piece) -> Line:
        """The line that runs a piece whose sizes depend on data."""
        first = piece.nodes[0]
        if first not in self.ops:
            laid = [
                None if varies_itself(n) else self.promises.lay_varying(n, piece)
                for n in piece.outputs
            ]
            self.ops[first] = self._values.name(VaryingUnit(self._program, piece, laid))
        return self._call(piece, self.ops[first])

    def _items(self, node: torch.fx.Node, depth: int) -> Iterator[Line]:
        """The lines that take a result apart, whatever is nested in what."""
        for user in node.users:
            if is_item(user):
                self._values.begin()
                whole = self._values.source(node)
                yield self._line(f"{self._values.local(user)} = {whole}[{user.args[1]}]", depth)
                yield from self._items(user, depth)

    def _as_written(self, node: torch.fx.Node) -> str:
        view = is_view(node)
        if view and node.op == "call_method":
            receiver = self._values.source(node.args[0])
            return f"{receiver}.{node.target}({self._values.arguments(node.args[1:], node.kwargs)})"
        if view and node.target is operator.getitem:
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
            if storages(node) & self.promises.addressed:
                self.whole.add(self.ops[node])
            laid = self.promises.lay_op(node, self._piece)
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
