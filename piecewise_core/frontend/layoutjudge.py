"""Whether a model takes another path for an input that lies otherwise in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from piecewise_core.config import Config
from piecewise_core.errors import PiecewiseError
from piecewise_core.frontend.building import Unready
from piecewise_core.graph.countingtrace import trace_counting
from piecewise_core.graph.effects import goes_by_memory, writes
from piecewise_core.graph.lying import Lying
from piecewise_core.graph.memory import storages
from piecewise_core.graph.origins import Bind
from piecewise_core.graph.paths import same_path
from piecewise_core.graph.segments import is_size
from piecewise_core.graph.structure import Container, Node, Structure, TensorLeaf
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Box
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["LayoutJudge"]

logger = logging.getLogger(__name__)


class LayoutJudge:
    """Traces a model twice, for the two layouts, and compares; once per layout and region.

    For models whose code mentions layouts only: most of those ask for something else.
    """

    def __init__(self, fn: Callable[..., Any], structure: Structure, config: Config) -> None:
        self._fn = fn
        self._structure = structure
        self._config = config
        self._known: dict[tuple[Box, int, Lying], bool] = {}

    def matters(
        self,
        boxes: Sequence[Box],
        leaf: TensorLeaf,
        lying: Lying,
        binding: Callable[[], Bind],
        *,
        may_trace: bool,
    ) -> bool:
        """Whether the model does something else in one of ``boxes`` when ``leaf`` lies so.

        ``binding``: gives what takes a tensor of the model and returns its place. ``may_trace``:
        else what is not known yet counts as yes. Raises Unready where that has to be traced.
        """
        if lying.repeats:
            return True
        for box in boxes:
            key = box, leaf.index, lying
            if key not in self._known:
                if not may_trace:
                    return True
                differs = partial(self._differs, box, leaf, lying, binding())
                raise Unready(("layout", *key), partial(self._learn, key, differs))
            if self._known[key]:
                return True
        return False

    def _learn(self, key: tuple[Box, int, Lying], differs: Callable[[], bool]) -> None:
        self._known[key] = differs()

    def _differs(self, box: Box, leaf: TensorLeaf, lying: Lying, bind: Bind) -> bool:
        other = replace(leaf, order=lying.order, gaps=lying.gaps)
        try:
            with compile_lock:
                one, two = (
                    trace_counting(self._fn, traced, self._config, box, bind, assume=False)
                    for traced in (self._structure, _with(self._structure, other))
                )
                found = one.box != two.box or _written(one) != _written(two)
                found = found or any(map(goes_by_memory, one.graph.graph.nodes))
                found = found or not same_path(one, two, {}) or _together(one) != _together(two)
        except PiecewiseError as error:
            logger.debug("%r in another layout cannot be traced: %s", leaf.path, error)
            return True
        says = "takes another path" if found else "does the same"
        logger.info('argument "%s" lies otherwise: the model %s', leaf.path, says)
        return found


def _written(traced: Traced) -> list[int]:
    """Places of the graph's inputs that it writes to."""
    nodes = traced.graph.graph.nodes
    memory = frozenset().union(*map(writes, nodes))
    placeholders = [n for n in nodes if n.op == "placeholder"]
    return [place for place, node in enumerate(placeholders) if storages(node) & memory]


def _together(traced: Traced) -> set[frozenset[int]]:
    """Which values lie in one memory, of those in memory that is written to."""
    nodes = [n for n in traced.graph.graph.nodes if not is_size(n)]
    memory = frozenset().union(*map(writes, nodes))
    places = [storages(node) for node in nodes]
    return {frozenset(i for i, found in enumerate(places) if m in found) for m in memory}


def _with(structure: Structure, leaf: TensorLeaf) -> Structure:
    """``structure`` with ``leaf`` in place of the tensor of its index."""
    tensors = tuple(leaf if t.index == leaf.index else t for t in structure.tensors)
    arguments = {name: _put(node, leaf) for name, node in structure.arguments.items()}
    return replace(structure, arguments=arguments, tensors=tensors)


def _put(node: Node, leaf: TensorLeaf) -> Node:
    if isinstance(node, Container):
        return replace(node, children=tuple(_put(child, leaf) for child in node.children))
    return leaf if isinstance(node, TensorLeaf) and node.index == leaf.index else node
