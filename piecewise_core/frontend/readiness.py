"""Wait until no call has to wait any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from piecewise_core.errors import ConfigError
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.precompile import capture_all, trace_all
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.status import Status
from piecewise_core.frontend.statuses import session_status

__all__ = ["wait_for", "wait_until_ready"]

_EVERY = 0.02
"""Seconds between two looks."""


def wait_until_ready(session: Session, timeout: float | None) -> bool:
    """Whether the session was ready within ``timeout`` seconds.

    In background mode what is not compiled yet is asked for now, and captured here at the end;
    otherwise this waits for calls, or ``warmup()``, of other threads.
    """
    background = session.shared.background
    asked = False

    def look() -> Status:
        nonlocal asked
        if background is None or not session.forms or session.shared.sealed == "error":
            return session_status(session)
        if not asked:
            _ask_for_all(session)
            asked = True
        status = session_status(session)
        left = {target.kind for target in status.targets if target.waits}
        if left == {"replayed"} and session.config.inputs != "static":
            capture_all(session.shared, session.forms)
            status = session_status(session)
        return status

    return wait_for(look, timeout)


def _ask_for_all(session: Session) -> None:
    shared = session.shared
    if shared.background is None:
        return
    for form in list(session.forms):
        for _ in trace_all(form):
            pass
        for region in list(form.regions):
            for box in region.boxes:
                if not region.is_ready(box) and not region.is_asked(box):
                    ask = partial(region.request, box, shared.background)
                    shared.builds.have(Unready(("ask", region, box), ask))


def wait_for(look: Callable[[], Status], timeout: float | None) -> bool:
    """Look until it is ready; whether it was within ``timeout`` seconds. Raises ConfigError."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout >= 0):
        raise ConfigError(
            f"wait_ready(timeout={timeout!r}): give seconds, 0 or more, or None to wait for ever"
        )
    ends = None if timeout is None else time.monotonic() + timeout
    while not look().ready:
        left = _EVERY if ends is None else ends - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_EVERY, left))
    return True
