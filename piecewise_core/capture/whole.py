"""A forward captured as one graph, splitting ops inside; what the CPU does runs before it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from piecewise_core.capture.calls import tensors
from piecewise_core.capture.collectives import waited
from piecewise_core.capture.opsteps import allocate
from piecewise_core.capture.recorder import Recorder
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.collectives import is_collective
from piecewise_core.graph.randomness import draws

__all__ = ["WholeRecorder"]


class WholeRecorder(Recorder):
    """Captures a forward as one graph, splitting ops inside.

    Operations on tensors of the CPU, and copies from there, are steps of their own: no graph has
    them. They come before the graph, so they may not wait for it.
    """

    def piece(self, label: str, run: Callable[..., Any], pool: Any = None) -> Callable[..., Any]:
        """Noted for error messages, otherwise as it is."""
        return self._noted(label, run)

    def op(
        self, fn: Callable[..., Any], fit: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        """Noted for error messages; refused where replays would repeat its random numbers.

        ``fit``: what it brings to another layout is copied in the graph.
        """
        if self.device_type == "cpu" and is_collective(fn):
            raise CaptureFailed(
                f"{fn} is made by the host, and no graph of the whole forward repeats it; use "
                'graph_mode="piecewise"'
            )
        if why := getattr(fn, "varying", ""):
            raise CaptureFailed(f'{why}, which no graph has; use graph_mode="piecewise"')
        inside, before = self._inside(waited(fn), fit), super().op(fn, fit)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            given = tensors((args, kwargs))
            on_cpu = bool(given) and all(t.device.type == "cpu" for t in given)
            if not on_cpu or self.device_type == "cpu":
                return inside(*args, **kwargs)
            result = before(*args, **kwargs)
            if self._returns_given:
                raise CaptureFailed(
                    f"{self.current} changes a tensor of the CPU, which one graph of the whole "
                    'forward cannot hold; use graph_mode="piecewise"'
                )
            return result

        return recorded

    def _inside(
        self, fn: Callable[..., Any], fit: Callable[[Any], Any] | None
    ) -> Callable[..., Any]:
        def fitted(*args: Any, **kwargs: Any) -> Any:
            found = fn(*args, **kwargs)
            return found if fit is None else fit(found)

        noted = self._noted(getattr(fn, "__name__", str(fn)), fitted)
        if self._platform.register_generator is not None:
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
        # Outside of the pool: what a graph has there it may use for something else before.
        self._next = [allocate(layout) for op in self._results for layout in op]
        self._runs_ops = False
        if self.streams is not None:
            self.streams.begin()
        return self._capture(lambda: run(), ())

    def _following(self, piece: int) -> list[tuple[Any, ...] | None]:
        return []

    def _noted(self, label: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.current = label
            return run(*args, **kwargs)

        return noted
