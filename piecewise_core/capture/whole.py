"""A forward captured as one graph, splitting ops inside."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from piecewise_core.capture.recorder import Recorder
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.randomness import draws

__all__ = ["WholeRecorder"]


class WholeRecorder(Recorder):
    """Captures a forward as one graph, splitting ops inside."""

    def piece(self, label: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Noted for error messages, otherwise as it is."""
        return self._noted(label, run)

    def op(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Noted for error messages; refused where replays would repeat its random numbers."""
        noted = self._noted(getattr(fn, "__name__", str(fn)), fn)
        if hasattr(self._driver, "register_generator"):
            return noted

        def checked(*args: Any, **kwargs: Any) -> Any:
            if draws(SimpleNamespace(op="call_function", target=fn, args=args, kwargs=kwargs)):
                raise CaptureFailed(
                    f"{fn} draws random numbers, and graphs of this platform would draw the same "
                    'ones at every replay; use graph_mode="piecewise"'
                )
            return noted(*args, **kwargs)

        return checked

    def record(self, run: Callable[[], Any]) -> Any:
        """The second run, between one begin and one end."""
        return self._capture(lambda: run(), ())

    def _following(self, piece: int) -> list[tuple[Any, ...] | None]:
        return []

    def _noted(self, label: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.current = label
            return run(*args, **kwargs)

        return noted
