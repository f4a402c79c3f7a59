"""Tensors that forward makes of Python data: made once, and inputs of pieces from then on.

``torch.tensor([...])``, ``x.new_tensor``, an index list. To a compiler such data is a constant
that its graph holds, and every compiler and cache has rules of its own for those; to a static
graph it is a copy from the host, which no capture allows. So the program holds it, and pieces are
given it like a weight. What is computed of nothing else, a literal that is moved to a device, is a
literal too.

Where the program writes to such memory, or returns it, it works on a copy: each run begins with
the literal's own value, and nobody else has its memory. Where all elements are one number the
program fills new memory with it instead, which compilers make no memory of at all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from piecewise_core.graph import effects
from piecewise_core.graph.contexts import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.evaluation import literal_value, value_of
from piecewise_core.graph.hostdata import bytes_of, number_of, on_device, settle
from piecewise_core.graph.memory import storages
from piecewise_core.torch_compat.fakes import FakeTensorMode

__all__ = ["lift_literals", "literals_of"]

_MOST_FILLED = 256
"""Elements of what is put together number by number."""


def lift_literals(
    module: torch.fx.GraphModule, is_splitting: Callable[[torch.fx.Node], bool]
) -> None:
    """Replace every literal of ``module`` in place.

    ``is_splitting``: operations that are given a literal as it is, not a piece that makes it.
    """
    _Lifting(module, is_splitting).run()
    for body in _held(module, torch.fx.GraphModule):
        _fill_in(body)


def literals_of(module: torch.fx.GraphModule) -> tuple[torch.Tensor, ...]:
    """The tensors that ``module`` itself holds."""
    return tuple(_held(module, torch.Tensor))


class _Lifting:
    """One graph's literals."""

    def __init__(
        self, module: torch.fx.GraphModule, is_splitting: Callable[[torch.fx.Node], bool]
    ) -> None:
        self._module = module
        self._graph = module.graph
        self._is_splitting = is_splitting
        # Those that nothing writes to and nobody is returned, by node.
        self._values: dict[torch.fx.Node, torch.Tensor] = {}
        self._known: dict[Any, torch.fx.Node] = {}

    def run(self) -> None:
        for node, autocast in _with_autocast(self._graph):
            settle(node, self._values)
            self._move(node)
            value = literal_value(node)
            if value is None and not autocast:
                value = value_of(node, self._values)
            if value is None:
                continue
            if storages(node) & self._apart:
                node.replace_all_uses_with(self._fresh(node, value))
                self._graph.erase_node(node)
            else:
                self._values[node] = value
        for node, value in reversed(self._values.items()):
            rest = [user for user in node.users if user not in self._values]
            if rest:
                new = self._given(node, value)
                node.replace_all_uses_with(new, lambda user: user not in self._values)
            if not node.users:
                self._graph.erase_node(node)

    @cached_property
    def _apart(self) -> frozenset[int]:
        """Memory that the program writes to or returns."""
        nodes = self._graph.nodes
        written = frozenset().union(*map(effects.writes, nodes))
        return written.union(*map(storages, self._graph.output_node().all_input_nodes))

    def _move(self, node: torch.fx.Node) -> None:
        """Lists and literals that ``node`` would bring from the host to a device, brought now."""
        args = on_device(node, self._values, self._hold)
        if args is not None:
            node.args = args

    def _fresh(self, node: torch.fx.Node, value: torch.Tensor) -> torch.fx.Node:
        """New memory with the literal's value at every run."""
        number = number_of(value)
        if number is not None:
            return _filled(node, number)
        held = self._hold(value)
        with self._graph.inserting_before(node):
            made = self._graph.call_method("clone", (held,))
        made.meta = dict(node.meta)
        return made

    def _given(self, node: torch.fx.Node, value: torch.Tensor) -> torch.fx.Node:
        """The literal, which nothing writes to."""
        number = number_of(value)
        if number is None or any(map(self._is_splitting, node.users)):
            return self._hold(value)
        return _filled(node, number)

    def _hold(self, value: torch.Tensor) -> torch.fx.Node:
        """The node of ``value``, which the program holds once however often it is written down."""
        key = (value.dtype, value.device, value.shape, value.stride(), bytes_of(value))
        if key not in self._known:
            name = next(
                name
                for name in (f"_pw_literal{i}" for i in range(len(self._graph.nodes) + 1))
                if not hasattr(self._module, name)
            )
            self._module.register_buffer(name, value)
            first = next(n for n in self._graph.nodes if n.op != "placeholder")
            with self._graph.inserting_before(first):
                node = self._graph.get_attr(name)
            node.meta["example_value"] = _fake_of(value, _mode_of(self._graph))
            self._known[key] = node
        return self._known[key]


def _with_autocast(graph: torch.fx.Graph) -> Iterator[tuple[torch.fx.Node, bool]]:
    """Every node, and whether autocast decides what it computes in."""
    depth = 0
    for node in list(graph.nodes):
        depth += is_autocast_enter(node) - is_autocast_exit(node)
        yield node, depth > 0


def _filled(node: torch.fx.Node, number: Any) -> torch.fx.Node:
    """A node before ``node`` that fills memory like ``node``'s with ``number``."""
    example = node.meta["example_value"]
    with node.graph.inserting_before(node):
        made = node.graph.call_function(
            torch.full,
            (tuple(example.shape), number),
            {"dtype": example.dtype, "device": example.device},
        )
    made.meta = dict(node.meta)
    return made


def _fill_in(module: torch.fx.GraphModule) -> None:
    """The body of a higher-order operator, which is given nothing: its literals are filled in."""
    for node in list(module.graph.nodes):
        value = literal_value(node)
        if value is not None and value.numel() <= _MOST_FILLED and not value.is_complex():
            node.replace_all_uses_with(_spelled(node, value))
            module.graph.erase_node(node)
    module.recompile()
    for body in _held(module, torch.fx.GraphModule):
        _fill_in(body)


def _spelled(node: torch.fx.Node, value: torch.Tensor) -> torch.fx.Node:
    """Nodes before ``node`` that put ``value`` together of numbers."""
    number = number_of(value)
    if number is not None:
        return _filled(node, number)
    with node.graph.inserting_before(node):
        like: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
        parts = [
            node.graph.call_function(torch.full, ((1,), number), like)
            for number in value.reshape(-1).tolist()
        ]
        joined = node.graph.call_function(torch.cat, (parts,))
        return node.graph.call_method("view", (joined, *value.shape))


def _held(module: torch.fx.GraphModule, kind: type) -> list[Any]:
    """What of ``kind`` the nodes of ``module`` name, each once."""
    found: dict[int, Any] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        held = operator.attrgetter(str(node.target))(module)
        if isinstance(held, kind):
            found[id(held)] = held
    return list(found.values())


def _mode_of(graph: torch.fx.Graph) -> FakeTensorMode:
    """The mode of the trace's fake tensors."""
    for node in graph.nodes:
        mode = getattr(node.meta.get("example_value"), "fake_mode", None)
        if mode is not None:
            return mode  # type: ignore[no-any-return]
    return FakeTensorMode()


def _fake_of(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode, torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
