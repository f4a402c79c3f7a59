"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import functools
import logging
import math
import operator
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from piecewise_core.capture.callers import Callers
from piecewise_core.capture.calls import user_line
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.modes import DataInSteps, being_watched
from piecewise_core.capture.plans import largest_first
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, NotTraced, OutOfRange
from piecewise_core.frontend.aroundforward import around_forward
from piecewise_core.frontend.recordedverify import RecordedVerifier
from piecewise_core.frontend.recordings import Recordings
from piecewise_core.frontend.refusals import check_grad, need_grad, refuse_autocast
from piecewise_core.frontend.results import Padded, RecordedFacts, tensors_in
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.warmup import WarmupReport
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.padding.judge import cannot_pad
from piecewise_core.graph.padding.runs import Run, between
from piecewise_core.graph.torch_private import any_autocast
from piecewise_core.ranges import Sizes, Target, TargetTable, capture_targets
from piecewise_core.runtime.paddingcheck import PaddingCheck, leak
from piecewise_core.runtime.parameters import roots_of

__all__ = ["RecordedFunction"]

logger = logging.getLogger(__name__)


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
        self._setup = setup
        self._config = setup.config
        self._counters = Counters()
        process_counters.watch(self._counters)
        self._callers = Callers(
            cloning=self._config.clone_outputs, strict=self._config.check == "strict"
        )
        self._recordings = Recordings(fn, setup, self._counters, self._callers)
        self._padded: dict[Sizes, Padded] = {}
        self._told = False
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
            if not self._started:
                self._start(args, kwargs)
            tensors, sizes = self._binder.bind(*args, **kwargs)
            if torch.is_grad_enabled():
                check_grad(tensors, need_grad(roots_of(self._fn)))
            if any_autocast():
                refuse_autocast()
            if being_watched():
                return self._eagerly(sizes, args, kwargs)
            self._recordings.refresh()
            target = self._targets[self._find(*sizes)]
            if target is not None and target.capture is not None and not self._recordings.released:
                return self._captured(target.capture, tensors, sizes, args, kwargs)
            return self._eagerly(sizes, args, kwargs)

    # Controls --------------------------------------------------------------------------

    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Capture every capture size, the largest first.

        ``args``, ``kwargs``: an example call of any size, needed once. ``progress``: as for
        compiled models; there is nothing here that takes long enough to show. With
        ``inputs="static"`` sizes are captured at their first calls. Raises NotTraced.
        """
        begun = time.perf_counter()
        made = self._recordings
        with self._lock:
            if not self._started:
                if not args and not kwargs and self._config.dims:
                    raise NotTraced(
                        "warmup() needs to know what a call looks like: pass example arguments of "
                        "any size, or call the function once before warmup()"
                    )
                self._start(args, kwargs)
            made.refresh()
            made.released = False
            captures = (t.capture for t in self._targets if t is not None)
            sizes = largest_first(c for c in captures if c is not None)
            made.capture_all(made.plans.budget(1, sizes))
            return self._report([s for s in sizes if s in made.plans], begun)

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        if on_miss not in ("error", "warn"):
            raise ConfigError(f'seal(on_miss={on_miss!r}): use "error" or "warn"')
        self._recordings.sealed = on_miss
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
            self._recordings.released = False
            self._recordings.capture_all(largest_first(self._recordings.plans.owed))
        return self

    def dump_graphs(self, directory: str | Path) -> list[Path]:
        """Write every static graph to a file in ``directory``, to look at; returns the files."""
        return self._recordings.plans.dump(Path(directory))

    def stats(self) -> Stats:
        """The counters so far."""
        return self._counters.stats()

    def explain(self) -> RecordedFacts:
        """Which sizes have graphs, which have not and why."""
        plans = self._recordings.plans
        sizes = [s for s in self._config.captures if s in plans]
        info = self._setup.selected.info
        wrong = {captured: why for (captured, _), why in self._verifier.wrong.items()}
        retraced = self._recordings.retraced
        counts = self.stats().to_dict()
        dropped = dict(plans.dropped)
        return RecordedFacts(info.name, tuple(sizes), dropped, counts, wrong, retraced)

    def _report(self, captured: list[Sizes], begun: float) -> WarmupReport:
        stats = self.stats()
        dropped = self._recordings.plans.dropped
        return WarmupReport(
            regions=0,
            targets=len(captured),
            compilations=0,
            dedup_hits=0,
            seconds=time.perf_counter() - begun,
            captured=tuple(captured),
            graph_bytes=stats.pool_bytes + stats.driver_bytes,
            dropped=tuple(f"{sizes}: {why}" for sizes, why in dropped.items()),
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
        targets = capture_targets(bounds, self._config.captures, padded=dims)
        self._find = TargetTable(bounds, targets).find
        self._targets: list[Target | None] = [*targets, None]
        self._recordings.begin(structure, self._binder)
        self._started = True

    def _eagerly(self, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        if sizes not in self._config.bounds and self._config.out_of_range == "error":
            raise OutOfRange(
                f"sizes {sizes} are outside {self._config.bounds}; widen Dim(min, max), or set "
                'out_of_range="eager"'
            )
        self._counters.calls["eager"] += 1
        try:
            return self._fn(*args, **kwargs)
        finally:
            self._recordings.ran()

    def _captured(self, captured: Sizes, tensors: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        """Serve a call that a captured size holds; compared with the function if it is due."""
        key = captured, sizes != captured
        if key in self._verifier.wrong:
            return self._eagerly(sizes, args, kwargs)

        def served() -> Any:
            done, result = self._replay(captured, tensors, sizes, args, kwargs)
            if not done:
                return self._eagerly(sizes, args, kwargs)
            self._recordings.ran()  # splitting ops did
            return result

        known = sizes == captured or sizes in self._padded
        if not known or captured not in self._recordings.plans or not self._verifier.is_due(key):
            return served()
        raw = self._binder.raw(*args, **kwargs)
        written = self._recordings.written[captured] or ()
        memory = [raw[i] for i in written] + self._recordings.memory[captured]
        return self._verifier.check(key, lambda: self._fn(*args, **kwargs), served, memory)

    def _replay(
        self, captured: Sizes, tensors: Any, sizes: Sizes, args: Any, kwargs: Any
    ) -> tuple[bool, Any]:
        """Serve by the graphs of ``captured``; (False, None) when this call must run eagerly."""
        made = self._recordings
        if captured in made.plans.dropped:
            return False, None
        callers = self._callers
        if callers.owner != threading.get_ident() and not callers.admit():
            return False, None
        raw = self._binder.raw(*args, **kwargs)
        if sizes != captured and sizes not in self._padded:
            tensors = made.plans.apart(tensors)
            return True, self._see(captured, tensors, sizes, raw, args, kwargs)
        if sizes != captured and self._padded[sizes].mixes:
            return False, None
        known = captured in made.plans
        if not known and any(map(made.plans.handed.holds, tensors)):
            return False, None  # a capture would overwrite them, which are results
        plan = made.plan(captured, tensors if sizes == captured else None)
        if plan is None:
            return False, None
        written = made.written[captured]
        if sizes != captured and not self._can_cut(plan, sizes):
            return False, None
        if written and not known and any(map(operator.is_not, tensors, raw)):
            self._binder.bind(*args, **kwargs)  # refuses, now that it knows what is written
        overlap = made.overlaps[captured]
        if overlap is not None and overlap(tensors, made.external[captured]):
            return False, None
        outs: Any = plan.run(tensors, sizes)
        self._counters.calls["replayed"] += 1
        for place in written or ():
            if self._config.inputs == "copy":
                raw[place].copy_(made.views(captured)[place])
        code = made.outputs[captured]
        if sizes != captured:
            self._counters.add("padded_rows", math.prod(captured) - math.prod(sizes))
            outs, code = self._padded[sizes].cut(outs), self._padded[sizes].code
        if callers.strict:
            outs = callers.handed(outs)
        if callers.cloning:
            outs = [o.clone() for o in outs]
        return True, code.rebuild(outs, raw, ())

    def _see(
        self, captured: Sizes, tensors: Any, sizes: Sizes, raw: Any, args: Any, kwargs: Any
    ) -> Any:
        """Run a call of a padded size eagerly, once: what it returns is what padding must give."""
        objects = self._recordings.objects
        rng = getattr(self._setup.platform.device, "rng", None)
        before = None if rng is None else rng().get_state()
        run = Run(raw, user_line)
        with run.noted(), DataInSteps():
            result = self._eagerly(sizes, args, kwargs)
        found = tensors_in(result, objects)
        run.returned(found)
        padded = self._padded[sizes] = Padded(result, raw, objects, sizes)
        drew = rng is None or before is None or not torch.equal(before, rng().get_state())
        plan = self._recordings.plan(captured, None)
        if plan is not None and self._can_cut(plan, sizes):
            why = between(self._recordings.runs[captured], run)
            if why is not None:
                self._refuse(sizes, cannot_pad(f"sizes {sizes}", why))
            elif not drew and self._config.check != "off":
                self._confirm(plan, padded, run, tensors, sizes, found)
        if torch.is_inference_mode_enabled():
            return result
        return padded.code.rebuild([t.clone() for t in found], raw, ())

    def _refuse(self, sizes: Sizes, text: str) -> None:
        """Calls of ``sizes`` run as they are; told once."""
        self._padded[sizes].mixes = True
        if not self._told:
            logger.warning("%s", text)
        self._told = True

    def _confirm(
        self, plan: CapturedPlan, padded: Padded, run: Run, tensors: Any, sizes: Sizes, found: Any
    ) -> None:
        """Compare a padded call with what it gave by itself."""
        check = PaddingCheck(
            self._recordings.views(plan.sizes),
            plan.prepare,
            plan.replay,
            lambda own: padded.cut(plan.outputs),
            wild=not run.rounds,
        )
        off = check(tensors, sizes, found)
        if off is not None:
            self._refuse(sizes, leak(sizes, plan.sizes, off))

    def _can_cut(self, plan: CapturedPlan, sizes: Sizes) -> bool:
        """Whether padded rows can be cut off afterwards: those written to memory cannot."""
        return self._recordings.written[plan.sizes] is None and self._padded[sizes].fits(
            plan.outputs, plan.sizes
        )
