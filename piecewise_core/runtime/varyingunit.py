"""A piece whose sizes depend on data, as one operation of a plan: it runs as written.

While it was traced torch took some facts of those sizes for granted, and Python saw ranks and
sizes of what was made. Each call is held to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from piecewise_core.capture.loose import Loose
from piecewise_core.errors import SizeBranch
from piecewise_core.graph.closing import closing
from piecewise_core.graph.names import op_name
from piecewise_core.graph.split import Piece, Program
from piecewise_core.graph.varying import line_of, varies, varies_itself, why_varying
from piecewise_core.runtime.laid import Laid
from piecewise_core.torch_compat import functorch

__all__ = ["LooseUnit", "VaryingUnit"]


class VaryingUnit:
    """Runs ``piece``, given the sizes of all dims and the values of its inputs.

    Returns the values of its outputs. ``laid``: per output what brings it to the layout promised,
    or None for one whose own sizes depend on data. ``varying``: why a static graph cannot hold it.
    """

    def __init__(self, program: Program, piece: Piece, laid: Sequence[Laid | None]) -> None:
        if piece.graph is None:
            raise ValueError("a varying piece has a graph")
        first = next(filter(varies, piece.nodes))
        self.varying = why_varying(first)
        self.__name__ = op_name(first)
        self._dims = len(program.traced.box.ranges)
        self._loose = [place for place, one in enumerate(piece.outputs) if varies_itself(one)]
        self._laid = [(place, one) for place, one in enumerate(laid) if one is not None]
        self._run: Callable[..., Sequence[Any]] = closing(_held(program, piece.graph))

    def __call__(self, *args: Any) -> list[Any]:
        found = list(self._run(*args))
        for place, laid in self._laid:
            found[place] = laid(found[place], *args[: self._dims])
        return found

    def recorded(self) -> LooseUnit:
        """The same for the steps of a captured plan."""
        return LooseUnit(self, self._loose)


class LooseUnit:
    """``unit`` between graphs: what varies is Loose, among its arguments and its results."""

    def __init__(self, unit: VaryingUnit, loose: Sequence[int]) -> None:
        self.varying, self.__name__ = unit.varying, unit.__name__
        self._unit = unit
        self._loose = loose

    def __call__(self, *args: Any) -> list[Any]:
        found = self._unit(*(a.value if isinstance(a, Loose) else a for a in args))
        for place in self._loose:
            found[place] = Loose(found[place])
        return found


def _held(program: Program, module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """``module``, which also checks what was taken for granted."""
    graph = torch.fx.Graph()
    made: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in module.graph.nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
        if node.target is torch.ops.aten._assert_scalar.default:
            made[node].target = _asserting(node)
        elif node.op.startswith("call_") and (check := _check(program, node)) is not None:
            graph.call_function(check, (made[node],))
    return torch.fx.GraphModule(module, graph)


def _asserting(node: torch.fx.Node) -> Callable[..., None]:
    told = str(node.args[1]).partition(" for expression ")[2].partition(" on node ")[0]
    where = line_of(node)

    def assert_size(holds: Any, message: str = "") -> None:
        if not holds:
            _refuse(told or message, where)

    return assert_size


def _check(program: Program, node: torch.fx.Node) -> Callable[[Any], None] | None:
    """What compares a node's value with what Python saw of it; None where there is nothing."""
    example = node.meta.get("example_value")
    if not isinstance(example, torch.Tensor) or functorch.is_functorch_wrapped_tensor(example):
        return None
    if example.layout is not torch.strided or program.reshaped:
        return None
    traced = program.traced
    rank, where = example.dim(), line_of(node)
    sizes = [(i, n) for i, n in enumerate(example.shape) if type(n) is int]
    strides = [(i, n) for i, n in enumerate(example.stride()) if type(n) is int]
    strides = strides if traced.reads_layout else []
    whole = _is_contiguous(example) if traced.asks_layout else None
    name = op_name(node)

    def check_sizes(value: Any) -> None:
        shape = value.shape
        if len(shape) != rank or any(shape[i] != n for i, n in sizes):
            traced_as = tuple(str(s) for s in example.shape)
            _refuse(f"{name} gives shape {traced_as}, here {tuple(shape)}", where)
        if strides and any(shape[i] > 1 and value.stride(i) != n for i, n in strides):
            _refuse(f"{name} gives another layout", where)
        if whole is not None and value.is_contiguous() != whole:
            _refuse(f"{name} gives a {'' if whole else 'not '}contiguous tensor", where)

    return check_sizes


def _is_contiguous(example: torch.Tensor) -> bool | None:
    """What Python was told, if it asked; None where data decides: then asking was refused."""
    try:
        return example.is_contiguous()
    except GuardOnDataDependentSymNode:
        return None


def _refuse(what: str, where: str) -> NoReturn:
    raise SizeBranch(
        f"the model's sizes depend on data, and while it was traced this was taken for granted, "
        f"which does not hold for this call: {what}{f', at {where}' if where else ''}. Keep what "
        "depends on such a size in tensors, or compile a submodule without it"
    )
