"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from piecewise_core.capture.modes import being_watched
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, NotTraced, OutOfRange
from piecewise_core.frontend.aroundforward import around_forward
from piecewise_core.frontend.cells import out_of_range
from piecewise_core.frontend.laidotherwise import LaidOtherwise
from piecewise_core.frontend.recordedverify import RecordedVerifier
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.refusals import check_grad, need_grad, refuse_autocast
from piecewise_core.frontend.results import RecordedFacts
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.warmup import WarmupReport
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.torch_private import any_autocast
from piecewise_core.ranges import Sizes, Target, capture_targets
from piecewise_core.replay.replayable import Entry
from piecewise_core.runtime.parameters import roots_of
from piecewise_core.table import TargetTable

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
        self._fn = fn
        self._module = module
        self._setup = setup
        self._config = setup.config
        self._counters = Counters()
        process_counters.watch(self._counters)
        self._recordings = Recordings(fn, setup, self._counters, self._eagerly, self._freed, module)
        self._targets: tuple[Target, ...] = ()
        self._entries: list[Entry] = []
        rng = getattr(setup.platform.device, "rng", None)
        self._verifier = RecordedVerifier(
            self._config, self._counters, () if rng is None else (rng(),)
        )
        self._lock = threading.RLock()
        self._started = False
        self._around = around_forward(module, self._serve) if module is not None else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        around = self._around() if self._around is not None else None
        return (around or self._serve)(*args, **kwargs)

    def _serve(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            made = self._recordings
            watched = being_watched()
            if not watched:
                made.refresh()
            if not self._started:
                self._start(args, kwargs)
            binder = self._binder
            binder.is_foreign = False
            tensors, sizes = binder.bind(*args, **kwargs)
            if torch.is_grad_enabled():
                check_grad(tensors, need_grad(roots_of(self._fn)))
            if any_autocast():
                refuse_autocast()
            if not watched:
                place = self._find(*sizes)
                serve = self._entries[place]
                if binder.is_foreign or made.asks_modes:
                    serve = self._chosen(place, serve)
            else:
                serve = self._eagerly
            try:
                return serve(tensors, (), sizes, args, kwargs)
            finally:
                made.ran()

    # Controls --------------------------------------------------------------------------

    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Capture every capture size, the largest first.

        ``args``, ``kwargs``: an example call of any size, needed once. ``progress``: as for
        compiled models; there is nothing here that takes long enough to show. With
        ``inputs="static"`` sizes are captured at their first calls. Raises NotTraced.
        """
        begun = time.perf_counter()
        with self._lock:
            self._recordings.refresh()
            if not self._started:
                if not args and not kwargs and self._config.dims:
                    raise NotTraced(
                        "warmup() needs to know what a call looks like: pass example arguments of "
                        "any size, or call the function once before warmup()"
                    )
                self._start(args, kwargs)
            captured = self._capture_all(target.capture or () for target in self._targets)
            return self._report(captured, begun)

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        if on_miss not in ("error", "warn"):
            raise ConfigError(f'seal(on_miss={on_miss!r}): use "error" or "warn"')
        self._recordings.replays.sealed = on_miss
        return self

    def release(self) -> RecordedFunction:
        """Free all graph memory; calls run as they are until ``restore``."""
        with self._lock:
            self._recordings.free()
        return self

    def retrace(self) -> RecordedFunction:
        """Drop what was captured; sizes are captured anew at their next calls. Raises Sealed."""
        with self._lock:
            self._recordings.retrace("retrace() was called")
        return self

    def restore(self) -> RecordedFunction:
        """Capture again what ``release`` freed, or a replaced tensor made stale.

        With ``inputs="static"`` each size is captured at its next call.
        """
        with self._lock:
            if self._started:
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
        wrong = {captured: why for (captured, _), why in self._verifier.wrong.items()}
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

    # Calls -----------------------------------------------------------------------------

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        structure = describe_call(self._fn, args, kwargs, self._config)
        self._binder = Binder(
            structure,
            alignment=self._setup.platform.capabilities.alignment,
            static=self._config.inputs == "static",
            on_restride=lambda: self._counters.add("restrided"),
        )
        padded = self._config.padding == "capture_sizes" and self._config.inputs == "copy"
        bounds = self._config.bounds
        dims = range(len(bounds.ranges)) if padded else ()
        self._targets = capture_targets(bounds, self._config.captures, padded=dims)
        self._find = TargetTable(bounds, self._targets).find
        self._binder.matters = lambda leaf, lying: False  # asked of runs instead
        self._binder.expect(frozenset({"apart", "attributes"}))
        self._recordings.begin(self._binder)
        self._otherwise = LaidOtherwise(self._fn, self._recordings, self._binder, self._eagerly)
        self._install()
        self._started = True

    def _freed(self) -> None:
        """No size has graphs any more, and the module may have another forward by now."""
        if self._module is None or self._module.forward == self._fn:
            self._install()
            return
        self._fn, self._started = self._module.forward, False
        self._recordings.follow(self._fn)
        self._around = around_forward(self._module, self._serve)

    def _install(self) -> None:
        """Every captured size is pending, until its next call; the last entry has no size."""
        captures = (target.capture or () for target in self._targets)
        self._entries = [*map(self._pending, captures), self._eagerly]

    def _chosen(self, place: int, serve: Entry) -> Entry:
        """What serves a call that may not be as the recorded one, in place of ``serve``."""
        if self._recordings.in_another_mode():
            return self._eagerly
        return (
            self._otherwise.entry(self._targets, place, serve) if self._binder.is_foreign else serve
        )

    def _pending(self, captured: Sizes) -> Entry:
        made = self._recordings
        replays = made.replays.pending(made, captured, self._eagerly, self._put)
        if self._config.check == "verify":
            replays = self._verified(captured, replays)

        def first(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            serve = replays
            if made.facts(captured) is None and made.replays.learn(made, captured, t, sizes):
                # Only now it is known what the function asks of its tensors.
                self._binder.bind(*args, **kwargs)
                serve = self._chosen(self._find(*sizes), replays)
            return serve(t, b, sizes, args, kwargs)

        return first

    def _put(self, sizes: Sizes, entry: Entry) -> None:
        place = self._find(*sizes)
        captured = self._targets[place].capture or ()
        verify = self._config.check == "verify"
        self._entries[place] = self._verified(captured, entry) if verify else entry

    def _verified(self, captured: Sizes, served: Entry) -> Entry:
        """``served``, compared with the function where that is due."""
        made, verifier = self._recordings, self._verifier

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            key = captured, sizes != captured
            if key in verifier.wrong:
                return self._eagerly(t, b, sizes, args, kwargs)
            facts = made.facts(captured)
            known = facts is not None and made.replays_of(captured, sizes)
            if facts is None or not known or not verifier.is_due(key):
                return served(t, b, sizes, args, kwargs)
            raw = self._binder.raw(*args, **kwargs)
            return verifier.check(
                key,
                lambda: self._fn(*args, **kwargs),
                lambda: served(t, b, sizes, args, kwargs),
                [raw[i] for i in facts.mutated] + made.memory(captured),
                [tensor for i, tensor in enumerate(raw) if i not in facts.mutated],
                partial(made.made_at, captured),
            )

        return entry

    def _eagerly(self, t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve a call by the function as it is."""
        if sizes not in self._config.bounds and self._config.out_of_range == "error":
            raise OutOfRange(out_of_range(self._config, sizes, general=False))
        self._counters.calls["eager"] += 1
        return self._fn(*args, **kwargs)
