"""Hand out events behind calls, with no lock held; nothing per call where nobody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.frontend.recorded import RecordedFunction
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import Setup
from piecewise_core.store.protocol import Store

__all__ = ["recorded_of", "session_of"]


class _TellingSession(Session):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.tell()


class _TellingFunction(RecordedFunction):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.tell()


def session_of(fn: Callable[..., Any], setup: Setup, front: Store | None = None) -> Session:
    """The session of ``fn``."""
    return (Session if setup.config.on_event is None else _TellingSession)(fn, setup, front)


def recorded_of(
    fn: Callable[..., Any], setup: Setup, module: torch.nn.Module | None
) -> RecordedFunction:
    """What ``pw.record`` gives for ``fn``."""
    kind = RecordedFunction if setup.config.on_event is None else _TellingFunction
    return kind(fn, setup, module)
