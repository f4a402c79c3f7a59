"""Operators from outside torch that return something else than their fake kernels promise.

A compiler believes the fake kernel of what is in its piece, and so does the tracer. An operator
that lies is cut out: then it runs as written, and its results are looked at at every call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.opfacts import is_foreign
from piecewise_core.graph.piecegraph import piece_graph
from piecewise_core.graph.rehearsal import Rehearsal, can_run
from piecewise_core.graph.segments import Segment, is_size
from piecewise_core.graph.split import Matcher
from piecewise_core.graph.strides import at, differ
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat import pytree

__all__ = ["Contracts"]

logger = logging.getLogger(__name__)

_SIZES = (16, 1, 2, 3, 5, 8, 24, 33, 64)
"""Sizes that operators are tried at: kernels are chosen by size, and by what divides it."""

_OWN = 8
"""So many of the sizes that the model compiles or captures besides: each takes a run."""


class Contracts:
    """Tries every distinct operator once per region, and says once which of them lie.

    On zeros first, then on random numbers, at sizes of ours and at ``sizes`` of the model's.
    """

    def __init__(self, sizes: Sequence[Sizes] = ()) -> None:
        self._sizes = tuple(sizes)[:_OWN]
        self._reported: set[str] = set()

    def __call__(self, traced: Traced, matcher: Matcher) -> Matcher:
        """``matcher``, which accepts what lies too."""
        lying = set(self._lying(traced, matcher))
        if not lying:
            return matcher
        return lambda node: node in lying or matcher(node)

    def _lying(self, traced: Traced, matcher: Matcher) -> Iterator[torch.fx.Node]:
        known: dict[str, str] = {}
        for node in traced.graph.graph.nodes:
            if not is_foreign(node.target) or matcher(node):
                continue
            key = _key(node)
            if key not in known:
                known[key] = _lie(traced, node, self._sizes)
                self._report(node, known[key])
            if known[key]:
                yield node

    def _report(self, node: torch.fx.Node, lie: str) -> None:
        name = op_name(node)
        if lie and name not in self._reported:
            self._reported.add(name)
            logger.warning(
                "operator %s (%s) %s; it is cut out and runs as written: correct its register_fake",
                name,
                source_of(node) or "no source line",
                lie,
            )


def _lie(traced: Traced, node: torch.fx.Node, own: Sequence[Sizes]) -> str:
    """How ``node`` returns something else than promised; "" where it does not, or cannot tell."""
    run = Segment(True, (), [node])
    if not can_run(run):
        return ""
    try:
        made = piece_graph(traced.graph, traced.symbols, len(traced.box.ranges), run, [node])
    except Exception as error:
        logger.debug("%s is not tried: %s: %s", op_name(node), type(error).__name__, error)
        return ""
    for place, sizes in enumerate(_tried(traced, own)):
        rehearsal = Rehearsal(traced, sizes, noise=place > 0)
        try:
            found = rehearsal.run(made)
            lie = "" if found is None else _broken(node, found[0], rehearsal)
        except Exception as error:  # it may need what only a real call has
            logger.debug("%s is not tried: %s: %s", op_name(node), type(error).__name__, error)
            continue
        if lie:
            return f"{lie} at sizes {tuple(sizes)}"
    return ""


def _tried(traced: Traced, own: Sequence[Sizes]) -> Iterator[Sizes]:
    ranges = traced.box.ranges
    seen: set[Sizes] = set()
    for place in range(len(_SIZES)):
        wanted = (_SIZES[(place + dim) % len(_SIZES)] for dim in range(len(ranges)))
        sizes = tuple(r.nearest(size) for r, size in zip(ranges, wanted, strict=True))
        if sizes not in seen:
            seen.add(sizes)
            yield sizes
    for sizes in own:
        if sizes in traced.box and sizes not in seen:
            seen.add(sizes)
            yield sizes


def _broken(node: torch.fx.Node, real: Any, rehearsal: Rehearsal) -> str:
    """What of ``real`` differs from what was promised, or ""."""
    promised = [v for v in pytree.tree_leaves(node.meta["example_value"]) if _is_tensor(v)]
    found = [v for v in pytree.tree_leaves(real) if _is_tensor(v)]
    if len(found) != len(promised):
        return f"returns {len(found)} tensors where its fake kernel promises {len(promised)}"
    for one, fake in zip(found, promised, strict=True):
        shape, strides = (
            [at(s, rehearsal.numbers) for s in some] for some in (fake.shape, fake.stride())
        )
        if one.dtype is not fake.dtype or list(one.shape) != shape:
            return (
                f"returns {one.dtype} {tuple(one.shape)} where its fake kernel promises "
                f"{fake.dtype} {tuple(shape)}"
            )
        if differ(shape, one.stride(), strides):
            return f"returns strides {one.stride()} where its fake kernel promises {tuple(strides)}"
    return ""


def _key(node: torch.fx.Node) -> str:
    """Equal for calls of one operator on tensors that are alike."""
    parts: Sequence[Any] = [node.target, *pytree.tree_leaves((node.args, dict(node.kwargs)))]
    return " ".join(map(_text, parts))


def _text(part: Any) -> str:
    if not isinstance(part, torch.fx.Node):
        return repr(part)
    value = part.meta.get("example_value")
    if is_size(part) or not isinstance(value, torch.Tensor):
        return repr(value)
    return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
