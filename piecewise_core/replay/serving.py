"""One call by replay: stage, replay, write back, cut, rebuild."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.copied_outputs import copier
from piecewise_core.capture.dispatcher_bypass import modes_active
from piecewise_core.capture.output_ownership import IN_USE, OutputOwnership
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.ranges import Sizes
from piecewise_core.replay.overlap import Overlap
from piecewise_core.replay.padding import Padding
from piecewise_core.replay.replayable import Entry, Facts
from piecewise_core.tally import Tally

__all__ = ["serving"]


def serving(
    plan: CapturedPlan,
    facts: Facts,
    plans: CapturedPlans,
    tally: Tally,
    raw: Callable[..., Sequence[Any]],
    otherwise: Entry,
    *,
    buffers: Sequence[torch.Tensor],
    overlap: Overlap | None,
    padding: Padding | None,
) -> Entry:
    """The entry of a captured size. Everything is looked up now and nothing at the call.

    ``raw``: picks a call's own tensors. ``otherwise``: serves calls that cannot be replayed.
    ``buffers``: what the program writes to in place of the caller's tensors; empty where those are
    what graphs read.
    """
    back = [(place, buffers[place]) for place in facts.mutated] if buffers else []
    entry = _replaying(plan, facts, plans.callers, tally, raw, otherwise, back, padding)
    if overlap is not None:
        entry = _unless(overlap, entry, otherwise)
    memory = plans.memory
    if not memory.shared and memory.limit is None:
        return entry

    def gone(t: Any, b: Any) -> bool:  # the plan may go while the entry stays
        return plans.get(plan.sizes) is not plan

    return _unless(gone, entry, otherwise)


def _unless(asked: Callable[[Any, Any], bool], entry: Entry, otherwise: Entry) -> Entry:
    """``entry``, but for calls of which ``asked(tensors, bound)`` is true."""

    def asking(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        return (otherwise if asked(t, b) else entry)(t, b, sizes, args, kwargs)

    return asking


def _replaying(
    plan: CapturedPlan,
    facts: Facts,
    callers: OutputOwnership,
    tally: Tally,
    raw: Callable[..., Sequence[Any]],
    otherwise: Entry,
    back: Sequence[tuple[int, torch.Tensor]],
    padding: Padding | None,
) -> Entry:
    rebuild, uses_inputs = facts.rebuild, facts.uses_inputs
    prepare = plan.stage if plan.before is None else plan.prepare
    captured, copies = plan.sizes, copier(plan.outputs, plan.held)

    def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        if callers.owner != get_ident() and not callers.admit():
            return otherwise(t, b, sizes, args, kwargs)
        if sizes != captured and (padding is None or padding.left or padding.calls.asks):
            before = otherwise if padding is None else padding.first(sizes)
            if before is not None:
                return before(t, b, sizes, args, kwargs)
        # ``plan.prepare`` and ``plan.replay``, without frames for them.
        step: Any = None
        owner, callers.owner = callers.owner, IN_USE
        try:
            prepare(t, sizes)
            for step in plan.steps if modes_active() else plan.direct:
                step()
        except Exception as error:
            plan.reraise(step, error)
        finally:
            callers.owner = owner
        outs: Any = plan.outputs
        build = rebuild
        tally[sizes] += 1
        for place, buffer in back:
            t[place].copy_(buffer)
        if sizes != captured and padding is not None:
            outs, build = padding.cut(outs, sizes)
        if callers.strict:
            outs = callers.handed(outs)
        if callers.cloning:
            outs = copies(outs)
        return build(outs, raw(*args, **kwargs) if uses_inputs else t, b)

    if padding is not None:
        padding.replayed = entry
    return entry
