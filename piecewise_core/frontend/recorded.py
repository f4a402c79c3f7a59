"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, NotTraced
from piecewise_core.frontend.recordedcalls import RecordedCalls
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.results import RecordedFacts
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.warmup import WarmupReport
from piecewise_core.ranges import Sizes

__all__ = ["RecordedFunction"]


class RecordedFunction:
    """Runs ``fn`` by replay at captured sizes, and as it is at all others.

    Python in ``fn`` runs once per captured size: scalars and branches are fixed there. Inference
    only; everything is recorded under ``inference_mode``. ``module``: whose forward ``fn`` is; its
    hooks run around it at every call.
    """

    def __init__(
        self, fn: Callable[..., Any], setup: Setup, module: torch.nn.Module | None = None
    ) -> None:
        functools.update_wrapper(self, fn)
        if setup.platform.graphs is None:
            raise ConfigError(
                f'record() needs static graphs, and platform "{setup.selected.info.name}" has '
                "none; use pw.compile, or a platform with graphs"
            )
        self._setup = setup
        self._config = setup.config
        self._counters = Counters()
        process_counters.watch(self._counters)
        self._calls = RecordedCalls(fn, setup, self._counters, module)

    @property
    def _recordings(self) -> Recordings:
        return self._calls.recordings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        calls = self._calls
        around = calls.around() if calls.around is not None else None
        return (around or calls.serve)(*args, **kwargs)

    # Controls --------------------------------------------------------------------------

    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Capture every capture size, the largest first.

        ``args``, ``kwargs``: an example call of any size, needed once. ``progress``: as for
        compiled models; there is nothing here that takes long enough to show. With
        ``inputs="static"`` sizes are captured at their first calls. Raises NotTraced.
        """
        begun = time.perf_counter()
        with self._calls.lock:
            self._recordings.refresh()
            if not self._calls.started:
                if not args and not kwargs and self._config.dims:
                    raise NotTraced(
                        "warmup() needs to know what a call looks like: pass example arguments of "
                        "any size, or call the function once before warmup()"
                    )
                self._calls.start(args, kwargs)
            captured = self._capture_all(target.capture or () for target in self._calls.targets)
            return self._report(captured, begun)

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        if on_miss not in ("error", "warn"):
            raise ConfigError(f'seal(on_miss={on_miss!r}): use "error" or "warn"')
        self._recordings.replays.sealed = on_miss
        return self

    def release(self) -> RecordedFunction:
        """Free all graph memory; calls run as they are until ``restore``."""
        with self._calls.lock:
            self._recordings.free()
        return self

    def retrace(self) -> RecordedFunction:
        """Drop what was captured; sizes are captured anew at their next calls. Raises Sealed."""
        with self._calls.lock:
            self._recordings.retrace("retrace() was called")
        return self

    def restore(self) -> RecordedFunction:
        """Capture again what ``release`` freed, or a replaced tensor made stale.

        With ``inputs="static"`` each size is captured at its next call.
        """
        with self._calls.lock:
            if self._calls.started:
                self._capture_all(self._recordings.replays.plans.owed)
        return self

    def _capture_all(self, sizes: Iterable[Sizes]) -> list[Sizes]:
        replays = self._recordings.replays
        replays.released = False
        return replays.capture_all([(self._recordings, each) for each in list(sizes)], ())

    def dump_graphs(self, directory: str | Path) -> list[Path]:
        """Write every static graph to a file in ``directory``, to look at; returns the files."""
        return self._recordings.replays.plans.dump(Path(directory))

    def stats(self) -> Stats:
        """The counters so far."""
        return self._counters.stats()

    def explain(self) -> RecordedFacts:
        """Which sizes have graphs, which have not and why."""
        plans = self._recordings.replays.plans
        sizes = [s for s in self._config.captures if s in plans]
        info = self._setup.selected.info
        wrong = {captured: why for (captured, _), why in self._calls.verifier.wrong.items()}
        retraced = self._recordings.retraced
        counts = self.stats().to_dict()
        dropped = dict(plans.dropped)
        return RecordedFacts(info.name, tuple(sizes), dropped, counts, wrong, retraced)

    def _report(self, captured: list[Sizes], begun: float) -> WarmupReport:
        stats = self.stats()
        return WarmupReport(
            regions=0,
            targets=len(captured),
            compilations=0,
            dedup_hits=0,
            seconds=time.perf_counter() - begun,
            captured=tuple(captured),
            graph_bytes=stats.pool_bytes + stats.driver_bytes,
            dropped=self._recordings.replays.dropped(),
        )
