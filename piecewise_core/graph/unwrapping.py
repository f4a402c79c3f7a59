"""Operators on tensors that wrap others, written out as what they do with the tensors inside.

Dynamo leaves them in its graph as they were called, with a wrapper among the arguments. Each is run
by itself on wrappers around tensors without data; what its class calls then takes its place. All
other operators stay as they are, so that splitting ops and rewrites find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from piecewise_core.errors import PiecewiseError, TraceFailed, UnsupportedOutput
from piecewise_core.graph.cleaning import fake_of
from piecewise_core.graph.contexts import functorch_units, is_autocast_enter, is_autocast_exit
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.wrapped import (
    Later,
    Value,
    Wrapped,
    called,
    is_wrapped,
    leaves_of,
    node_of,
    with_early,
    wrapped_in,
)
from piecewise_core.graph.wrappers import is_wrapper, keeps_more, leaves, rebuilt
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.pytree import tree_flatten, tree_unflatten
from piecewise_core.torch_compat.targets import enter_autocast, exit_autocast

__all__ = ["unwrap"]

_MOST = 1024
"""Elements of a tensor that a wrapper's class makes of numbers."""


def unwrap(module: torch.fx.GraphModule) -> None:
    """Give ``module`` the tensors inside of wrappers in place of them.

    Each placeholder of a wrapper becomes one for each of its `leaves`, in their order. Raises
    TraceFailed and UnsupportedOutput.
    """
    nodes = list(module.graph.nodes)
    if any(is_wrapper(v) for n in nodes for v in values(n.meta.get("example_value"))):
        _Unwrapping(module).run(nodes)


