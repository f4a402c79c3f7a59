"""A graph from Dynamo's own front end, in the form that splitting takes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import guard_scalar

from piecewise_core.config import Dim
from piecewise_core.graph.cleaning import clean
from piecewise_core.graph.effects import reshapes, writes
from piecewise_core.graph.memory import storages
from piecewise_core.graph.origins import GraphInput
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.sizes import expression, number
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import NO_BOUND, Box, Sizes
from piecewise_core.torch_compat.dynamo import is_marked_static
from piecewise_core.torch_compat.symbols import SymT, symbol_is_type

__all__ = ["device_type", "held_inputs", "reading", "take_in"]

_LARGE = 1 << 20
"""Bytes of an input that a graph writes to and reads where it lies: a cache."""


def take_in(graph: torch.fx.GraphModule) -> tuple[list[Dim], Traced]:
    """Return the graph's dims, and the graph (changed in place) as a trace.

    Dims are its symbols, named after the inputs that carry them: ``x[0]``, or ``n`` for an int.
    Parameters, buffers and what else rarely moves count as tensors that the model holds, though
    Dynamo hands them in; so does large memory that is written to, which no graph should copy.
    """
    clean(graph)
    _fix_floats(graph.graph)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    held = held_inputs(graph.graph)
    symbols: dict[sympy.Symbol, int] = {}
    dims: list[Dim] = []
    for symbol, (size, name) in _carriers(placeholders).items():
        symbols[symbol] = len(dims)
        dims.append(_dim(size, name))
    place, bound = itertools.count(), itertools.count()
    inputs = tuple(
        GraphInput(size=v.node.expr)
        if isinstance(v := n.meta.get("example_value"), torch.SymInt)
        else (GraphInput(bound=next(bound)) if n in held else GraphInput(tensor=next(place)))
        for n in placeholders
    )
    result: Any = graph.graph.output_node().args[0]
    everything = OutputCode("", lambda o, t, b: o, False, None, tuple(range(len(result))), ())
    box = Box(tuple(d.sizes for d in dims))
    return dims, Traced(graph, inputs, symbols, box, everything)


def held_inputs(graph: torch.fx.Graph) -> dict[torch.fx.Node, bool]:
    """The inputs that are held, in order; whether Dynamo marked them.

    One that the graph gives other memory (``x.data = y``) must be the caller's own object.
    """
    reshaped = [n.args[0] for n in graph.nodes if reshapes(n)]
    placeholders = [n for n in graph.nodes if n.op == "placeholder" and n not in reshaped]
    written = frozenset[int]().union(*(writes(n) for n in graph.nodes))
    found = {}
    for node in placeholders:
        if is_marked_static(node):
            found[node] = True
        elif storages(node) & written and _nbytes(node) >= _LARGE:
            found[node] = False
    return found


def _nbytes(node: torch.fx.Node) -> int:
    value: Any = node.meta.get("example_value")
    return math.prod(map(number, value.shape)) * int(value.element_size())


def _fix_floats(graph: torch.fx.Graph) -> None:
    """Make Python floats that Dynamo lets vary constants, guarded: pieces take no floats."""
    for node in list(graph.nodes):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat) and all(
            symbol_is_type(symbol, SymT.FLOAT) for symbol in value.node.expr.free_symbols
        ):
            node.replace_all_uses_with(_number(node, value))
            graph.erase_node(node)


def _number(node: torch.fx.Node, value: torch.SymFloat) -> Any:
    """What a node gives in this call. Symbols know no sign of zero, and their guards no NaN."""
    given: Any = node.args[0] if node.target == "item" else None
    if given is None:
        return node.target(*node.args, **node.kwargs)  # type: ignore[operator]  # of numbers by now
    fixed = guard_scalar(value)
    return fixed or given.meta["grapharg"].example.item()


def _carriers(
    placeholders: Sequence[torch.fx.Node],
) -> dict[sympy.Symbol, tuple[torch.SymInt, str]]:
    """Every symbol with a size and a name: of the first tensor that has it, else of the int."""
    found: dict[sympy.Symbol, tuple[torch.SymInt, str]] = {}
    alone: dict[sympy.Symbol, tuple[torch.SymInt, str]] = {}
    for node in placeholders:
        value: Any = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and isinstance(expression(value), sympy.Symbol):
            alone.setdefault(expression(value), (value, _plain(node)))
        sizes: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(sizes):
            if isinstance(expression(size), sympy.Symbol):
                found.setdefault(expression(size), (size, f"{_plain(node)}[{axis}]"))
    return {**found, **{s: v for s, v in alone.items() if s not in found}}


def _plain(node: Any) -> str:
    """An input's name without Dynamo's decoration: ``L_x_`` is ``x``."""
    return re.sub(r"^[lL]_+|_+$", "", str(getattr(node, "target", node)))


def _dim(size: torch.SymInt, name: str) -> Dim:
    span = size.node.shape_env.bound_sympy(size.node.expr)
    low = int(span.lower) if span.lower.is_Integer else 0
    high = int(span.upper) if span.upper.is_Integer else NO_BOUND
    return Dim(name, min=max(low, 0), max=min(high, NO_BOUND))


def reading(
    traced: Traced,
) -> Callable[[Sequence[Any]], tuple[tuple[Any, ...], tuple[Any, ...], Sizes]]:
    """``read(inputs)``: the tensors of a call, those that are held, and every dim's size."""
    sources = [""] * len(traced.box.ranges)
    tensors = held = ""
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    for place, node in enumerate(placeholders):
        value: Any = node.meta.get("example_value")
        if isinstance(value, torch.SymInt):
            carried: dict[str, Any] = {f"i[{place}]": value}
        else:
            if traced.inputs[place].bound is None:
                tensors += f"i[{place}], "
            else:
                held += f"i[{place}], "
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            carried = {f"i[{place}].shape[{axis}]": size for axis, size in enumerate(shape)}
        for source, size in carried.items():
            dim = traced.symbols.get(expression(size))
            if dim is not None:
                sources[dim] = sources[dim] or source
    names: dict[str, Any] = {}
    sizes = "".join(f"{source}, " for source in sources)
    exec(f"def read(i):\n return ({tensors}), ({held}), ({sizes})", names)
    found: Callable[..., Any] = names.pop("read")
    return found


def device_type(graph: torch.fx.GraphModule) -> str | None:
    """The device type that the graph computes on: the CPU's only where there is no other.

    None without tensors.
    """
    values = (node.meta.get("example_value") for node in graph.graph.nodes)
    found = [str(v.device.type) for v in values if isinstance(v, torch.Tensor)]
    known = [kind for kind in found if kind != "meta"]
    return next((kind for kind in known if kind != "cpu"), next(iter(known), None))
