"""Traces a piece to functional ATen operators: what ``protocols.lowering.lower`` gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from piecewise_core.compile.lowering import retraced_in
from piecewise_core.errors import PieceDeclined
from piecewise_core.graph.conditions import python_source
from piecewise_core.graph.randomness import draws
from piecewise_core.graph.sizes import expression
from piecewise_core.protocols.lowering import Layout, Lowered, Results
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.fakes import TracingContext
from piecewise_core.torch_compat.operators import OpOverload, schema_of
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["decline", "lowered"]


def lowered(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Lowered:
    """``graph`` in functional ATen operators, and what its results must be.

    ``inputs``: examples in the tracing context around. Raises PieceDeclined.
    """
    context = TracingContext.try_get()
    mode = None if context is None else context.fake_mode
    if mode is None:
        raise ValueError("lower() is for the inside of compile(): there is no tracing context here")
    call = _called(graph)
    before = [_place(value) for value in inputs]
    try:
        with retraced_in(mode):
            promised = call(*inputs)
            # Twice: functionalize has kernels of its own for linear and others, which fix sizes.
            operators = make_fx(call, _allow_non_fake_inputs=True)(*inputs)
            functional = torch.func.functionalize(_called(operators), remove="mutations")
            traced = make_fx(functional, _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:
        raise PieceDeclined(
            f"it cannot be written in functional operators ({type(error).__name__}: {error})"
        ) from error
    if before != [_place(value) for value in inputs]:
        raise PieceDeclined("it reshapes an input in place")
    _name_inputs(traced, inputs)
    symbols = _symbols(inputs)
    written = _take_writes_out(traced, promised)
    return Lowered(traced, Results(_layouts(promised, inputs, symbols), written, symbols))


def _name_inputs(traced: torch.fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Call them arg_0, arg_1 and so on, after their places."""
    nodes = traced.graph.find_nodes(op="placeholder")
    for place, (node, value) in enumerate(zip(nodes, inputs, strict=True)):
        with traced.graph.inserting_before(node):
            named = traced.graph.placeholder(f"arg_{place}")
        named.meta = {"val": value, **node.meta}  # make_fx leaves sizes that are ints without
        node.replace_all_uses_with(named)
        traced.graph.erase_node(node)


def decline(graph: torch.fx.GraphModule, dtypes: Collection[torch.dtype]) -> None:
    """Raise PieceDeclined where a value has none of ``dtypes``, or an operator draws."""
    for node in graph.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and value.dtype not in dtypes:
                raise PieceDeclined(
                    f"{node} is of {value.dtype}, which would be computed otherwise"
                )
        if node.op == "call_function" and draws(node):
            raise PieceDeclined(f"{node} draws from another generator than torch's")


def _called(graph: torch.fx.GraphModule) -> Callable[..., Sequence[Any]]:
    """A function: make_fx counts the parameters of a bound forward wrongly."""
    return lambda *args: graph(*args)


def _place(value: Any) -> Any:
    return (value.shape, value.stride()) if isinstance(value, torch.Tensor) else None


def _symbols(inputs: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Where each size can be read: of a tensor, if one has it, else of the size's own input."""
    found: dict[str, tuple[int, int]] = {}
    for place, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                if isinstance(expression(size), sympy.Symbol):
                    found.setdefault(str(expression(size)), (place, dim))
    for place, value in enumerate(inputs):
        if isinstance(expression(value), sympy.Symbol):
            found.setdefault(str(expression(value)), (place, -1))
    return found


def _take_writes_out(traced: torch.fx.GraphModule, promised: Sequence[Any]) -> tuple[int, ...]:
    """Make results of the copies to inputs that end the graph; which inputs those are, in order."""
    graph = traced.graph
    places = {node: i for i, node in enumerate(graph.find_nodes(op="placeholder"))}
    values: dict[int, torch.fx.Node] = {}
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten.copy_.default and node.args[0] in places:
            values.setdefault(places[node.args[0]], node.args[1])
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
    if any(n.op == "call_function" and _writes(n) for n in graph.nodes):
        raise PieceDeclined("an operator in it writes to what it is given")
    output = graph.output_node()
    given: Any = output.args[0]
    results = list(given)
    written = tuple(sorted(values))
    output.args = ([*results, *(values[place] for place in written)],)
    if len(results) != len(promised):
        raise PieceDeclined("its results cannot be told apart")
    graph.eliminate_dead_code()
    traced.recompile()
    return written


def _writes(node: torch.fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and bool(schema_of(node.target).is_mutable)


def _layouts(
    promised: Sequence[Any], inputs: Sequence[Any], symbols: Mapping[str, tuple[int, int]]
) -> tuple[Layout, ...]:
    owners = {
        memory_key(value): place
        for place, value in reversed(list(enumerate(inputs)))
        if isinstance(value, torch.Tensor)
    }
    keys = [memory_key(value) for value in promised]
    several = [key for key, count in Counter(keys).items() if count > 1 and key not in owners]
    return tuple(
        _layout(value, owners.get(key), several.index(key) if key in several else None, inputs)
        for value, key in zip(promised, keys, strict=True)
    )


def _layout(
    value: torch.Tensor, owner: int | None, shared: int | None, inputs: Sequence[Any]
) -> Layout:
    offset: Any = value.storage_offset() if shared is not None else 0
    if owner is not None:
        if inputs[owner].dtype != value.dtype:
            raise PieceDeclined("a result is an input's memory as another dtype")
        offset = value.storage_offset() - inputs[owner].storage_offset()
    return Layout(
        str(value.dtype).removeprefix("torch."),
        tuple(map(_text, value.shape)),
        tuple(map(_text, value.stride())),
        _text(offset),
        owner,
        shared,
    )


def _text(size: Any) -> str:
    found = expression(size)
    return python_source(found) if isinstance(found, sympy.Basic) else str(found)
