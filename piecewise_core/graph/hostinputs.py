"""Tensors of the CPU in a program of a device: a timestep beside images on a GPU.

Kernels take a number that is on the CPU as an argument, and a static graph keeps the arguments of
its capture. What a program computes on the CPU is not in a graph at all. So all of that runs as
written at every call, between the pieces, and pieces are given its values on the device. What
needs nothing of the device runs before the first piece.

A number on the CPU takes part in arithmetic as it is, while one on the device is first rounded to
the dtype of what it is combined with. In 16 bits that shows, so such arithmetic is done in
float32 and rounded afterwards, which is what kernels do with a number. Nor do they divide by it:
they multiply by its inverse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.contexts import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.segments import is_item, is_size

__all__ = ["bring_to_device", "to_device"]

_ARITHMETIC: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
    operator.iadd: "add_", operator.isub: "sub_", operator.imul: "mul_", operator.itruediv: "div_",
    torch.add: "add", torch.sub: "sub", torch.mul: "mul", torch.div: "div",
    torch.true_divide: "div",
}  # fmt: skip
_METHODS = {
    **{name: name for name in ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")},
    "true_divide": "div",
    "true_divide_": "div_",
}
_SHORT = (torch.float16, torch.bfloat16)

Test = Callable[[torch.fx.Node], bool]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU's tensor on ``device``, without waiting for what the device still does."""
    if type(tensor) is torch.Tensor and tensor.dim() == 0:
        return torch.full((), tensor.item(), dtype=tensor.dtype, device=device)
    return tensor.to(device, non_blocking=True)


def bring_to_device(graph: torch.fx.Graph, is_splitting: Test) -> Test:
    """Give operations of a device the values of CPU tensors there; changes ``graph`` in place.

    Returns ``is_splitting``, true also of what runs on the CPU and of what brings values over.
    A program of one device stays as it is.
    """
    found = {device for node in graph.nodes for device in _devices(node)}
    devices = {device for device in found if device.type not in ("cpu", "meta")}
    if len(devices) != 1 or devices == found:
        return is_splitting
    host = _Host(graph, devices.pop())
    host.find()
    host.bring()
    if not host.nodes:
        return is_splitting
    host.hoist()
    return lambda node: node in host.nodes or is_splitting(node)


