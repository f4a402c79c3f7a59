"""Code of a graph that closes what it opened, also where it raises.

As written, ``with`` sees to that. A graph has the two ends as operations of their own, and an error
between them would leave the thread inside: of vmap, of autocast, and every later call with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.graph.contexts import functorch_units, is_autocast_enter, is_switch
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.modules import forward_of
from piecewise_core.torch_compat.state import switches_as_now

__all__ = ["closing"]


def closing(graph: torch.fx.GraphModule) -> Callable[..., Any]:
    """What runs ``graph``."""
    run = forward_of(graph)
    nodes = list(graph.graph.nodes)
    opens = any(len(unit) > 1 for unit in functorch_units(nodes))
    if not opens and not any(is_autocast_enter(node) or is_switch(node) for node in nodes):
        return run

    @functools.wraps(run)
    def closed(*args: Any) -> Any:
        close, restore = functorch.levels_as_now(), switches_as_now()
        try:
            return run(*args)
        except BaseException as error:
            close()
            restore()
            for mode in reversed(_open(error, run.__code__)):
                mode.__exit__(None, None, None)
            raise

    return closed


def _open(error: BaseException, code: Any) -> list[torch.autocast]:
    """The autocast regions that generated code had entered: it lets go of those it has left."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not code:
        trace = trace.tb_next
    values = () if trace is None else trace.tb_frame.f_locals.values()
    return [value for value in values if isinstance(value, torch.autocast)]
