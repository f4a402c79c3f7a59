"""What happens to a model beside its calls, for who asked to be told (``Config.on_event``)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from piecewise_core.errors import ConfigError

__all__ = ["KEPT_EVENTS", "Event", "EventKind", "Events", "check_listener", "log", "name_of"]

KEPT_EVENTS = 2000
"""Events of one model that ``explain()`` can show."""

logger = logging.getLogger(__name__)

EventKind = Literal[
    "traced",
    "compiled",
    "loaded",
    "captured",
    "dropped",
    "missed",
    "retraced",
    "wrong",
    "evicted",
    "released",
    "drifted",
    "refused",
]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    ``kind``: ``traced``; ``compiled``, ``loaded`` (code from the compile store); ``captured``;
    ``dropped`` (a capture size goes without graphs), ``evicted`` (its graphs made way),
    ``released`` (``release()`` freed them);
    ``missed`` (built after ``seal("warn")``); ``retraced``; ``wrong`` (a target gave other results
    than the model); ``drifted`` (calls are of other sizes than the captured ones, as ``status()``
    finds); ``refused`` (an entry of the compile store, for its signature).
    ``what``: the piece, region or target. ``sizes``: that it is for. ``seconds``: that it took.
    ``reason``: why, where there is more to say. ``at``: seconds since the epoch. ``model``: the
    name of the class or function.
    """

    kind: EventKind
    what: str = ""
    sizes: str = ""
    seconds: float = 0.0
    reason: str = ""
    at: float = 0.0
    model: str = ""


def name_of(fn: Callable[..., object]) -> str:
    """What events call the model that ``fn`` is of: its class, or the function."""
    owner = getattr(fn, "__self__", None)
    named = fn if owner is None else owner if isinstance(owner, type) else type(owner)
    return str(getattr(named, "__qualname__", type(fn).__name__))


def log(event: Event) -> None:
    """Write ``event`` to this module's log at DEBUG, with its fields as ``piecewise_<field>``."""
    if logger.isEnabledFor(logging.DEBUG):
        extra = {f"piecewise_{name}": value for name, value in vars(event).items()}
        what = " ".join(filter(None, (event.model, event.kind, event.what, event.sizes)))
        why = f", {event.reason}" if event.reason else ""
        logger.debug("%s: %.3f s%s", what, event.seconds, why, extra=extra)


def check_listener(value: object) -> None:
    """Check that ``on_event`` can be called, or is None."""
    if value is not None and not callable(value):
        raise ConfigError(f"Config.on_event: {value!r} cannot be called; give a function, or None")


class Events:
    """Events that wait wherever they happen, handed out once no lock is held.

    ``tell``: called with each, in order; what it raises is logged once, and never raised.
    """

    def __init__(self, tell: Callable[[Event], object]) -> None:
        self._tell = tell
        self.waiting: deque[Event] = deque()
        self._failed = False

    def deliver(self) -> None:
        """Hand out what waits. Call it with no lock held."""
        while self.waiting:
            try:
                event = self.waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._tell(event)
            except Exception:
                if not self._failed:
                    logger.exception("on_event raised for %s; further times are not logged", event)
                self._failed = True
