"""What is captured, and which graphs its own may share executables with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from piecewise_core.capture.buffers import Stage
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.recorder import Recorder
from piecewise_core.capture.twostreams import TwoStreams
from piecewise_core.capture.whole import WholeRecorder
from piecewise_core.errors import OutOfGraphMemory
from piecewise_core.plugins import Declared
from piecewise_core.ranges import Sizes

__all__ = ["Plan", "Source", "beside", "recorder_of", "source_of"]

Plan = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Source:
    """What is captured: a plan to be built over wrapped pieces and operators.

    ``build(recorder)``: the plan, with the recorder's ``piece(label, run)`` around every piece and
    its ``op(fn)`` around every splitting op. ``recorder``: the kind to capture with. ``inputs``:
    static tensors. ``bound``: the model's. ``written``: tensors of the user that the program
    writes to, put back after capture. ``owned``: whether ``inputs`` are buffers that nobody else
    knows: results that lie in them are copied out. ``rehearsed``: a recorder that had its first run
    already, and its plan. ``at``: where the model's tensors lie. ``like``: as of a Recorder.
    """

    build: Callable[[Any], Plan]
    inputs: tuple[torch.Tensor, ...]
    bound: tuple[torch.Tensor, ...]
    written: tuple[torch.Tensor, ...]
    stage: Stage
    recorder: Callable[[Declared, Any, Any], Recorder] = Recorder
    owned: bool = False
    rehearsed: tuple[Recorder, Plan] | None = None
    at: tuple[int, ...] = ()
    like: Sequence[Any] | None = None


def recorder_of(
    platform: Declared, pool: Any, stream: Any, source: Source, *, whole: bool, side: Any = None
) -> Recorder:
    """What records ``source``; ``whole``: as one graph, its forks on ``side`` too, unless None."""
    kind = WholeRecorder if whole else source.recorder
    recorder = kind(platform, pool, stream)
    recorder.generator = platform.rng() if platform.rng is not None else None
    recorder.like = source.like
    if whole and side is not None:
        recorder.streams = TwoStreams(platform, stream, side)
    return recorder


def source_of(make: Callable[[], Source], sizes: Sizes) -> Source:
    """``make()``, for ``sizes``. Raises OutOfGraphMemory."""
    try:
        return make()
    except torch.OutOfMemoryError as error:
        raise OutOfGraphMemory(
            f"sizes {sizes} cannot be captured: there is no memory for their inputs: "
            f"{error}. Capture fewer or smaller sizes (capture_sizes)"
        ) from error


def beside(source: Source, plans: Mapping[Sizes, CapturedPlan], *, alone: bool) -> Source:
    """``source``, its graphs to be like those of the last of ``plans``, if they share at all.

    They do only where this process is ``alone``: what libraries of collectives keep for a graph may
    go with it, and an executable that was brought up to date does not hold on to that.
    """
    if source.like is None or not alone:
        return replace(source, like=None)
    last = list(plans.values())[-1:]
    return replace(source, like=last[0].graphs) if last else source
