"""Capturing one size without ever leaving a mess behind."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from piecewise_core.capture.blame import blamer, failed_as
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.copied_outputs import copied_out
from piecewise_core.capture.dispatcher_bypass import Kernels
from piecewise_core.capture.opsteps import Step
from piecewise_core.capture.recorder import Recorder
from piecewise_core.capture.restoring import abandon, restored, same_stream
from piecewise_core.capture.source import Plan, Source, recorder_of
from piecewise_core.capture.weak import WeakTensors, writable
from piecewise_core.capture.whole import WholeRecorder
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory, PlatformFault
from piecewise_core.graph.garbage import no_collection
from piecewise_core.plugins import Declared, raised
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat.graphs import modes_as_before

__all__ = ["capture"]

logger = logging.getLogger(__name__)


def capture(
    platform: Declared,
    pool: Any,
    stream: Any,
    source: Source,
    sizes: Sizes,
    *,
    whole: bool = False,
    tight: bool = False,
    side: Any = None,
) -> CapturedPlan:
    """Capture one size into ``pool``, or leave everything as it was.

    ``stream``: the same for all that share ``pool``: allocators reuse memory per stream only, and
    libraries keep a workspace per stream. ``whole``: the forward as one graph, splitting ops
    inside; else a graph per compilable piece. ``tight``: memory is short, so what the rehearsal
    used goes back before the capture takes as much; an allocator cannot do that during one.
    ``side``: another stream for forks, the same for all that share ``pool``; None for none.

    Raises CaptureFailed naming the piece and what to do, OutOfGraphMemory when memory ran out.
    Stream, ``gc``, random state and the user's tensors are as before in every case.
    """
    _refuse_impossible(platform, stream, (*source.inputs, *source.bound))
    if source.rehearsed is not None:
        recorder, plan = source.rehearsed
        fits = recorder.pool is pool and isinstance(recorder, WholeRecorder) == whole
        fits = fits and (recorder.streams is None) == (side is None or not whole)
        if fits and not recorder.capturing:
            try:
                return _captured(platform, recorder, plan, source, sizes, tight=tight)
            except OutOfGraphMemory:
                raise
            except CaptureFailed as error:
                if isinstance(error.__cause__, PlatformFault):  # the driver's own methods
                    raise
                # What needs a run just before may work with one.
                logger.debug("%s; tried again", error)
        source = replace(source, rehearsed=None)
    recorder = recorder_of(platform, pool, stream, source, whole=whole, side=side)
    plan = source.build(recorder)
    return _captured(platform, recorder, plan, source, sizes, tight=tight)


@modes_as_before()
def _captured(
    platform: Declared,
    recorder: Recorder,
    plan: Plan,
    source: Source,
    sizes: Sizes,
    *,
    tight: bool,
) -> CapturedPlan:
    pool, stream = recorder.pool, recorder.stream
    live_before = platform.live_bytes(pool)
    try:
        steps, direct, results, kept = _made(platform, recorder, plan, source, sizes, tight=tight)
    except BaseException as error:
        abandon(platform, recorder, stream)
        recorder.forget()
        # What keeps the error, a log handler say, must not keep the capture's memory.
        traceback.clear_frames(error.__traceback__)
        traceback.clear_frames(raised(error).__traceback__)
        failed = failed_as(platform, recorder.current, sizes, error)
        if failed is error:
            raise
        raise failed from error
    made = tuple(recorder.made)
    recorder.forget()
    if platform.weak_ref is not None:
        _tell_survivors(platform.live_bytes(pool) - live_before, sizes)
    held, graphs = tuple(kept.values()), tuple(recorder.graphs)
    stage, before, replays = source.stage, platform.before_replay, recorder.sequence.replays
    blame = blamer(platform, sizes, replays)
    made_of = sizes, stage, steps, direct, results, graphs, held, before, blame, made, replays
    forks = 0 if recorder.streams is None else recorder.streams.forks
    return CapturedPlan(*made_of, at=source.at, forks=forks)


def _made(
    platform: Declared, recorder: Recorder, plan: Plan, source: Source, sizes: Sizes, *, tight: bool
) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Any, ...], dict[int, torch.Tensor]]:
    """Steps, the same past the dispatcher, results, and what the graphs read.

    A frame of its own, which an error that is kept must not keep with the outputs in it.
    """
    outputs = _recorded(platform, recorder, plan, source, sizes, tight=tight)
    kept = {id(t): t for t in (*source.inputs, *source.bound, *recorder.external)}
    own = source.inputs if source.owned else ()
    return *_bound(platform, recorder, outputs, kept, own), kept


def _recorded(
    platform: Declared,
    recorder: Recorder,
    plan: Plan,
    source: Source,
    sizes: Sizes,
    *,
    tight: bool,
) -> tuple[Any, ...]:
    """Run the plan to warm up, unless it did, and to capture; its outputs, not computed."""
    device = platform.device

    def run() -> tuple[Any, ...]:
        return plan(source.inputs, source.bound, *sizes)

    with (
        same_stream(platform),
        restored(platform, source.written, recorder) as put_back,
        torch.inference_mode(),
    ):
        # What the caller's stream still has to do for the inputs, the side stream must see.
        device.synchronize()
        with device.stream(recorder.stream), platform.capture_context():
            if source.rehearsed is None:
                recorder.rehearse(run)
                put_back()
                device.synchronize()
            if tight:
                platform.empty_cache()
            recorder.capturing, recorder.like = True, source.like
            with no_collection():
                outputs: tuple[Any, ...] = recorder.record(run)
        device.synchronize()
    return outputs


def _refuse_impossible(platform: Declared, stream: Any, tensors: Sequence[torch.Tensor]) -> None:
    """Raise CaptureFailed where nothing can be captured, or nothing of ``tensors``."""
    if platform.graphs is None:
        raise CaptureFailed("the platform has no static graphs; set graph_mode='none'")
    if platform.graphs.is_capturing():
        raise CaptureFailed(
            "a capture is already running on this stream; call warmup() outside of it"
        )
    # Kernels go to their tensors' device: a capture on another one would record none of them.
    here = getattr(stream, "device", None)
    for tensor in tensors:
        there = tensor.device
        if here is not None and there.type == here.type and there.index != here.index:
            raise CaptureFailed(
                f"a tensor of the model or call is on {there}, and graphs would be captured on "
                f"{here}, the current device; make {there} current before the first capture, "
                f"torch.{there.type}.set_device({there.index})"
            )


def _bound(
    platform: Declared,
    recorder: Recorder,
    outputs: Sequence[Any],
    kept: dict[int, torch.Tensor],
    own: Sequence[torch.Tensor],
) -> tuple[tuple[Step, ...], tuple[Step, ...], tuple[Any, ...]]:
    """Steps, the same past the dispatcher, and outputs, over memory that only ``kept`` keeps."""
    if any(isinstance(o, torch.Tensor) and o.is_quantized for o in outputs):
        raise CaptureFailed(
            "a result is a quantized tensor, which no graph can give again; return .dequantize()"
        )
    weak = recorder.weak or WeakTensors(writable)

    def release(tensor: torch.Tensor) -> torch.Tensor:
        return kept[id(tensor)] if id(tensor) in kept else weak.of(tensor)

    # Operators write to these in whatever mode calls come in.
    with torch.inference_mode(False):
        steps, direct = recorder.sequence.steps(
            platform.replayer, release, Kernels(), strict=recorder.strict
        )
        results = tuple(release(o) if isinstance(o, torch.Tensor) else o for o in outputs)
    copies, results = copied_out(results, own)
    return steps + copies, direct + copies, results


def _tell_survivors(nbytes: int, sizes: Sizes) -> None:
    """Warn of memory that somebody keeps although the plan refers to its own only weakly."""
    if nbytes > 0:
        logger.warning(
            "capturing sizes %s left %d bytes of the graphs' pool in use: an operator or the model "
            "keeps a tensor that it made during capture, a library's workspace perhaps, and "
            "replays overwrite it. Allocate it before capture (call the operator once), or add "
            "the operator to splitting_ops",
            sizes,
            nbytes,
        )
