"""Trace one region of sizes to one whole graph, and say where its inputs come from."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from piecewise_core.config import Config, Dim
from piecewise_core.errors import PiecewiseError, TraceFailed, UnsupportedSideEffect
from piecewise_core.graph import guards, torch_private
from piecewise_core.graph.cleaning import clean
from piecewise_core.graph.outputs import OutputCode, SizeMarker, rebuild_code
from piecewise_core.graph.structure import Constant, Container, Node, Structure, leaves
from piecewise_core.ranges import Box, Sizes

__all__ = ["GraphInput", "Traced", "hints", "trace"]

_serial = itertools.count()


@dataclass(frozen=True)
class GraphInput:
    """Where one placeholder's value comes from.

    Exactly one is set: ``tensor``, the place among the call's flat tensors; ``size``, an
    expression over the symbols; ``bound``, the place among the tensors that the model holds.
    """

    tensor: int | None = None
    size: sympy.Basic | None = None
    bound: int | None = None


@dataclass(frozen=True)
class Traced:
    """One region's graph.

    ``graph``: flat; its output is a flat tuple. ``inputs``: one per placeholder. ``symbols``:
    symbol -> place of its dim. ``box``: the sizes over which the graph holds. ``output``:
    rebuilds the call's result.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[GraphInput, ...]
    symbols: Mapping[sympy.Symbol, int]
    box: Box
    output: OutputCode


def hints(cell: Box) -> Sizes:
    """Sizes to trace with: distinct ones of at least 2 where the cell has them.

    Never the sizes of a call: a model is not specialised by what it happened to see first.
    """
    found: list[int] = []
    for place, bounds in enumerate(cell.ranges):
        size = max(bounds.start, min(bounds.end, 5 + 2 * place))
        while size in found and size < bounds.end:
            size += 1
        found.append(size)
    return tuple(found)


def trace(
    fn: Callable[..., Any],
    structure: Structure,
    config: Config,
    cell: Box,
    bind: Callable[[torch.Tensor], int],
) -> Traced:
    """Trace ``fn`` for sizes in ``cell``.

    ``fn`` is called with tensors of the traced layouts and the structure's constants. ``bind``
    takes a tensor that the model holds and returns its place. Raises TraceFailed, SizeBranch,
    UnsupportedOutput or UnsupportedSideEffect.
    """
    hint = hints(cell)
    examples = [_example(leaf, structure.dims, cell, hint) for leaf in structure.tensors]
    objects = [
        leaf.value
        for node in structure.arguments.values()
        for leaf in leaves(node)
        if isinstance(leaf, Constant)
    ]
    entry = _entry(structure)
    args = (fn, objects, *examples)
    try:
        with torch.inference_mode():
            captured = torch_private.capture(entry, args)
    except PiecewiseError:
        raise
    except torch_private.trace_errors as error:
        raise TraceFailed(_explain(error, structure.dims, hint)) from error.with_traceback(None)
    _refuse_side_effects(captured.side_effects)
    symbols = _symbols(captured, structure, examples)
    box = guards.region(
        guards.collect(captured.shape_env),
        symbols,
        cell,
        hint,
        structure.dims,
        config.endpoints_by_dim,
    )
    inputs, output = _read_off(captured, examples, objects, bind)
    clean(captured.graph)
    return Traced(captured.graph, inputs, symbols, box, output)


def _example(leaf: Any, dims: Sequence[Dim], cell: Box, hint: Sizes) -> torch.Tensor:
    """A tensor of the leaf's layout at the hinted sizes, its named dims marked dynamic."""
    place = {d.name: i for i, d in enumerate(dims)}
    sizes = [
        hint[place[leaf.dims[i].name]] if i in leaf.dims else size
        for i, size in enumerate(leaf.sizes)
    ]
    ordered = torch.empty([sizes[d] for d in leaf.order], dtype=leaf.dtype, device=leaf.device)
    back = sorted(range(len(leaf.order)), key=leaf.order.__getitem__)
    example = ordered.permute(back)
    for i, named in leaf.dims.items():
        span = cell.ranges[place[named.name]]
        if not span.is_single_size():
            torch_private.mark_dynamic(example, i, span.start, span.end)
    return example


