"""One run of what is to be captured, before anything is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from piecewise_core.capture.restoring import restored, same_stream
from piecewise_core.capture.source import Source, recorder_of
from piecewise_core.plugins import Declared
from piecewise_core.ranges import Sizes

__all__ = ["try_once"]


def try_once(
    platform: Declared,
    pool: Any,
    stream: Any,
    source: Source,
    sizes: Sizes,
    *,
    whole: bool,
    side: Any = None,
) -> Source | None:
    """Run ``source`` at ``sizes`` on ``stream`` and wait for it. Raises what it raises.

    Random state and the user's tensors are as before. Returns what to capture without another run,
    where that is possible; ``pool``, ``whole`` and ``side`` are as of ``capture``.
    """
    recorder = recorder_of(platform, pool, stream, source, whole=whole, side=side)
    plan = source.build(recorder)
    lasts = False
    try:
        with (
            same_stream(platform),
            restored(platform, source.written, recorder),
            torch.inference_mode(),
        ):
            platform.device.synchronize()
            with platform.device.stream(stream):
                recorder.rehearse(lambda: plan(source.inputs, source.bound, *sizes))
            platform.device.synchronize()
        lasts = recorder.lasting
    finally:
        if not lasts:
            recorder.forget()
    return replace(source, rehearsed=(recorder, plan)) if lasts else None