class _Unwrapping:
    def __init__(self, module: torch.fx.GraphModule) -> None:
        self._module = module
        self._graph = module.graph
        self._values: dict[torch.fx.Node, Value] = {}
        self._gone: list[torch.fx.Node] = []
        self._moved: frozenset[int] = frozenset()

    def run(self, nodes: Sequence[torch.fx.Node]) -> None:
        whole = {n for unit in functorch_units(nodes) if len(unit) > 1 for n in unit}
        with ExitStack() as regions:
            opened: dict[torch.fx.Node, Any] = {}
            for node in nodes:
                if is_autocast_enter(node):
                    opened[node] = enter_autocast(*node.args, **node.kwargs)
                    regions.callback(_close, opened, node)
                elif is_autocast_exit(node):
                    _close(opened, node.args[0])
                else:
                    self._take(node, node in whole)
        for node in reversed(self._gone):
            self._graph.erase_node(node)
        self._module.recompile()

    def _take(self, node: torch.fx.Node, in_functorch: bool) -> None:
        if node.op == "placeholder":
            if is_wrapper(node.meta.get("example_value")):
                self._values[node] = self._opened(node)
                self._gone.append(node)
        elif not any(used in self._values for used in node.all_input_nodes) and not _makes(node):
            if self._moved & storages(node) and node.op in ("call_function", "call_method"):
                node.meta["example_value"] = fake_of(node)
        elif node.op == "output":
            found = next(v for v in map(self._values.get, node.all_input_nodes) if v is not None)
            kind = next(type(w.like).__name__ for w in wrapped_in(found))
            raise UnsupportedOutput(
                f"the result holds a {kind}, a tensor that wraps others, which no graph gives; "
                "return a plain tensor made of it"
            )
        elif in_functorch or node.op not in ("call_function", "call_method"):
            raise self._refusal(node, "it is called inside of torch.func")
        else:
            self._write_out(node)

    def _opened(self, node: torch.fx.Node) -> Wrapped:
        """One placeholder for each tensor in the wrapper that ``node`` stands for."""
        like = node.meta["example_value"]
        found = []
        with self._graph.inserting_before(node):
            for i, leaf in enumerate(leaves(like)):
                made = self._graph.placeholder(f"{node.name}_{i}")
                made.meta = {**node.meta, "example_value": leaf}
                found.append(made)
        return Wrapped(like, found)

    def _write_out(self, node: torch.fx.Node) -> None:
        """Put what ``node`` does with the tensors inside in its place."""
        given = {used: self._values.get(used, used) for used in node.all_input_nodes}
        like: Any = node.meta.get("example_value")
        if is_wrapper(like) and keeps_more(like):
            if len(node.users) > 1:  # what one of them writes, another would not see
                raise self._refusal(node, "several take it before it is reduced")
            self._replace(node, Later(like, node, given))
            return
        first = with_early(given)
        given = {n: v for n, v in first.items() if not isinstance(v, Later)}
        flat, shape = tree_flatten(list(given.values()))
        plain = [n for value in flat for n in (value.nodes if is_wrapped(value) else [value])]
        results: list[Any] = []

        def run(*tensors: Any) -> list[Any]:
            left = iter(tensors)
            made = [rebuilt(v.like, left) if is_wrapped(v) else next(left) for v in flat]
            before = [leaves(t) for t in made if is_wrapper(t)]
            args = dict(zip(given, tree_unflatten(made, shape), strict=True))
            for early in first:
                if early not in args:
                    args[early] = called(early, args)
            result = called(node, args)
            after = [leaves(t) for t in made if is_wrapper(t)]
            if [[*map(id, a)] for a in before] != [[*map(id, a)] for a in after]:
                raise _Replaced
            results[:] = tree_flatten(result)
            return [leaf for t in results[0] for leaf in leaves_of(t)]

        examples = [n.meta.get("example_value") for n in plain]
        if any(example is None for example in examples):
            raise self._refusal(node, "it runs a function that it is given")
        try:
            # A lambda: make_fx counts the parameters of a bound forward wrongly. In the mode: what
            # classes make of numbers by setting items has no mode but the one that is active.
            with next((v.fake_mode for v in examples if isinstance(v, FakeTensor)), nullcontext()):
                traced = make_fx(lambda *a: run(*a), _allow_non_fake_inputs=True)(*examples)
        except PiecewiseError:
            raise
        except Exception as error:
            raise self._refusal(node, f"{type(error).__name__}: {error}") from error
        made = iter(self._grafted(node, traced, plain))
        parts = [
            Wrapped(t, [next(made) for _ in leaves(t)]) if is_wrapper(t) else node_of(t, made)
            for t in results[0]
        ]
        self._replace(node, tree_unflatten(parts, results[1]))

    def _replace(self, node: torch.fx.Node, value: Value) -> None:
        self._gone.append(node)
        if isinstance(value, torch.fx.Node):
            self._moved |= storages(node) - storages(value)
            node.replace_all_uses_with(value)
        else:
            self._moved |= storages(node)
            self._values[node] = value

    def _grafted(
        self, node: torch.fx.Node, traced: torch.fx.GraphModule, plain: Sequence[torch.fx.Node]
    ) -> list[Any]:
        """The nodes of ``traced`` before ``node``, on ``plain``; what they return."""
        copies: dict[torch.fx.Node, Any] = {}
        given = iter(plain)
        origin = {k: v for k, v in node.meta.items() if k != "example_value"}
        with self._graph.inserting_before(node):
            for each in traced.graph.nodes:
                if each.op == "placeholder":
                    copies[each] = next(given)
                elif each.op == "output":
                    return list(map_arg(each.args[0], copies.__getitem__))
                elif each.op == "get_attr":
                    copies[each] = self._literal(node, each, getattr(traced, str(each.target)))
                else:
                    made = copies[each] = self._graph.node_copy(each, copies.__getitem__)
                    made.meta = {**origin, "example_value": each.meta.get("val")}
        raise AssertionError("a graph without output")

    def _literal(self, node: torch.fx.Node, made: torch.fx.Node, held: Any) -> torch.fx.Node:
        """A tensor that the wrapper's class makes of numbers, made so."""
        fresh = {user.target for user in made.users} <= {torch.ops.aten.lift_fresh_copy.default}
        if not (fresh and isinstance(held, torch.Tensor) and held.numel() <= _MOST):
            raise self._refusal(node, "its class brings in what no wrapper holds")
        kind: dict[str, Any] = {"dtype": held.dtype, "device": held.device}
        result = self._graph.call_function(torch.tensor, (held.tolist(),), kind)
        copied = next(iter(made.users)).meta["val"]
        result.meta = {**node.meta, "example_value": copied}
        return result

    def _refusal(self, node: torch.fx.Node, why: str) -> TraceFailed:
        inside = (self._values.get(used) for used in node.all_input_nodes)
        kinds = dict.fromkeys(type(w.like).__name__ for value in inside for w in wrapped_in(value))
        place = source_of(node)
        return TraceFailed(
            f"{op_name(node)} of a {', '.join(kinds)}{', at ' + place if place else ''}, cannot be "
            f"written out as what it does with the tensors inside: {why}. Convert the model's "
            "tensor to a plain one, or compile a part without it"
        )


def _makes(node: torch.fx.Node) -> bool:
    """Whether ``node`` gives a wrapper that can be written out; nested tensors stay as they are."""
    found = values(node.meta.get("example_value"))
    return node.op != "output" and any(is_wrapper(v) and not v.is_nested for v in found)


class _Replaced(Exception):
    """A wrapper holds another tensor than before."""

    def __str__(self) -> str:
        return "it puts another tensor into one that it is given"


def _close(opened: dict[torch.fx.Node, Any], node: Any) -> None:
    if node in opened:
        exit_autocast(opened.pop(node))