class _Host:
    """What of one graph runs on the CPU. ``nodes``: those, and those that bring values over."""

    def __init__(self, graph: torch.fx.Graph, device: torch.device) -> None:
        self._graph = graph
        self._device = device
        self._written = frozenset().union(*map(effects.writes, graph.nodes))
        self._on_cpu: set[torch.fx.Node] = set()
        self._brought: dict[torch.fx.Node, torch.fx.Node] = {}
        self.nodes: set[torch.fx.Node] = set()

    def find(self) -> None:
        """Note what is on the CPU at every call, what the CPU does, and what moves from there."""
        for node in self._graph.nodes:
            if node.op == "placeholder" and _is_on_cpu(node):
                self._on_cpu.add(node)
            elif node.op.startswith("call_") and not is_size(node) and self._is_host(node):
                self.nodes.add(node)
                if _is_on_cpu(node):
                    self._on_cpu.add(node)

    def _is_host(self, node: torch.fx.Node) -> bool:
        given = [n for n in node.all_input_nodes if _devices(n)]
        if _is_on_cpu(node):
            return not self._is_number(node)
        # A write to what is on the CPU, or a copy from there.
        return bool(given) and all(map(_is_on_cpu, given))

    def _is_number(self, node: torch.fx.Node) -> bool:
        """Whether a node is a literal number that kernels alone take, as an argument."""
        plain = node.target is torch.full and node.meta["example_value"].dim() == 0
        taken = all(user.op != "output" and not _is_on_cpu(user) for user in node.users)
        return plain and taken and not node.all_input_nodes and not storages(node) & self._written

    def bring(self) -> None:
        """Operations of the device take copies that are there."""
        depth = 0
        for node in list(self._graph.nodes):
            depth += is_autocast_enter(node) - is_autocast_exit(node)
            taken = [n for n in node.all_input_nodes if n in self._on_cpu]
            if not node.op.startswith("call_") or node in self.nodes or not taken:
                continue
            name = "" if depth else self._arithmetic(node, taken)
            for source in taken:
                node.replace_input_with(source, self._copy(source, node))
            if name:
                self._as_kernels_do(node, name)

    def _copy(self, source: torch.fx.Node, before: torch.fx.Node) -> torch.fx.Node:
        """The node of ``source``'s copy; the same for all, unless it is written to."""
        if source in self._brought:
            return self._brought[source]
        with self._graph.inserting_before(before):
            made = self._graph.call_function(to_device, (source, self._device))
        example = source.meta["example_value"]
        with example.fake_mode, torch.inference_mode():
            made.meta = {**before.meta, "example_value": example.to(self._device)}
        self.nodes.add(made)
        if not storages(source) & self._written:
            self._brought[source] = made
        return made

    def _arithmetic(self, node: torch.fx.Node, taken: list[torch.fx.Node]) -> str:
        """The method that ``node`` is, where what it gives shows how kernels take a number."""
        table: Mapping[Any, str] = _METHODS if node.op == "call_method" else _ARITHMETIC
        known = table.get(node.target)
        if known is None or len(node.args) != 2 or node.kwargs or len(taken) != 1:
            return ""
        example, number = node.meta.get("example_value"), taken[0].meta["example_value"]
        if not isinstance(example, torch.Tensor) or not example.is_floating_point():
            return ""
        if number.dim() or not all(isinstance(a, torch.fx.Node) and _devices(a) for a in node.args):
            return ""
        if example.dtype in _SHORT and not any(_dtype(n) == example.dtype for n in node.args):
            return ""  # a whole number is rounded to 16 bits first
        if known.startswith("div"):  # a number that is divided is rounded first
            return known if node.args[1] is taken[0] else ""
        return known if example.dtype in _SHORT and number.dtype not in _SHORT else ""

    def _as_kernels_do(self, node: torch.fx.Node, name: str) -> None:
        """Do the arithmetic of ``node`` in float32 at least, and times an inverse."""
        dtype = node.meta["example_value"].dtype
        short = dtype in _SHORT

        def make(method: str, *args: Any) -> torch.fx.Node:
            with self._graph.inserting_before(node):
                made = self._graph.call_method(method, args)
            fakes = [a.meta["example_value"] if isinstance(a, torch.fx.Node) else a for a in args]
            with node.meta["example_value"].fake_mode, torch.inference_mode():
                copied = method == "copy_"
                value = fakes[0] if copied else getattr(fakes[0], method)(*fakes[1:])
            made.meta = {**node.meta, "example_value": value}
            return made

        first, second = node.args
        operands = [a if a in self.nodes or not short else make("float", a) for a in node.args]
        method = name.removesuffix("_")
        if method == "div":
            wide = torch.float32 if short else dtype
            method, operands[1] = "mul", make("reciprocal", make("to", second, wide))
        made = make(method, *operands)
        if short:
            made = make("to", made, dtype)
        if name.endswith("_"):
            made = make("copy_", first, made)
        node.replace_all_uses_with(made)
        self._graph.erase_node(node)

    def hoist(self) -> None:
        """What needs nothing of the device goes first, unless its memory is written to."""
        nodes = [n for n in self._graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
        ready = {n for n in self._graph.nodes if n.op in ("placeholder", "get_attr")}
        staying: list[torch.fx.Node] = []
        for node in nodes:
            if self._may_go(node, ready):
                ready.add(node)
                if staying:
                    staying[0].prepend(node)
            else:
                staying.append(node)

    def _may_go(self, node: torch.fx.Node, ready: Container[torch.fx.Node]) -> bool:
        if not node.op.startswith("call_") or not all(n in ready for n in node.all_input_nodes):
            return False
        if is_size(node):
            return True
        touched = storages(node).union(*map(storages, node.all_input_nodes))
        plain = node.target is to_device or effects.is_pure(node) or effects.is_view(node)
        mine = node in self.nodes or (is_item(node) and node.args[0] in self.nodes)
        return mine and (plain or is_item(node)) and not touched & self._written


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta["example_value"]
    return value.dtype if value.dim() else None


def _devices(node: torch.fx.Node) -> set[torch.device]:
    found = values(node.meta.get("example_value"))
    return {v.device for v in found if isinstance(v, torch.Tensor)}


def _is_on_cpu(node: torch.fx.Node) -> bool:
    found = _devices(node)
    return bool(found) and all(d.type == "cpu" for d in found)
