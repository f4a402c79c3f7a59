"""Dynamo's guards on floats; known in 2.11 to 2.13, no fallback.

They compare by ``==``, which takes -0.0 for 0.0: a call goes on with the sign of the first one. A
backend is called before its frame's guards are made, and may add to them.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.torch_compat.lookup import needed

with needed():
    from torch._guards import TracingContext

__all__ = ["guard_zero_signs"]

_BY_EQUALITY = ("CONSTANT_MATCH", "EQUALS_MATCH")


def guard_zero_signs(graph: torch.fx.Graph) -> None:
    """Have Dynamo tell zeros of either sign apart wherever it fixed a float in what it traced.

    Does nothing where Dynamo is not at work.
    """
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    sources = [g.originating_source for g in guards if g.create_fn_name() in _BY_EQUALITY]
    given = (n.meta.get("grapharg") for n in graph.nodes if n.op == "placeholder")
    # Floats that it lets vary come as tensors, and are fixed by us.
    sources += [a.source for a in given if a is not None and a.pass_arg_as_tensor]
    for source in sources:
        guards.add(source.make_guard(_sign_match))


def _sign_match(builder: Any, guard: Any) -> None:
    """Make a guard, as methods of Dynamo's GuardBuilder do; none where the value is no zero."""
    value = builder.get(guard)
    if not _holds_zero(value):
        return
    signs = repr(value)  # of a tuple or a complex number too

    def alike(now: Any) -> bool:
        return now is value or repr(now) == signs

    manager = builder.get_guard_manager(guard)
    manager.add_lambda_guard(alike, [f"{guard.name} has the signs of {signs}"], guard.user_stack)


def _holds_zero(value: Any) -> bool:
    if type(value) is tuple:
        return any(map(_holds_zero, value))
    if type(value) is complex:
        return not (value.real and value.imag)
    return type(value) is float and value == 0
