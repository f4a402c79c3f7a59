"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from piecewise_core.capture.buffers import FixedInputs, OwnedInputs
from piecewise_core.capture.callers import Callers
from piecewise_core.capture.captured import CapturedPlan, Source
from piecewise_core.capture.plans import CapturedPlans, largest_first
from piecewise_core.capture.watching import WatchingRecorder, being_watched
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import (
    ConfigError,
    GradNeeded,
    InputMismatch,
    NotTraced,
    OutOfRange,
    Sealed,
)
from piecewise_core.frontend.recording import (
    Padded,
    RecordedFacts,
    arguments,
    result_code,
    tensors_in,
)
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.warmup import WarmupReport
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.call import constants
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.outputs import OutputCode
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.torch_private import any_autocast
from piecewise_core.ranges import Sizes, Target, TargetTable, capture_targets
from piecewise_core.runtime.agreement import agree, leak
from piecewise_core.runtime.parameters import Parameters, roots_of
from piecewise_core.runtime.reach import anchors_of

__all__ = ["RecordedFunction"]

logger = logging.getLogger(__name__)


class RecordedFunction:
    """Runs ``fn`` by replay at captured sizes, and as it is at all others.

    Python in ``fn`` runs once per captured size: scalars and branches are fixed there. Inference
    only; everything is recorded under ``inference_mode``.
    """

    def __init__(self, fn: Callable[..., Any], setup: Setup) -> None:
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
        self._splits = setup.splits(Matcher(self._config.splitting_ops, setup.unsafe_ops))
        self._plans = CapturedPlans(setup.platform, self._counters, self._config.memory_limit)
        self._callers = Callers(
            cloning=self._config.clone_outputs, strict=self._config.check == "strict"
        )
        self._outputs: dict[Sizes, OutputCode] = {}
        self._padded: dict[Sizes, Padded] = {}
        self._written: dict[Sizes, tuple[int, ...] | None] = {}
        self._leaks = False
        self._lock = threading.RLock()
        self._sealed: str | None = None
        self._released = False
        self._structure: Structure | None = None
        self._objects: list[Any] = []
        self._external: dict[int, torch.Tensor] = {}
        self._parameters = Parameters(roots_of(fn), every=True)
        self._owned: OwnedInputs | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        with self._lock:
            if self._structure is None:
                self._start(args, kwargs)
            tensors, sizes = self._binder.bind(*args, **kwargs)
            if torch.is_grad_enabled():
                self._check_grad(tensors)
            if any_autocast():
                raise InputMismatch(
                    "called inside torch.autocast, which graphs recorded outside of it would not "
                    "follow; enter autocast inside the function, or convert the model"
                )
            if being_watched():
                return self._eagerly(sizes, args, kwargs)
            self._current()
            target = self._targets[self._find(*sizes)]
            if target is not None and target.capture is not None and not self._released:
                done, result = self._replay(target.capture, tensors, sizes, args, kwargs)
                if done:
                    return result
            return self._eagerly(sizes, args, kwargs)

    # Controls --------------------------------------------------------------------------

    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Capture every capture size, the largest first.

        ``args``, ``kwargs``: an example call of any size, needed once. ``progress``: as for
        compiled models; there is nothing here that takes long enough to show. With
        ``inputs="static"`` sizes are captured at their first calls. Raises NotTraced.
        """
        begun = time.perf_counter()
        with self._lock:
            if self._structure is None:
                if not args and not kwargs and self._config.dims:
                    raise NotTraced(
                        "warmup() needs to know what a call looks like: pass example arguments of "
                        "any size, or call the function once before warmup()"
                    )
                self._start(args, kwargs)
            self._current()
            self._released = False
            captures = (t.capture for t in self._targets if t is not None)
            sizes = largest_first(c for c in captures if c is not None)
            self._capture_all(self._plans.budget(1, sizes))
            return self._report([s for s in sizes if s in self._plans], begun)

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        self._sealed = on_miss
        return self

    def release(self) -> RecordedFunction:
        """Free all graph memory; calls run as they are until ``restore``."""
        with self._lock:
            self._free()
        return self

    def _free(self) -> None:
        self._plans.release()
        self._outputs.clear()
        self._written.clear()
        self._released = True
        self._external.clear()
        self._parameters = Parameters(roots_of(self._fn), every=True)

    def restore(self) -> RecordedFunction:
        """Capture again what ``release`` freed, or a replaced tensor made stale.

        With ``inputs="static"`` each size is captured at its next call.
        """
        with self._lock:
            self._released = False
            self._capture_all(largest_first(self._plans.owed))
        return self

    def dump_graphs(self, directory: str | Path) -> list[Path]:
        """Write every static graph to a file in ``directory``, to look at; returns the files."""
        return self._plans.dump(Path(directory))

    def stats(self) -> Stats:
        """The counters so far."""
        return self._counters.stats()

    def explain(self) -> RecordedFacts:
        """Which sizes have graphs, which have not and why."""
        sizes = [s for s in self._config.captures if s in self._plans]
        info = self._setup.selected.info
        return RecordedFacts(
            info.name, tuple(sizes), dict(self._plans.dropped), self.stats().to_dict()
        )

    # Inside ----------------------------------------------------------------------------

    def _current(self) -> None:
        """Free graphs that read the memory of a tensor that was replaced; see ``restore``."""
        if len(self._plans) and self._parameters.read() is None:
            self._free()

    def _capture_all(self, sizes: Sequence[Sizes]) -> None:
        """Capture ``sizes``; with ``inputs="static"`` there are no tensors to capture with yet."""
        if self._structure is None or self._config.inputs == "static":
            return
        for each in sizes:
            self._plan(each, None, more=True)
        self._plans.measure()

    def _watch(self) -> None:
        """Look from now on at what holds the tensors that graphs read."""
        held = [
            anchor
            for anchor in anchors_of(self._fn)
            if isinstance(anchor.value, torch.nn.Module) or id(anchor.value) in self._external
        ]
        self._parameters = Parameters(roots_of(self._fn), anchors=held, every=True)
        for tensor in self._external.values():
            self._parameters.add(tensor)
        self._parameters.settle()

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
            dropped=tuple(f"{sizes}: {why}" for sizes, why in self._plans.dropped.items()),
        )

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
        targets = capture_targets(bounds, self._config.captures, padded=padded)
        self._find = TargetTable(bounds, targets).find
        self._targets: list[Target | None] = [*targets, None]
        self._objects = constants(structure)
        self._structure = structure

    def _check_grad(self, tensors: Sequence[torch.Tensor]) -> None:
        held = (p for root in roots_of(self._fn) for p in root.parameters())
        if any(t.requires_grad for t in (*tensors, *held)):
            raise GradNeeded(
                "called with gradients enabled, and an input or a parameter requires them; "
                "piecewise is for inference: call under torch.inference_mode() or torch.no_grad()"
            )

    def _eagerly(self, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        if sizes not in self._config.bounds and self._config.out_of_range == "error":
            raise OutOfRange(
                f"sizes {sizes} are outside {self._config.bounds}; widen Dim(min, max), or set "
                'out_of_range="eager"'
            )
        self._counters.calls["eager"] += 1
        return self._fn(*args, **kwargs)

    def _replay(
        self, captured: Sizes, tensors: Any, sizes: Sizes, args: Any, kwargs: Any
    ) -> tuple[bool, Any]:
        """Serve by the graphs of ``captured``; (False, None) when this call must run eagerly."""
        if captured in self._plans.dropped:
            return False, None
        callers = self._callers
        if callers.owner != threading.get_ident() and not callers.admit():
            return False, None
        raw = self._binder.raw(*args, **kwargs)
        if sizes != captured and self._leaks:
            return False, None
        if sizes != captured and sizes not in self._padded:
            return True, self._see(captured, tensors, sizes, raw, args, kwargs)
        plan = self._plan(captured, tensors if sizes == captured else None)
        if plan is None:
            return False, None
        written = self._written[captured]
        if sizes != captured and not self._can_pad(plan, sizes):
            return False, None
        if written and any(tensors[i] is not raw[i] for i in written):
            self._binder.bind(*args, **kwargs)  # refuses, now that it knows what is written
        outs: Any = plan.run(tensors, sizes)
        self._counters.calls["replayed"] += 1
        for place in written or ():
            if self._config.inputs == "copy":
                raw[place].copy_(self._views(captured)[place])
        code = self._outputs[captured]
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
        rng = getattr(self._setup.platform.device, "rng", None)
        before = None if rng is None else rng().get_state()
        result = self._eagerly(sizes, args, kwargs)
        padded = Padded(result, raw, self._objects, sizes)
        self._padded[sizes] = padded
        drew = rng is None or before is None or not torch.equal(before, rng().get_state())
        plan = None if drew or self._config.check == "off" else self._plan(captured, None)
        if plan is not None and self._can_pad(plan, sizes):
            outs = padded.cut(plan.run(tensors, sizes))
            if not agree(outs, tensors_in(result, self._objects)):
                self._leaks = True
                logger.warning("%s", leak(sizes, captured))
        return result

    def _can_pad(self, plan: CapturedPlan, sizes: Sizes) -> bool:
        """Whether padded rows can be cut off afterwards: those written to memory cannot."""
        return self._written[plan.sizes] is None and self._padded[sizes].fits(
            plan.outputs, plan.sizes
        )

    def _plan(self, captured: Sizes, tensors: Any, *, more: bool = False) -> CapturedPlan | None:
        found = self._plans.get(captured)
        if found is not None or captured in self._plans.dropped:
            return found
        if self._sealed is not None and captured not in self._plans.owed:
            text = f"sizes {captured} would be captured after seal(); call warmup() first"
            if self._sealed == "error":
                raise Sealed(text)
            logger.warning("%s", text)
        found = self._plans.capture(captured, partial(self._source, captured, tensors), more=more)
        self._watch()
        return found

    def _views(self, captured: Sizes) -> tuple[torch.Tensor, ...]:
        if self._structure is None:
            raise ConfigError("record() was not called yet")
        self._owned = self._owned or OwnedInputs(
            self._structure, self._config.captures, self._setup.platform.graphs
        )
        return self._owned.views(captured)

    def _source(self, captured: Sizes, tensors: Any) -> Source:
        structure = self._structure
        if structure is None:
            raise ConfigError("record() was not called yet")
        if self._config.inputs == "static":
            inputs: Any = FixedInputs(structure, tensors)
        else:
            self._owned = inputs = self._owned or OwnedInputs(
                structure, self._config.captures, self._setup.platform.graphs
            )
            if tensors is not None:
                inputs.stage(captured)(tensors, captured)
        views = inputs.views(captured)

        def build(recorder: WatchingRecorder) -> Callable[..., tuple[Any, ...]]:
            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                args, kwargs = arguments(structure, t)
                result = self._fn(*args, **kwargs)
                if recorder.capturing:
                    self._note(captured, result, views, recorder)
                return tuple(tensors_in(result, self._objects))

            return run

        make = partial(WatchingRecorder, is_splitting=self._splits)
        return Source(build, views, (), (), inputs.stage(captured), make)

    def _note(
        self, captured: Sizes, result: Any, views: Sequence[Any], recorder: WatchingRecorder
    ) -> None:
        """What the recorded run tells: how to rebuild its result, what it reads and writes."""
        self._outputs[captured] = result_code(result, views, self._objects)
        written = tuple(i for i, view in enumerate(views) if recorder.writes_to(view))
        self._written[captured] = written if recorder.writes else None
        self._binder.mutated |= set(written)
        recorder.note(tensors_in(result, self._objects))
        self._external |= {id(tensor): tensor for tensor in recorder.external}
