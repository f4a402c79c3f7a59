"""Which dims of a traced program may be padded: its graph is run on tensors without data."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.afterfork import after_fork
from piecewise_core.config import Dim
from piecewise_core.graph.conditions import evaluator
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.padding.calls import at_sizes
from piecewise_core.graph.padding.extents import extent
from piecewise_core.graph.padding.judge import Mixing, cannot_pad, mixing
from piecewise_core.graph.padding.table import has_rule
from piecewise_core.graph.padding.tape import Noting, Ref, Tape, makes_whole_numbers
from piecewise_core.graph.sizes import expression, new_size, valued
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.graph.varying import line_of, varies
from piecewise_core.ranges import NO_BOUND, Box, Sizes
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import FakeTensorMode, enable_python_dispatcher

__all__ = ["Paddable", "paddable", "unpadded_dims"]

logger = logging.getLogger(__name__)

_SAMPLES = 6
"""Sizes per dim, besides both ends of its range, that every number is compared at."""


@dataclass(frozen=True)
class Paddable:
    """``dims``: places of the dims that may be padded. ``refused``: why others may not.

    ``rounds``: whether the program turns floats into whole numbers, which may then be indices.
    """

    dims: frozenset[int]
    refused: dict[int, Mixing]
    rounds: bool = False


def paddable(traced: Traced) -> Paddable:
    """The dims of ``traced`` along which rows of padding cannot reach a call's own rows."""
    box = traced.box
    open_dims = [i for i, span in enumerate(box.ranges) if not span.is_single_size()]
    if not open_dims:
        return Paddable(frozenset(), {})
    if traced.counted is not None:
        counts = Mixing("the program", "", "counts in objects of its calls")
        return Paddable(frozenset(), dict.fromkeys(open_dims, counts))
    found = next(filter(varies, traced.graph.graph.nodes), None)
    if found is not None:
        why = "makes sizes that depend on data"
        mixes = Mixing(op_name(found), line_of(found), why)
        return Paddable(frozenset(), dict.fromkeys(open_dims, mixes))
    try:
        run = _Run(traced)
    except Exception as error:  # a program that cannot be looked at is one that nobody knows
        logger.debug("the program cannot be run without data", exc_info=True)
        lines = str(error).strip().splitlines() or [""]
        unknown = Mixing("the program", "", f"cannot be looked at: {lines[0][:200]}")
        return Paddable(frozenset(), dict.fromkeys(open_dims, unknown))
    refused = {}
    for dim in open_dims:
        found = run.mixing((dim,))
        if found is not None:
            refused[dim] = found
    good = [i for i in open_dims if i not in refused]
    if len(good) > 1 and (found := run.mixing(good)) is not None:
        refused |= dict.fromkeys(good[1:], found)
        good = good[:1]
    return Paddable(frozenset(good), refused, run.rounds)


def unpadded_dims(found: Paddable, dims: Sequence[Dim]) -> Iterator[str]:
    """One sentence per dim that is not padded, saying why."""
    for place, why in found.refused.items():
        yield cannot_pad(f'dim "{dims[place].name}"', why)


