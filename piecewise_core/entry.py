"""The ``torch.compile(model, backend="piecewise", ...)`` entry point.

Dynamo traces and guards here; splitting, ranges, compilation and static graphs are ours. Installed
through torch's ``torch_dynamo_backends`` entry-point group, so no import of piecewise is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.frontend.door.registry import door

__all__ = ["backend"]


def backend(
    graph: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph in pieces, and serve it by static graphs where there are any.

    ``options``: Config fields by name, ``platform`` and ``mode``. Dims are the graph's own symbols,
    named after the inputs that carry them (``x[0]``); with one of them, endpoints are plain ints.
    ``mode``: torch's names, as far as they mean something here. Raises ConfigError for what is
    unknown.
    """
    return door.take(graph, options, mode)


backend.reset = door.reset  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it