def _entry(structure: Structure) -> Callable[..., Any]:
    """``entry(fn, objects, *tensors)``: checks that same-named dims are equal, calls ``fn``."""
    lines = []
    for dim in structure.dims:
        places = [f"t{leaf.index}.shape[{i}]" for leaf, i in structure.where(dim)]
        lines += [f"  torch._check({a} == {places[0]})" for a in places[1:]]
    counter = itertools.count()
    parts = []
    for name, parameter in structure.signature.parameters.items():
        text = _build(structure.arguments[name], counter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.append(f"*{text}")
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts.append(f"**{text}")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            parts.append(f"{name}={text}")
        else:
            parts.append(text)
    tensors = "".join(f", t{i}" for i in range(len(structure.tensors)))
    source = "\n".join(
        [f"def entry(fn, objects{tensors}):", *lines, f"  return fn({', '.join(parts)})", ""]
    )
    # A name of its own, known to linecache: Dynamo reports source lines by it.
    filename = f"<piecewise entry {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    namespace: dict[str, Any] = {"torch": torch}
    kinds = {c.kind.__name__: c.kind for n in structure.arguments.values() for c in _containers(n)}
    namespace.update(kinds)
    exec(compile(source, filename, "exec"), namespace)
    entry: Callable[..., Any] = namespace["entry"]
    return entry


def _containers(node: Node) -> list[Container]:
    if not isinstance(node, Container):
        return []
    return [node, *(c for child in node.children for c in _containers(child))]


def _build(node: Node, constants: Any) -> str:
    """The expression that rebuilds one argument from ``objects`` and the tensors."""
    if isinstance(node, Constant):
        return f"objects[{next(constants)}]"
    if not isinstance(node, Container):
        return f"t{node.index}"
    children = [_build(child, constants) for child in node.children]
    if node.is_mapping:
        items = ", ".join(f"{k!r}: {c}" for k, c in zip(node.keys, children, strict=True))
        return f"{{{items}}}" if node.kind is dict else f"{node.kind.__name__}({{{items}}})"
    items = "".join(f"{c}, " for c in children)
    if node.kind is list:
        return f"[{items}]"
    return f"({items})" if node.kind is tuple else f"{node.kind.__name__}({items})"


def _explain(error: Exception, dims: Sequence[Dim], hint: Sizes) -> str:
    sizes = ", ".join(f'"{d.name}" at {n}' for d, n in zip(dims, hint, strict=True))
    tried = f"\nTraced with dim {sizes}; every size in bounds must work." if sizes else ""
    return (
        "the model cannot be traced to one whole graph, which piecewise needs: "
        f"{str(error).strip()}{tried}\n"
        "Change the code named above, compile a submodule that has none of it, or use pw.record."
    )


def _refuse_side_effects(effects: Sequence[torch_private.SideEffect]) -> None:
    if effects:
        listed = "; ".join(f"{e.what} at {e.where}" for e in effects)
        raise UnsupportedSideEffect(
            f"the model changes Python objects that outlive the call: {listed}. A traced program "
            "cannot repeat that: keep the value in a tensor or buffer, or move the change out of "
            "the compiled part"
        )


def _symbols(
    captured: torch_private.Capture, structure: Structure, examples: Sequence[torch.Tensor]
) -> dict[sympy.Symbol, int]:
    """Every symbol that stands for a dim, by the fake tensors that Dynamo made of the examples."""
    place = {d.name: i for i, d in enumerate(structure.dims)}
    env = captured.shape_env
    by_name: dict[str, int] = {}
    for symbol, sources in env.var_to_sources.items():
        for source in sources:
            name = source.name if isinstance(source.name, str) else source.name()
            by_name.setdefault(str(symbol), -1)
            for leaf in structure.tensors:
                for dim, named in leaf.dims.items():
                    if name == f"L['t{leaf.index}'].size()[{dim}]":
                        by_name[str(symbol)] = place[named.name]
    return {s: by_name[str(s)] for s in env.var_to_sources if by_name.get(str(s), -1) >= 0}


def _read_off(
    captured: torch_private.Capture,
    examples: Sequence[torch.Tensor],
    objects: Sequence[Any],
    bind: Callable[[torch.Tensor], int],
) -> tuple[tuple[GraphInput, ...], OutputCode]:
    """Run the frame's own code once around markers: what goes in, and what is made of it."""
    graph = captured.graph
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    output = next(n for n in graph.graph.nodes if n.op == "output")
    flat_inputs = {id(t): i for i, t in enumerate(examples)}
    seen: list[Any] = []
    markers: list[Any] = []

    def stand_in(*args: Any) -> tuple[Any, ...]:
        seen.extend(args)
        for place, node in enumerate(output.args[0]):
            markers.append(_marker(node.meta.get("example_value"), place))
        return tuple(markers)

    result = captured.run(stand_in)
    inputs = []
    bound: dict[int, int] = {}
    for node, value in zip(placeholders, seen, strict=True):
        example = node.meta.get("example_value")
        if not isinstance(value, torch.Tensor):
            expr = example.node.expr if isinstance(example, torch.SymInt) else sympy.sympify(value)
            inputs.append(GraphInput(size=captured.shape_env.replace(expr)))
        elif id(value) in flat_inputs:
            inputs.append(GraphInput(tensor=flat_inputs[id(value)]))
        else:
            bound[id(value)] = bind(value)
            inputs.append(GraphInput(bound=bound[id(value)]))
    places = {id(m): i for i, m in enumerate(markers) if isinstance(m, torch.Tensor)}
    held = [o for o in objects if not isinstance(o, (int, float, str, bytes, type(None)))]
    return tuple(inputs), rebuild_code(result, places, flat_inputs, bound, held)


def _marker(example: Any, place: int) -> Any:
    if isinstance(example, torch.Tensor):
        return torch.empty(0)
    # int() of a symbolic size would fix it to the hint, in the graph too.
    marker = SizeMarker(int(example.node.hint if hasattr(example, "node") else example))
    marker.place = place
    return marker
