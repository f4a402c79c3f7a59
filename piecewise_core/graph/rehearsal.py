"""Run a splitting run for real, on inputs made up for it, to see how its results lie in memory."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.graph.canonical import canonical_form
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.names import op_name
from piecewise_core.graph.piecegraph import PieceGraph, piece_graph
from piecewise_core.graph.segments import Segment
from piecewise_core.graph.split import Piece
from piecewise_core.graph.strides import at
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.modules import forward_of
from piecewise_core.torch_compat.operators import HigherOrderOperator

__all__ = ["Rehearsal", "can_run"]

logger = logging.getLogger(__name__)

_MOST = 1 << 29
"""Bytes of inputs that are made up; who reads more is not rehearsed."""

_TOGETHER = ("c10d", "_c10d_functional", "_dtensor", "symm_mem", "all_reduce", "all_gather",
             "reduce_scatter", "all_to_all", "broadcast", "barrier")  # fmt: skip
"""In names of operators that wait for other processes, which may not run them now."""


class Rehearsal:
    """Runs each distinct splitting run of one trace once, at one choice of sizes.

    Inputs are zeros of the traced layouts, so nothing of the user's is read or written; the random
    state is put back. ``sizes``: of all dims. ``noise``: whether floats are random numbers instead;
    whole numbers may be indices. ``numbers``: the same by symbol.
    """

    def __init__(self, traced: Traced, sizes: Sizes = (), *, noise: bool = False) -> None:
        self._traced = traced
        self._noise = noise
        self.sizes = sizes or tuple(
            r.nearest(16 + 8 * place) for place, r in enumerate(traced.box.ranges)
        )
        self.numbers: Mapping[sympy.Symbol, int] = {
            symbol: self.sizes[place] for symbol, place in traced.symbols.items()
        }
        self._known: dict[str, Sequence[Any] | None] = {}

    def results(self, run: Segment) -> Sequence[Any] | None:
        """What each node of ``run`` gave, in order; None where it cannot be rehearsed."""
        if not can_run(run):
            return None
        traced, dims = self._traced, len(self.sizes)
        try:
            made = piece_graph(traced.graph, traced.symbols, dims, run, run.nodes)
            piece = Piece(0, False, tuple(run.nodes), (), made.graph, made.dims, made.inputs)
            key = canonical_form(piece).key
            if key not in self._known:
                self._known[key] = self.run(made)
        except Exception as error:
            # It may need what only a real call has. What it returns then is looked at in calls.
            logger.debug(
                "%s is not rehearsed: %s: %s", op_name(run.nodes[0]), type(error).__name__, error
            )
            return None
        return self._known[key]

    def run(self, made: PieceGraph) -> Sequence[Any] | None:
        """What ``made`` gives at these sizes; None where its inputs are too large to make up.

        Raises what its operators raise.
        """
        fakes = [node.meta["example_value"] for node in made.inputs]
        shapes = [([at(s, self.numbers) for s in f.shape], f) for f in fakes]
        if sum(math.prod(shape) * fake.element_size() for shape, fake in shapes) > _MOST:
            return None
        devices = {fake.device for fake in fakes if fake.device.type != "cpu"}
        with torch.inference_mode(), _as_it_was(devices):
            inputs = [self._made_up(fake) for fake in fakes]
            # Called as a module it would print what is raised, which is nobody's failure here.
            found: Sequence[Any] = forward_of(made.graph)(*self.sizes, *inputs)
        return found

    def _made_up(self, fake: torch.Tensor) -> torch.Tensor:
        shape, stride = (
            [at(s, self.numbers) for s in some] for some in (fake.shape, fake.stride())
        )
        reach = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        count = 0 if 0 in shape else 1 + reach
        made = torch.zeros(count, dtype=fake.dtype, device=fake.device)
        if self._noise and fake.is_floating_point():
            made.copy_(torch.randn(count, device=fake.device))
        return made.as_strided(shape, stride)


def can_run(run: Segment) -> bool:
    """Whether a run may run at another time than the model's, by itself, on zeros."""
    if run.varies:
        return False
    for node in run.nodes:
        if node.op not in ("call_function", "call_method"):
            return False
        if isinstance(node.target, HigherOrderOperator):
            return False  # which branch runs decides how the result lies
        if any(word in op_name(node) for word in _TOGETHER):
            return False
        tensors = [v for v in values(node.meta.get("example_value")) if isinstance(v, torch.Tensor)]
        if any(map(functorch.is_functorch_wrapped_tensor, tensors)):
            return False
    return any(map(storages, run.nodes))


@contextlib.contextmanager
def _as_it_was(devices: set[torch.device]) -> Iterator[None]:
    """Random numbers and torch's choice of attention kernels are afterwards as before."""
    cuda = torch.backends.cuda
    switches: list[tuple[Callable[[Any], Any], Callable[[], Any]]] = [
        (cuda.enable_flash_sdp, cuda.flash_sdp_enabled),
        (cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled),
        (cuda.enable_math_sdp, cuda.math_sdp_enabled),
        (cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled),
        (torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode),
    ]
    before = [(switch, now, now()) for switch, now in switches]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device in devices:
            module = getattr(torch, device.type)
            stack.callback(module.set_rng_state, module.get_rng_state(device), device)
        try:
            yield
        finally:
            for switch, now, was in before:
                if now() != was:
                    switch(was)