class _Run:
    """One run of a program with symbols for sizes."""

    def __init__(self, traced: Traced) -> None:
        self._box = traced.box
        self._env = ShapeEnv()
        self._tape = Tape(has_rule)
        self._functions: dict[sympy.Basic, Callable[..., Any]] = {}
        mode = FakeTensorMode(shape_env=self._env, allow_non_fake_inputs=True)
        with (
            dynamo.oblivious_sizes(),
            after_fork.leaves(dynamo.without_size_choices()),  # as the trace was made
            torch.inference_mode(),
        ):
            self._sizes = [
                new_size(self._env, i, span.start, span.end, hint)
                for i, (span, hint) in enumerate(
                    zip(self._box.ranges, hints(self._box), strict=True)
                )
            ]
            with mode:
                values = list(_inputs(traced, self._sizes))
            self._inputs = [
                self._tape.ref(value)
                for value, source in zip(values, traced.inputs, strict=True)
                if source.tensor is not None
            ]
            placed = _Placed(traced.graph)
            with enable_python_dispatcher(), mode, Noting(self._tape, placed.place):
                placed.run(*values)
        self._symbols = [
            expression(size) if isinstance(size, torch.SymInt) else None for size in self._sizes
        ]
        if any(s is not None and not isinstance(s, sympy.Symbol) for s in self._symbols):
            raise ValueError("a size is fixed by the program")
        self.rounds = any(map(makes_whole_numbers, self._tape.calls))

    def mixing(self, dims: Sequence[int]) -> Mixing | None:
        """What keeps ``dims``, padded together, from being padded."""
        try:
            return self._mixing(dims)
        except (ValueError, ArithmeticError) as error:
            return Mixing("the program", "", f"has a size that nobody can tell: {error}")

    def _mixing(self, dims: Sequence[int]) -> Mixing | None:
        others = [i for i in range(len(self._sizes)) if i not in dims]
        # What is counted along other dims may be too large an index at their largest sizes only.
        found = self._mixing_at(dims, _samples(self._box, dims))
        if found is None and others:
            found = self._mixing_at(dims, _samples(self._box, dims, largest=True))
        return found

    def _mixing_at(self, dims: Sequence[int], samples: list[Sizes]) -> Mixing | None:

        def number(value: Any) -> Any:
            if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                return value
            at = self._function(expression(value))
            return extent([at(*sizes) for sizes in samples])

        for guard in self._env.guards:
            holds = self._function(self._env.replace(guard.expr))
            if not all(holds(*sizes) for sizes in samples):
                return Mixing("the program", "", f"is another one where {guard.expr} does not hold")
        calls = at_sizes(self._tape.calls, number)
        inputs = [Ref(r.number, tuple(map(number, r.shape)), r.dtype) for r in self._inputs]
        empty = any(self._box.ranges[dim].start == 0 for dim in dims)
        return mixing(calls, inputs, empty=empty)

    def _function(self, expr: Any) -> Callable[..., Any]:
        if not isinstance(expr, sympy.Basic):
            return lambda *sizes: expr
        if expr not in self._functions:
            dims = [s if s is not None else sympy.Dummy() for s in self._symbols]
            names = [sympy.Symbol(f"s{i}", integer=True) for i in range(len(dims))]
            renamed = expr.xreplace(dict(zip(dims, names, strict=True)))
            if renamed.free_symbols - set(names):
                raise ValueError("a size depends on data")
            self._functions[expr] = evaluator(renamed, names)
        return self._functions[expr]


class _Placed(torch.fx.Interpreter):
    """Runs a graph and says which node runs."""

    def run_node(self, n: torch.fx.Node) -> Any:
        self._node = n
        return super().run_node(n)

    def place(self) -> Callable[[], str]:
        """What says where the node is that runs now."""
        node = self._node

        def text() -> str:
            name, source = op_name(node), source_of(node)
            return f"{source} ({name})" if source else name

        return text


def _inputs(traced: Traced, sizes: Sequence[Any]) -> Any:
    """Tensors like the traced ones, over ``sizes``."""
    by_symbol = {symbol: sizes[place] for symbol, place in traced.symbols.items()}
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    for node, source in zip(placeholders, traced.inputs, strict=True):
        example = node.meta.get("example_value")
        if isinstance(example, torch.Tensor):
            yield torch.empty_strided(
                [valued(s, by_symbol) for s in example.shape],
                [valued(s, by_symbol) for s in example.stride()],
                dtype=example.dtype,
                device=example.device,
            )
        elif source.size is not None:
            yield valued(example, by_symbol) if example is not None else int(source.size)
        else:
            yield example


def _samples(box: Box, dims: Sequence[int], *, largest: bool = False) -> list[Sizes]:
    """Sizes at which ``dims`` differ, from the least to the largest; the other dims stay.

    ``largest``: at the end of their ranges, where those end.
    """
    draw = random.Random(0)
    spans = [(max(r.start, 1), r.end) for r in box.ranges]
    fixed = [draw.randint(low, min(high, low + 96)) for low, high in spans]
    if largest:
        fixed = [
            high if high < NO_BOUND else at for at, (_, high) in zip(fixed, spans, strict=True)
        ]
    columns = []
    for place, (low, high) in enumerate(spans):
        legal = box.ranges[place].nearest
        if place not in dims:
            columns.append([legal(fixed[place])] * (_SAMPLES + 2))
            continue
        top = min(high, max(low + 8192, 1 << 20))
        drawn = [draw.randint(low, top) for _ in range(_SAMPLES)]
        columns.append(list(map(legal, [low, *drawn, top])))
    return [tuple(sizes) for sizes in zip(*columns, strict=True)]
