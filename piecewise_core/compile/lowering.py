"""A piece in ATen operators, and the rewrites that change it before a compiler has it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from piecewise_core.rewrites import Rewrites
from piecewise_core.torch_compat import dynamo
from piecewise_core.torch_compat.fakes import (
    FakeTensorMode,
    TracingContext,
    enable_python_dispatcher,
)

__all__ = ["is_lowered", "lower", "retraced_in", "rewritten"]

logger = logging.getLogger(__name__)

_LOWERED = "piecewise_lowered"
"""Entry of a module's ``meta``: it is in ATen operators already."""


@contextlib.contextmanager
def retraced_in(mode: FakeTensorMode) -> Iterator[None]:
    """What a piece is traced again in, over examples of ``mode``: no gradients, no size guessed."""
    with (
        dynamo.oblivious_sizes(),
        torch.inference_mode(False),
        torch.no_grad(),
        enable_python_dispatcher(),
        mode,
    ):
        yield


def is_lowered(graph: torch.fx.GraphModule) -> bool:
    """Whether ``graph`` is one that ``lower`` made."""
    return _LOWERED in graph.meta


def lower(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> torch.fx.GraphModule:
    """The graph in ATen operators, which Inductor's caches can key and save.

    Torch functions and tensor methods are what its caches refuse. A graph that cannot be
    lowered by itself is given back as it is.
    """
    mode = TracingContext.get().fake_mode
    if mode is None or is_lowered(graph):
        return graph
    try:
        with retraced_in(mode):
            # A lambda: make_fx counts the parameters of a bound forward wrongly.
            traced = make_fx(lambda *args: graph(*args), _allow_non_fake_inputs=True)(*inputs)
    except Exception as error:
        logger.debug("compiled without lowering first: %s", error)
        return graph
    traced.meta[_LOWERED] = True
    return traced


def rewritten(
    graph: torch.fx.GraphModule, inputs: Sequence[Any], rewrites: Rewrites
) -> torch.fx.GraphModule:
    """``graph``, which is given up, changed by a piece's rewrites in their order.

    ``inputs``: examples in the tracing context around. A graph that cannot be lowered is not
    changed by what wants it so.
    """
    for rewrite in rewrites.piece:
        rewrite(graph)
    if not rewrites.lowered:
        return graph
    lowered = lower(graph, inputs)
    if lowered is not graph:
        for rewrite in rewrites.lowered:
            rewrite(lowered)
    return lowered
