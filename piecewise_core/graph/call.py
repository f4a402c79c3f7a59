"""The traced call: examples of a structure's tensors, and the function that Dynamo traces."""

from __future__ import annotations

import itertools
import linecache
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.config import Dim
from piecewise_core.graph.input_mutation import changeable
from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf, leaves
from piecewise_core.ranges import Box, Sizes
from piecewise_core.torch_compat import dynamo

__all__ = ["constants", "entry", "example"]

_serial = itertools.count()


def example(leaf: TensorLeaf, dims: Sequence[Dim], cell: Box, hint: Sizes) -> torch.Tensor:
    """A tensor of the leaf's layout at the hinted sizes, its named dims marked dynamic."""
    place = {d.name: i for i, d in enumerate(dims)}
    sizes = [
        hint[place[leaf.dims[i].name]] if i in leaf.dims else size
        for i, size in enumerate(leaf.sizes)
    ]
    room = [sizes[d] + leaf.gaps for d in leaf.order]
    ordered = torch.empty(room, dtype=leaf.dtype, device=leaf.device)
    back = sorted(range(len(leaf.order)), key=leaf.order.__getitem__)
    made = ordered.permute(back)
    if leaf.gaps:
        made = made[tuple(slice(size) for size in sizes)]
    for i, named in leaf.dims.items():
        span = cell.ranges[place[named.name]]
        if not span.is_single_size():
            dynamo.mark_dynamic(made, i, span.start, span.end)
    return made


def constants(structure: Structure) -> list[Any]:
    """The values of the structure's constants, in order."""
    nodes = [leaf for node in structure.arguments.values() for leaf in leaves(node)]
    return [leaf.value for leaf in nodes if isinstance(leaf, Constant)]


def entry(structure: Structure) -> Callable[..., Any]:
    """``entry(fn, objects, *tensors)``: checks that same-named dims are equal, calls ``fn``.

    ``objects``: the constants, in order. It returns the result, the changeable arguments
    after the call, and a tensor that nobody needs.
    """
    source, names = _Writer().source(structure)
    # A name of its own, known to linecache: Dynamo reports source lines by it.
    filename = f"<piecewise entry {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    namespace: dict[str, Any] = {"torch": torch, **names}
    exec(compile(source, filename, "exec"), namespace)
    made: Callable[..., Any] = namespace["entry"]
    weakref.finalize(made, linecache.cache.pop, filename, None).atexit = False
    return made


class _Writer:
    def __init__(self) -> None:
        self._names: dict[str, Any] = {
            "_pw_trace": dynamo.comptime,
            "_pw_trace_numbers": dynamo.numbers_are_data,
        }
        self._constants: Iterator[int] = itertools.count()

    def source(self, structure: Structure) -> tuple[str, dict[str, Any]]:
        """The function's source, and the names it uses."""
        checks = []
        for dim in structure.dims:
            places = [f"t{leaf.index}.shape[{i}]" for leaf, i in structure.where(dim)]
            checks += [f"  torch._check({a} == {places[0]})" for a in places[1:]]
        tensors = "".join(f", t{i}" for i in range(len(structure.tensors)))
        made = [f"  a_{name} = {self._node(n)}" for name, n in structure.arguments.items()]
        after = "".join(f"a_{name}, " for name in changeable(structure))
        # Dynamo compiles no graph, and shows no side effects, where there is no tensor work.
        call = f"  return fn({', '.join(self._arguments(structure))}), ({after}), torch.zeros(())"
        first = "  _pw_trace(_pw_trace_numbers)"
        lines = [f"def entry(fn, objects{tensors}):", first, *checks, *made, call, ""]
        return "\n".join(lines), self._names

    def _arguments(self, structure: Structure) -> Iterator[str]:
        for name, parameter in structure.signature.parameters.items():
            text = f"a_{name}"
            if parameter.kind is parameter.VAR_POSITIONAL:
                yield f"*{text}"
            elif parameter.kind is parameter.VAR_KEYWORD:
                yield f"**{text}"
            elif parameter.kind is parameter.KEYWORD_ONLY:
                yield f"{name}={text}"
            else:
                yield text

    def _node(self, node: Node) -> str:
        """The expression that rebuilds one argument from ``objects`` and the tensors."""
        if isinstance(node, Constant):
            return f"objects[{next(self._constants)}]"
        if isinstance(node, TensorLeaf):
            return f"t{node.index}"
        return self._container(node)

    def _container(self, node: Container) -> str:
        children = [self._node(child) for child in node.children]
        if node.is_mapping:
            keys = [self._key(k) for k in node.keys]
            items = ", ".join(f"{k}: {c}" for k, c in zip(keys, children, strict=True))
            return f"{{{items}}}" if node.kind is dict else f"{self._name(node.kind)}({{{items}}})"
        items = "".join(f"{c}, " for c in children)
        if node.kind is list:
            return f"[{items}]"
        return f"({items})" if node.kind is tuple else f"{self._name(node.kind)}({items})"

    def _key(self, key: Any) -> str:
        return repr(key) if type(key) in (str, int) else self._name(key)

    def _name(self, value: Any) -> str:
        name = f"_pw_k{len(self._names)}"
        self._names[name] = value
        return name
