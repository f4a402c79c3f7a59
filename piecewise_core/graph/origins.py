"""Where a traced graph's inputs come from, and how a call's result is made of its outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch

from piecewise_core.errors import TraceFailed
from piecewise_core.graph import markers
from piecewise_core.graph.effects import writes
from piecewise_core.graph.frame import Capture
from piecewise_core.graph.input_mutation import refuse_changed
from piecewise_core.graph.memory import storages
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.outputs import rebuild_code
from piecewise_core.graph.structure import Structure, is_plain
from piecewise_core.graph.untraceable import refuse_side_effects
from piecewise_core.graph.wrappers import is_wrapper, leaves
from piecewise_core.torch_compat.symbols import unreplaced

__all__ = ["Bind", "GraphInput", "read_off"]


class Bind(Protocol):
    """Takes a tensor that the model holds, or one that ``of``, which it holds, wraps."""

    def __call__(self, tensor: torch.Tensor, of: torch.Tensor | None = None) -> int:
        """Its place among those bound."""


@dataclass(frozen=True)
class GraphInput:
    """Where one placeholder's value comes from.

    Exactly one is set: ``tensor``, the place among the call's flat tensors; ``size``, an
    expression over the symbols; ``bound``, the place among the tensors that the model holds.
    """

    tensor: int | None = None
    size: sympy.Basic | None = None
    bound: int | None = None


def read_off(
    captured: Capture,
    structure: Structure,
    leading: Sequence[Any],
    examples: Sequence[torch.Tensor],
    objects: Sequence[Any],
    bind: Bind,
    numbers: Collection[sympy.Symbol] = (),
) -> tuple[tuple[GraphInput, ...], OutputCode]:
    """Run the frame's own code once around markers: what goes in, and what is made of it.

    ``leading``: the frame's arguments before ``examples``. ``objects``: the call's constants.
    Python floats in the result become plain outputs of the graph. ``numbers``: symbols of those
    that the next call has others of, which are taken out. Raises UnsupportedOutput,
    UnsupportedSideEffect, or CountUsed where something needs one.
    """
    stand_ins = [
        markers.argument(t, leaf.index, leaf.dims)
        for t, leaf in zip(examples, structure.tensors, strict=True)
    ]
    output: Any = captured.graph.graph.output_node()
    counts = _made_of(captured.graph.graph, numbers)
    wanted = [node for node in output.args[0] if node not in counts]
    made = [markers.result(n.meta.get("example_value"), i) for i, n in enumerate(wanted)]
    seen: list[Any] = []

    def stand_in(*args: Any) -> tuple[Any, ...]:
        seen.extend(args)
        rest = iter(made)
        return tuple(markers.CountMarker() if n in counts else next(rest) for n in output.args[0])

    result, after, _ = captured.run(stand_in, (*leading, *stand_ins))
    refuse_changed(structure, after, stand_ins)
    flat = {id(t): i for i, t in enumerate(stand_ins)}
    inputs, opaque = _inputs(captured, seen, flat, bind)
    output.args = (tuple(wanted),)
    places = {id(m): i for i, m in enumerate(made) if isinstance(m, torch.Tensor)}
    itself = _handed_back(output, seen, made)
    _erase((*opaque, *reversed(counts)))
    for marker in itself:
        del places[marker]
    flat |= {m: flat[id(value)] for m, value in itself.items() if id(value) in flat}
    held = [o for o in objects if not is_plain(o)]
    stores = _stores(captured, output, places)
    code = rebuild_code(
        result, places, flat, lambda tensor: bind(itself.get(id(tensor), tensor)), held
    )
    _unwrap_floats(captured.graph.graph, output, code.floats)
    return inputs, code.storing(stores)


def _stores(
    captured: Capture, output: Any, places: dict[int, int]
) -> list[tuple[torch.nn.Module, str, int]]:
    """What attributes the forward sets: module, name, and the result's place."""
    stored = [at for effect in captured.kept_up for at in effect.stored]
    found = ((of, name, places.get(id(vars(of).get(name)))) for of, name in stored)
    stores = [(of, name, place) for of, name, place in found if place is not None]
    # Set to an input, or to a view of memory that others write to: a copy would not follow that.
    given = frozenset().union(*(storages(n) for n in output.graph.find_nodes(op="placeholder")))
    views = any(storages(output.args[0][place]) & given for *_, place in stores)
    if len(stores) < len(stored) or views:
        refuse_side_effects(captured.kept_up, captured.graph.graph)
    return stores


