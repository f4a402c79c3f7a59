"""Static graphs of one session: which sizes are captured, and the entries that replay them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import Any

import torch

from piecewise_core.capture.attempt import Source
from piecewise_core.capture.buffers import FixedInputs, OwnedInputs
from piecewise_core.capture.callers import IN_USE, Callers
from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.direct import modes_active
from piecewise_core.capture.plans import CapturedPlans, largest_first
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError
from piecewise_core.frontend.paddeddims import PaddedDims
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.spans import Spans
from piecewise_core.graph.structure import Structure
from piecewise_core.ranges import Sizes, Target, capture_targets
from piecewise_core.runtime.cutback import cut_back
from piecewise_core.runtime.overlap import Overlap
from piecewise_core.runtime.paddingcheck import PaddingCheck, leak

__all__ = ["Capturing", "Entry"]


Entry = Callable[..., Any]


class Capturing:
    """Captures, replays, releases and restores.

    ``structure`` is set by the first call. Sizes whose capture failed, or that were evicted, are
    served by what would serve them without graphs.
    """

    def __init__(self, setup: Setup, counters: Counters) -> None:
        self._setup = setup
        self._config = setup.config
        self._counters = counters
        self._callers = Callers(
            cloning=self._config.clone_outputs, strict=self._config.check == "strict"
        )
        self.plans = CapturedPlans(
            setup.platform, counters, setup.config.memory_limit, setup.graph_mode, self._callers
        )
        self.padded = PaddedDims(self._config)
        self._owned: OwnedInputs | None = None
        self._structure: Structure | None = None
        self.released = False

    def begin(self, structure: Structure) -> None:
        """Note what calls look like; what was captured of calls that looked otherwise goes."""
        if len(self.plans):
            self.plans.release(later=True)
        self._owned = None
        self._structure = structure

    def targets(self, region: Region) -> tuple[Target, ...]:
        """The captured sizes of ``region``; none while graphs are released.

        Where their memory waits for a thread to be done with it, there are: its call tells.
        """
        if (self.released and not self.plans.retired) or region.box is None:
            return ()
        return capture_targets(region.box, self._config.captures, padded=self.padded.of(region))

    def capture_all(self, regions: Sequence[Region], bound: Sequence[torch.Tensor]) -> list[Sizes]:
        """Capture every size, the largest first; returns those that are served by graphs.

        With ``inputs="static"`` there are none yet: each is captured at its first call, as all are
        while another thread may be reading outputs. Raises CaptureFailed inside a replay.
        """
        self._callers.refuse_inside("sizes would be captured")
        if self._config.inputs == "static":
            return []
        wanted = [
            (region, target.capture)
            for region in regions
            for target in self.targets(region)
            if target.box.is_single_size() and target.capture is not None
        ]
        order = largest_first(sizes for _, sizes in wanted)
        wanted.sort(key=lambda pair: order.index(pair[1]))
        per_size = max((len(region.program.compilable) for region, _ in wanted), default=0)
        kept = self.plans.budget(per_size, order)
        for region, sizes in wanted:
            if sizes in kept:
                source = partial(self._source, region, sizes, None, bound)
                self.plans.capture(sizes, source, more=True)
        self.plans.measure()
        return [sizes for sizes in order if sizes in self.plans]

    def entry(
        self,
        region: Region,
        sizes: Sizes,
        tensors: Any,
        bound: Any,
        raw: Callable[..., Any],
        otherwise: Entry,
    ) -> Entry | None:
        """What serves capture size ``sizes`` by replay, captured now if it must be.

        ``otherwise``: serves calls that cannot be replayed: those of a size that failed or was
        evicted, and those whose inputs share memory that the program writes to. None: this call
        is one of the latter, or another thread may be reading outputs, or this is a call from
        inside of a replay; capture waits for another.
        """
        if sizes not in self.plans and not self._callers.admit():
            return None
        overlap = Overlap.of(region.program, self._handed)
        if overlap and overlap(tensors, bound):
            return None
        static = self._config.inputs == "static" and sizes not in self.plans
        if static and any(map(self.plans.handed.holds, tensors)):
            return None  # graphs would read what they overwrite
        # Results of earlier replays are what a capture may overwrite before it reads them.
        tensors = tensors if self._config.inputs == "static" else self.plans.apart(tensors)
        plan = self.plan(region, sizes, tensors, bound)
        return otherwise if plan is None else self._replay(region, plan, raw, otherwise)

    def plan(
        self, region: Region, captured: Sizes, tensors: Any, bound: Any
    ) -> CapturedPlan | None:
        """The plan of a capture size, captured now if it must be; None where it cannot be."""
        return self.plans.get(captured) or self.plans.capture(
            captured, partial(self._source, region, captured, tensors, bound)
        )

    def _handed(self) -> Spans:
        return self.plans.handed

    def buffers(self, captured: Sizes, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What the graphs of a capture size read: our buffers, or the caller's own tensors."""
        return tensors if self._config.inputs == "static" else self._inputs().views(captured)

    def _replay(
        self, region: Region, plan: CapturedPlan, raw: Callable[..., Any], otherwise: Entry
    ) -> Entry:
        """Stage, replay, rebuild. Everything is looked up now and nothing at the call."""
        calls, output = self._counters.calls, region.program.traced.output
        rebuild, uses_inputs = output.rebuild, output.uses_inputs
        prepare = plan.stage if plan.before is None else plan.prepare
        captured = plan.sizes
        finish = cut_back(region.program, captured)
        back = self._write_back(region, captured)
        callers = self._callers
        plans = self.plans if self._config.memory_limit is not None else None
        overlap = Overlap.of(region.program, self._handed) or None
        padded = self.padded.of
        check = self._padding_check(region, plan, finish)

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            if plans is not None and plans.get(captured) is not plan:
                return otherwise(t, b, sizes, args, kwargs)
            if overlap is not None and overlap(t, b):
                return otherwise(t, b, sizes, args, kwargs)
            if sizes != captured and not padded(region):
                return otherwise(t, b, sizes, args, kwargs)
            if callers.owner != get_ident() and not callers.admit():
                return otherwise(t, b, sizes, args, kwargs)
            nonlocal check
            if check is not None and sizes != captured:
                t = self.plans.apart(t)
                if not self._proves(check, region, captured, t, b, sizes):
                    return otherwise(t, b, sizes, args, kwargs)
                check = None if check.done else check
            # As CapturedPlan.run does, without a frame for it.
            step: Any = None
            owner, callers.owner = callers.owner, IN_USE
            try:
                prepare(t, sizes)
                for step in plan.steps if modes_active() else plan.direct:
                    step()
            except Exception as error:
                plan.reraise(step, error)
            finally:
                callers.owner = owner
            outs: Any = plan.outputs
            calls["replayed"] += 1
            if back is not None:
                back(t)
            if sizes != captured:
                self._counters.add("padded_rows", math.prod(captured) - math.prod(sizes))
                outs = finish(outs, sizes)
            if callers.strict:
                outs = callers.handed(outs)
            if callers.cloning:
                outs = [o.clone() if isinstance(o, torch.Tensor) else o for o in outs]
            return rebuild(outs, raw(*args, **kwargs) if uses_inputs else t, b)

        return entry

    def _padding_check(
        self, region: Region, plan: CapturedPlan, finish: Callable[..., list[Any]]
    ) -> PaddingCheck | None:
        """Compares the first padded calls; None where nobody asked or random numbers differ."""
        if self._config.check == "off" or not self.padded.of(region) or region.draws:
            return None
        return PaddingCheck(
            self._inputs().views(plan.sizes),
            plan.prepare,
            plan.replay,
            lambda sizes: finish(plan.outputs, sizes),
            wild=not region.paddable.rounds,
        )

    def _proves(
        self, check: PaddingCheck, region: Region, captured: Sizes, t: Any, b: Any, sizes: Sizes
    ) -> bool:
        """Whether a padded call's own rows are as they are without padding; told if not."""
        box = region.fallback(sizes).box
        # What is not compiled yet is not compiled for this: as written it runs at once.
        plain = region.plan(box) if region.is_ready(box) else region.written_plan()
        found = check(t, sizes, plain(t, b, *sizes))
        if found is None:
            return True
        self.padded.refuse(region, leak(sizes, captured, found))
        return False

    def _write_back(self, region: Region, sizes: Sizes) -> Callable[[Any], None] | None:
        """Copy what the program wrote to its own input buffers back to the caller's tensors."""
        if self._config.inputs == "static" or not region.program.mutated:
            return None
        views = self._inputs().views(sizes)
        places = sorted(region.program.mutated)

        def back(tensors: Sequence[torch.Tensor]) -> None:
            for place in places:
                tensors[place].copy_(views[place])

        return back

    def _inputs(self) -> OwnedInputs:
        if self._structure is None:
            raise ConfigError("capture before the first call; call the model or warmup() first")
        if self._owned is None:
            self._owned = OwnedInputs(
                self._structure, self._config.captures, self._setup.platform.graphs
            )
        return self._owned

    def _source(
        self, region: Region, sizes: Sizes, tensors: Any, bound: Sequence[torch.Tensor]
    ) -> Source:
        """What to capture. ``tensors``: a call's own, None in warm-up."""
        if self._config.inputs == "static":
            if tensors is None or self._structure is None:
                raise ConfigError(
                    'inputs="static" captures at the first call of each size, since warm-up has no '
                    "tensors of that size"
                )
            inputs: Any = FixedInputs(self._structure, tensors)
        else:
            inputs = self._inputs()
        stage = inputs.stage(sizes)
        if tensors is not None:
            stage(tensors, self.sizes_of(tensors))
        written = tuple(bound[i] for i in region.written_bound)
        if self._config.inputs == "static":
            written += tuple(tensors[i] for i in sorted(region.program.mutated))

        def build(recorder: Any) -> Any:
            only = recorder.operators_only
            return region.recording_plan(sizes, recorder.piece, recorder.op, only)

        # Graphs read the program's literals too; plans number only what comes before them.
        held = (*bound, *region.code.literals)
        owned = self._config.inputs == "copy"
        return Source(build, inputs.views(sizes), held, written, stage, owned=owned)

    def sizes_of(self, tensors: Sequence[torch.Tensor]) -> Sizes:
        """The sizes of one call's tensors."""
        if self._structure is None:
            return ()
        found = [self._structure.where(dim)[0] for dim in self._structure.dims]
        return tuple(tensors[leaf.index].shape[axis] for leaf, axis in found)
