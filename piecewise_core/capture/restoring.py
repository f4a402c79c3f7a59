"""What a capture must leave as it was, whatever happens: stream, tensors, random state, device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.capture.recorder import Recorder
from piecewise_core.plugins import Declared, error_text

__all__ = ["abandon", "restored", "same_stream"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def same_stream(platform: Declared) -> Iterator[None]:
    """Tell of a platform that leaves its side stream current: the caller's work would go there."""
    before = platform.device.current_stream()
    try:
        yield
    finally:
        after = platform.device.current_stream()
        if after != before:
            logger.warning(
                "%s: DeviceRuntime.stream left %s current in place of %s; work of this thread now "
                "goes there, so make the old stream current again",
                platform.by,
                after,
                before,
            )


@contextlib.contextmanager
def restored(
    platform: Declared, tensors: Sequence[torch.Tensor], recorder: Recorder
) -> Iterator[Callable[[], None]]:
    """Put back what warm-up and capture write to the user's tensors, and numbers they draw.

    Gives what does so for the tensors alone, for between the two: a place in a cache that a run
    moves on must not be beyond the end at the next one.
    """
    generator = recorder.generator
    before = [t.clone() for t in tensors]
    state = None if generator is None else generator.get_state()

    def put_back() -> None:
        with torch.inference_mode():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)

    try:
        yield put_back
    except BaseException:
        abandon(platform, recorder, recorder.stream)
        with contextlib.suppress(Exception):
            # The side stream may still be writing what is about to be put back.
            platform.device.synchronize()
        raise
    finally:
        if state is not None:
            generator.set_state(state)
        put_back()
        with torch.inference_mode():
            recorder.put_back()


def abandon(platform: Declared, recorder: Recorder, stream: Any) -> None:
    """Leave capture mode and free what was captured so far; never raises."""
    if recorder.streams is not None:
        recorder.streams.leave()
    with _logged(), platform.device.stream(stream):
        if recorder.graphs and platform.graphs.is_capturing():
            platform.abort_capture(recorder.graphs[-1])
    for graph in reversed(recorder.graphs):
        with _logged():
            platform.graphs.reset(graph)
    recorder.graphs.clear()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Log an error of cleaning up: the one that made it necessary is raised."""
    try:
        yield
    except Exception as error:
        logger.info("while leaving a failed capture: %s", error_text(error))
