"""How splitting ops' results really lie in memory, written into the traced graph.

A fake kernel promises strides, and may be wrong: what torch says of attention is not always what
the kernel does that it picks on the device. What follows a cut is compiled for its inputs'
strides, so it had better be compiled for the real ones.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch

from piecewise_core.config import Dim
from piecewise_core.errors import TraceFailed
from piecewise_core.graph.contexts import is_autocast_enter, is_autocast_exit
from piecewise_core.graph.effects import reshapes, written_by_layout
from piecewise_core.graph.guards import Guard, collect, region
from piecewise_core.graph.memory import storages, tensor_inputs, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.rehearsal import Rehearsal
from piecewise_core.graph.segments import Segment
from piecewise_core.graph.strides import at, differ, fake_like, fitted
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.ranges import Box
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.dynamo import oblivious_sizes
from piecewise_core.torch_compat.fakes import FakeTensor, enable_python_dispatcher
from piecewise_core.torch_compat.storages import memory_key

__all__ = ["Layouts"]

logger = logging.getLogger(__name__)


class Layouts:
    """Learns real layouts, trace after trace. What a splitting op does is reported once.

    ``dims``: of the model. ``cuts``: whether a region may be cut where working it out anew asks for
    sizes; else somebody else sees to it that what was asked holds. ``auto``: whether anywhere.
    """

    def __init__(self, dims: Sequence[Dim], *, cuts: bool = True, auto: bool = False) -> None:
        self._dims = dims
        self._auto = auto
        self._cuts = cuts
        self._reported: set[str] = set()

    def __call__(self, traced: Traced, runs: Sequence[Segment]) -> Traced | None:
        """Write real strides into ``traced``; None where all are as promised.

        ``runs``: of its graph. When what follows cannot be worked out anew, all stays as it was:
        calls then bring results to the layout promised. Size 1 may come to be another region's: a
        view there is a copy elsewhere. Raises TraceFailed where the model asked for a wrong layout.
        """
        nodes = traced.graph.graph.nodes
        if not any(run.splitting for run in runs) or any(map(reshapes, nodes)):
            return None
        learning = _Learning(traced, runs)
        try:
            with oblivious_sizes():
                learning.walk()
            box = self._box(traced, learning.asked())
            changed = learning.changed
        except Exception as error:
            logger.debug("real strides are not used: %s: %s", type(error).__name__, error)
            changed = False
        for node, real, promised in learning.found:
            if traced.reads_layout:
                raise TraceFailed(_misled(node, real, promised))
            if changed:
                self._report(node, real, promised)
        if not changed:
            learning.undo()
            return None
        return replace(traced, box=box)

    def _box(self, traced: Traced, asked: Sequence[Guard]) -> Box:
        """The sizes of ``traced`` for which what was ``asked`` holds. Raises SizeBranch."""
        box, symbols = traced.box, traced.symbols
        if not written_by_layout(traced.graph.graph):
            asked = [guard for guard in asked if not _of_small_sizes(guard)]
        if not asked or not self._cuts:
            return box
        free: Sequence[Sequence[int]] | None = None if self._auto else ((),) * len(self._dims)
        return region(asked, symbols, box, hints(box), self._dims, free).box

    def _report(self, node: torch.fx.Node, real: Sequence[int], promised: Sequence[int]) -> None:
        name = op_name(node)
        if name not in self._reported:
            self._reported.add(name)
            logger.info(
                "splitting op %s (%s) returns strides %s where its fake kernel promises %s; what "
                "follows is compiled for the real layout",
                name,
                source_of(node) or "no source line",
                tuple(real),
                tuple(promised),
            )


class _Learning:
    """One walk through one graph. ``undo`` takes back what it changed.

    ``found``: node, real and promised strides of each result that lies otherwise than promised.
    """

    def __init__(self, traced: Traced, runs: Sequence[Segment]) -> None:
        self._traced = traced
        self._begins = {run.nodes[0]: run for run in runs if run.splitting}
        self._rehearsal = Rehearsal(traced)
        self._before: dict[torch.fx.Node, Any] = {}
        self._real: dict[torch.fx.Node, Any] = {}
        self._autocast: dict[torch.fx.Node, torch.autocast] = {}
        self.found: list[tuple[torch.fx.Node, Sequence[int], Sequence[int]]] = []
        self._asked_before = {guard.expr for guard in self._guards()}

    def walk(self) -> None:
        """Go through the graph in order, correct what differs, work out anew what depends on it."""
        try:
            for node in self._traced.graph.graph.nodes:
                self._switch(node)
                if node in self._begins:
                    run = self._begins[node]
                    found = self._rehearsal.results(run)
                    self._real.update(zip(run.nodes, found or (), strict=False))
                if any(used in self._before for used in node.all_input_nodes):
                    self._put(node, self._again(node))
                if node in self._real:
                    self._correct(node)
        finally:
            for opened in reversed(self._autocast.values()):
                opened.__exit__(None, None, None)

    @property
    def changed(self) -> bool:
        """Whether any value is another than it was."""
        return bool(self._before)

    def asked(self) -> list[Guard]:
        """What was asked of sizes to work values out anew, beyond what the trace asked."""
        return [g for g in self._guards() if g.expr not in self._asked_before]

    def _guards(self) -> list[Guard]:
        """What was asked of sizes so far."""
        found = (v for n in self._traced.graph.graph.nodes for v in values(_example(n)))
        mode = next((v.fake_mode for v in found if isinstance(v, FakeTensor)), None)
        return [] if mode is None or mode.shape_env is None else collect(mode.shape_env)

    def undo(self) -> None:
        """Put every value back."""
        for node, value in self._before.items():
            node.meta["example_value"] = value

    def _put(self, node: torch.fx.Node, value: Any) -> None:
        self._before.setdefault(node, _example(node))
        node.meta["example_value"] = value

    def _switch(self, node: torch.fx.Node) -> None:
        """Enter and leave autocast as the graph does."""
        if is_autocast_enter(node):
            device_type, dtype, enabled, cache = node.args
            opened = torch.autocast(device_type, dtype, enabled, cache)  # type: ignore[arg-type]
            opened.__enter__()  # type: ignore[no-untyped-call]
            self._autocast[node] = opened
        elif is_autocast_exit(node):
            self._autocast.pop(node.args[0]).__exit__(None, None, None)  # type: ignore[arg-type]

    def _again(self, node: torch.fx.Node) -> Any:
        """The node's value over values that have changed. Raises what its operation raises."""
        if node.op == "output":
            return _example(node)
        args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), self._value)
        mode = next(v.fake_mode for v in values((args, kwargs)) if isinstance(v, FakeTensor))
        with mode, torch.inference_mode(), enable_python_dispatcher():
            if node.op == "call_method":
                receiver, *rest = args
                return getattr(receiver, str(node.target))(*rest, **kwargs)
            if node.op == "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            return self._traced.graph.get_submodule(str(node.target))(*args, **kwargs)

    def _value(self, node: torch.fx.Node) -> Any:
        if node.op != "get_attr" or _example(node) is not None:
            return node.meta["example_value"]
        return operator.attrgetter(str(node.target))(self._traced.graph)

    def _correct(self, node: torch.fx.Node) -> None:
        """Put real strides in place of those of results that are in memory of their own."""
        given = frozenset().union(*map(storages, tensor_inputs(node)))
        leaves, spec = pytree.tree_flatten(_example(node))
        real = pytree.tree_leaves(self._real[node])
        memory = [memory_key(v) for v in leaves if isinstance(v, torch.Tensor)]
        if len(real) != len(leaves) or storages(node) & given or len(set(memory)) < len(memory):
            return
        found = [self._corrected(node, f, r) for f, r in zip(leaves, real, strict=True)]
        if any(a is not b for a, b in zip(found, leaves, strict=True)):
            self._put(node, pytree.tree_unflatten(found, spec))

    def _corrected(self, node: torch.fx.Node, fake: Any, real: Any) -> Any:
        if not isinstance(fake, torch.Tensor) or not isinstance(real, torch.Tensor):
            return fake
        numbers = self._rehearsal.numbers
        shape, promised = ([at(s, numbers) for s in sizes] for sizes in (fake.shape, fake.stride()))
        if fake.dtype != real.dtype or shape != list(real.shape):
            return fake  # the first call says so
        if not differ(shape, real.stride(), promised) or fake.is_conj() or fake.is_neg():
            return fake
        strides = fitted(fake.shape, shape, real.stride())
        if strides is None:
            return fake
        self.found.append((node, real.stride(), promised))
        return fake_like(fake, strides)


def _of_small_sizes(guard: Guard) -> bool:
    """Whether a guard only tells sizes 0 and 1 from others.

    They choose the stride of a dim that has at most one index, or a view over a copy of it.
    """
    return not (guard.expr.atoms(sympy.Integer) - {sympy.S.Zero, sympy.S.One})


def _misled(node: torch.fx.Node, real: Sequence[int], promised: Sequence[int]) -> str:
    return (
        f"the model asks how tensors lie in memory, and splitting op {op_name(node)} "
        f"({source_of(node) or 'no source line'}) returns strides {tuple(real)} where its fake "
        f"kernel promises {tuple(promised)}, which tracing went by; correct its register_fake, "
        "call .contiguous() on what it returns, or take the question out of the model"
    )


def _example(node: torch.fx.Node) -> Any:
    return node.meta.get("example_value")
