"""Static graphs of one form of calls: what regions supply to their replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.copied_outputs import taken
from piecewise_core.capture.graphmemory import GraphMemory
from piecewise_core.capture.parts import refuse_input
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.resting import addresses
from piecewise_core.capture.weak import lendable, unowned
from piecewise_core.counters import Counters
from piecewise_core.frontend.paddeddims import PaddedDims, PaddedRegion
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.memory import storages
from piecewise_core.graph.split import Program, inputs_in
from piecewise_core.graph.varying import varies_itself
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import (
    Entry,
    Facts,
    PaddedCalls,
    Recording,
    Replayable,
)
from piecewise_core.replay.replays import Replays
from piecewise_core.targets import Target, capture_targets

__all__ = ["Capturing"]


class Capturing:
    """The replays of a form's regions, and in which dims their calls are padded.

    ``memory``: what the graphs of all forms lie in. ``may_capture``: asked by calls that would
    capture; they run without graphs if not. ``settle``: told of a region before one of its sizes
    is captured.
    """

    def __init__(
        self,
        setup: Setup,
        counters: Counters,
        memory: GraphMemory,
        may_capture: Callable[[], bool] = lambda: True,
        settle: Callable[[Region], None] = lambda region: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.may_capture, self.settle = may_capture, settle
        self._config = setup.config
        self.replays = Replays(memory, setup.config, counters, setup.graph_mode, ranks)
        self.padded = PaddedDims(self._config)

    @property
    def plans(self) -> CapturedPlans:
        """The captured plans."""
        return self.replays.plans

    def lent(self, region: Region, bound: Sequence[torch.Tensor]) -> frozenset[int]:
        """Places of ``bound`` that graphs of ``region`` do not keep: others may lie there later.

        None for graphs that read a call's own inputs: the next one's would have to be the same.
        """
        platform = self.replays.memory.platform
        known = platform.weak_ref is not None or platform.device_type == "cpu"
        if not known or self._config.inputs == "static":
            return frozenset()
        return frozenset(i for i in region.program.lent if lendable(bound[i]))

    def follow(
        self, regions: Sequence[Region], was: Sequence[torch.Tensor], now: Sequence[torch.Tensor]
    ) -> None:
        """Serve calls with other objects, whose tensors are ``now`` in the place of ``was``."""
        self.replays.follow(addresses(now) if self._hold_for(regions, was, now) else None)

    def let_go(
        self, regions: Sequence[Region], was: Sequence[torch.Tensor], now: Sequence[torch.Tensor]
    ) -> None:
        """Keep no memory of ``was`` where something else is ``now``."""
        if not self._hold_for(regions, was, now):
            self.plans.release(later=True)
        self.replays.reads.forget()

    def _hold_for(
        self, regions: Sequence[Region], was: Sequence[torch.Tensor], now: Sequence[torch.Tensor]
    ) -> bool:
        """Whether graphs know no more of what changed than where it lay."""
        others = {i for i, (old, new) in enumerate(zip(was, now, strict=True)) if old is not new}
        return all(others <= self.lent(region, now) for region in regions)

    def targets(self, region: Region) -> tuple[Target, ...]:
        """The captured sizes of ``region``, but for those that sleep."""
        awake = self.replays.awake()
        if not awake or region.box is None:
            return ()
        padded, config = self.padded.of(region), self._config
        return capture_targets(
            region.box,
            awake,
            padded=padded,
            uneven=config.uneven,
            factor=config.max_padding_factor,
        )

    def capture_all(
        self,
        regions: Sequence[Region],
        bound: Sequence[torch.Tensor],
        sizes: Sequence[Sizes] | None = None,
    ) -> list[Sizes]:
        """Capture ``sizes``, or all, the largest first; returns those served by graphs."""
        wanted = [
            (self.program(region), target.capture)
            for region in regions
            for target in self.targets(region)
            if target.box.is_single_size() and target.capture is not None
            if sizes is None or target.capture in sizes
        ]
        return self.replays.capture_all(wanted, bound)

    def pending(
        self,
        region: Region,
        captured: Sizes,
        otherwise: Entry,
        put: Callable[[Sizes, Entry], None],
    ) -> Entry:
        """What serves a captured size first; ``put`` has another entry take its place.

        ``otherwise``: serves calls without graphs.
        """
        return self.replays.pending(self.program(region), captured, otherwise, put)

    def plan(
        self, region: Region, captured: Sizes, tensors: Any, bound: Any, sizes: Sizes
    ) -> CapturedPlan | None:
        """The plan of a capture size, captured now if it must be; None where it cannot be.

        ``tensors``: a call's own, of ``sizes``.
        """
        return self.replays.plan(self.program(region), captured, tensors, bound, sizes)

    def program(self, region: Region) -> Replayable:
        """What of a region is replayed."""
        static = self._config.inputs == "static"
        return _RegionReplays(region, static, self.padded, partial(self.lent, region))


@dataclass(frozen=True)
class _RegionReplays:
    """A region as something to replay: its trace knows everything before a capture.

    ``static``: whether graphs read the caller's own tensors. ``lent``: places of bound tensors that
    they do not keep.
    """

    region: Region
    static: bool
    dims: PaddedDims
    lent: Callable[[Sequence[torch.Tensor]], frozenset[int]]

    @property
    def graphs_per_size(self) -> int:
        """A graph per compilable piece."""
        return len(self.region.program.compilable)

    def recording(
        self, captured: Sizes, inputs: tuple[torch.Tensor, ...], bound: Sequence[torch.Tensor]
    ) -> Recording:
        """The plan that serves ``captured``, its pieces recorded."""
        region, lent = self.region, self.lent(bound)
        bound = [unowned(t) if i in lent else t for i, t in enumerate(bound)]
        if not self.static and region.addresses_inputs is not None:
            refuse_input(region.addresses_inputs)
        written = tuple(bound[i] for i in sorted(region.program.mutated_bound))
        if self.static:
            written += tuple(inputs[i] for i in sorted(region.program.mutated))

        def build(recorder: Any) -> Any:
            recorder.reshaping |= bool(region.program.reshaped)
            return region.recording_plan(captured, recorder)

        # Graphs read the program's literals too; plans number only what comes before them.
        return Recording(build, (*bound, *region.code.literals), written)

    def facts(self, captured: Sizes) -> Facts:
        """The same at every size."""
        program = self.region.program
        output = program.traced.output
        return Facts(
            _taking(program, output.serving(copies=True)),
            output.uses_inputs,
            tuple(sorted(program.mutated)),
            tuple(program.mutated_bound),
        )

    def captured(self) -> None:
        """The trace has said all there is to know."""

    def padded(self, captured: Sizes, outputs: Sequence[Any]) -> PaddedCalls | None:
        """By the rules on the region's graph."""
        if not self.dims.of(self.region):
            return None
        return PaddedRegion(self.region, captured, self.dims)


def _taking(program: Program, rebuild: Callable[..., Any]) -> Callable[..., Any]:
    """``rebuild``, of outputs some of which are other objects at every call."""
    loose = [v for v in program.values if isinstance(v, torch.fx.Node) and varies_itself(v)]
    if not loose:
        return rebuild
    held = inputs_in(program.traced, frozenset().union(*map(storages, loose)), "bound")
    return lambda o, t, b: rebuild(taken(o, [b[place] for place in held]), t, b)