def _handed_back(output: Any, seen: Sequence[Any], made: Sequence[Any]) -> dict[int, torch.Tensor]:
    """The inputs that are results: what ``x.add_(1)`` gives is ``x``; by the ids of its markers."""
    given = [n for n in output.graph.nodes if n.op == "placeholder"]
    values = dict(zip(given, (leaf for value in seen for leaf in _leaves(value)), strict=True))
    found = {}
    for node, marker in zip(output.args[0], made, strict=True):
        while writes(node):  # a write gives the tensor object that it wrote to, or none of these
            example = node.meta.get("example_value")
            into = (*node.args[:1], node.kwargs.get("out"))
            node = next((n for n in into if _is_of(n, example)), output)
        if isinstance(marker, torch.Tensor) and isinstance(values.get(node), torch.Tensor):
            found[id(marker)] = values[node]
    return found


def _is_of(node: Any, example: Any) -> bool:
    return isinstance(node, torch.fx.Node) and node.meta.get("example_value") is example


def _inputs(
    captured: Capture,
    seen: Sequence[Any],
    flat: dict[int, int],
    bind: Bind,
) -> tuple[tuple[GraphInput, ...], list[torch.fx.Node]]:
    """One GraphInput per placeholder; a wrapper has one for each tensor inside.

    And the placeholders of what is no input of a compiled graph, which none uses.
    """
    inputs: list[GraphInput] = []
    opaque: list[torch.fx.Node] = []
    placeholders = [n for n in captured.graph.graph.nodes if n.op == "placeholder"]
    opened = [(leaf, value) for value in seen for leaf in _leaves(value)]
    for node, (value, of) in zip(placeholders, opened, strict=True):
        if isinstance(value, markers.CountMarker):
            continue  # what is made of these is taken out
        if not isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, int, float)):
            # A mesh of devices, say, which wrappers around tensors were asked for.
            if node.users:
                raise TraceFailed(
                    f"the model gives a {type(value).__name__} to {op_name(next(iter(node.users)))}"
                    f" at {source_of(next(iter(node.users)))}, which no compiled graph takes; "
                    "compile a part without it"
                )
            opaque.append(node)
        elif not isinstance(value, torch.Tensor):
            example = node.meta.get("example_value")
            size = example.node.expr if isinstance(example, torch.SymInt) else sympy.sympify(value)
            inputs.append(GraphInput(size=captured.shape_env.replace(size)))
        elif id(value) in flat:
            inputs.append(GraphInput(tensor=flat[id(value)]))
        else:
            inputs.append(GraphInput(bound=bind(value, of)))
    return tuple(inputs), opaque


def _erase(nodes: Sequence[torch.fx.Node]) -> None:
    for node in nodes:
        if node.users:
            raise markers.CountUsed(f"{op_name(next(iter(node.users)))} takes a count")
        node.graph.erase_node(node)


def _made_of(graph: torch.fx.Graph, numbers: Collection[sympy.Symbol]) -> dict[torch.fx.Node, None]:
    """The inputs that are ``numbers``, and what is computed of these, in order."""
    found: dict[torch.fx.Node, None] = {}
    for node in graph.nodes if numbers else ():
        value = node.meta.get("example_value")
        given = node.op == "placeholder" and isinstance(value, torch.SymInt)
        if (given and unreplaced(value) in numbers) or (
            node.op != "output" and not found.keys().isdisjoint(node.all_input_nodes)
        ):
            found[node] = None
    return found


def _leaves(value: Any) -> list[Any]:
    return leaves(value) if is_wrapper(value) else [value]


def _unwrap_floats(graph: torch.fx.Graph, output: torch.fx.Node, floats: Sequence[int]) -> None:
    """Dynamo wraps a symbolic float in a tensor to pass it out; pass the float itself."""
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for place in floats:
        wrapped = results[place]
        if wrapped.target is torch.scalar_tensor:
            results[place] = wrapped.args[0]
        else:
            with graph.inserting_before(output):
                results[place] = graph.call_method("item", (wrapped,))
    output.args = (tuple(results),)
    for node in [n for n in graph.nodes if n.target is torch.scalar_tensor and not n.users]:
        graph.erase_node(node)
